"""Real training steps in a process of their own: what they cost, and how many pairs fit into memory.

A process of its own starts with no memory used, and if the system kills it for want of memory, the run lives on.
"""

import contextlib
import io
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sdm_cli.errors import SdmError, reason_of
from sdm_cli.method.schedule import first_semi_supervised_step
from sdm_cli.runs.hardware import determinism
from sdm_cli.runs.loader import load_pairs
from sdm_cli.runs.memory import is_out_of_memory, peak_memory
from sdm_cli.runs.validate import validate

if TYPE_CHECKING:
    from sdm_cli.runs.loop import TrainingLoop

StartLoop = Callable[[int, Path], "TrainingLoop"]
"""Makes a loop of so many pairs per process and of a folder that it may fill, ready for its first step; picklable."""
_STEPS = 3
"""Of each kind that is tried; the first is not timed."""


@dataclass(frozen=True)
class Cost:
    """What training costs.

    Attributes:
        peak_bytes: memory at most, of the GPU or of a process on the machine.
        step_seconds: of one step, after the warm-up if the run goes beyond it.
        warm_up_seconds: of one step of the warm-up; 0 if there is none, or it was not tried.
        slice_seconds: of validation, for one slice; 0 if it was not tried.
    """

    peak_bytes: int
    step_seconds: float
    warm_up_seconds: float
    slice_seconds: float


def try_steps(start: StartLoop, pairs: int, for_duration: bool = False) -> Cost | None:
    """The cost of steps of so many pairs, measured by some; None if they do not fit into memory.

    Warm-up and validation are tried only `for_duration`, as an estimate of the whole run needs them.

    Raises:
        SdmError: the steps fail for another reason, or their process dies of one.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(start, pairs, for_duration, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        process.join()
        answer = _of_a_death(process.exitcode or 0)
    finally:
        process.terminate()  # it has answered, or nobody waits for it any more
        process.join()
        ours.close()
    if isinstance(answer, str):
        raise SdmError(answer)
    assert answer is None or isinstance(answer, Cost)
    return answer


def most_pairs(measure: Callable[[int], Cost | None], bound: int, most: int) -> tuple[int, Cost]:
    """The largest number of pairs whose steps fit, and what they cost.

    Sizes grow, at most doubling, and only as far as fits if a pair takes twice what it took between the last two
    sizes: the messenger's maps grow with the square of the pairs. So on a CPU, where too much kills, little is tried
    that would.

    Args:
        measure: as `try_steps`.
        bound: bytes that may be taken.
        most: pairs that make sense.

    Raises:
        SdmError: not even one pair fits.
    """
    fitting, cost = 1, measure(1)
    if cost is None or cost.peak_bytes > bound:
        raise SdmError(
            f"--pairs-per-process auto: not even one pair fits into {in_gb(bound)}: lower train.crop, or take a "
            "smaller model.encoder."
        )
    too_many, per_pair = most + 1, 0.0
    while too_many - fitting > 1:
        room = bound - cost.peak_bytes
        if room < per_pair:
            break
        expected = fitting + max(int(room / (2 * per_pair)), 1) if per_pair > 0 else most
        candidate = min(expected, 2 * fitting, most if too_many > most else (fitting + too_many) // 2)
        tried = measure(candidate)
        if tried is None or tried.peak_bytes > bound:
            too_many = candidate
        else:
            per_pair = (tried.peak_bytes - cost.peak_bytes) / (candidate - fitting)
            fitting, cost = candidate, tried
    return fitting, cost


def in_gb(n_bytes: int) -> str:
    """Bytes for a person."""
    return f"{n_bytes / 1e9:.1f} GB"


def _of_a_death(exit_code: int) -> str | None:
    """The answer of a process that gave none itself: None where memory was out, or a sentence."""
    if exit_code == -signal.SIGKILL:  # as the system does for want of memory
        return None
    how = f"was ended ({signal.strsignal(-exit_code)})" if exit_code < 0 else f"ended with exit code {exit_code}"
    return (
        f"The process that tries steps {how} before it had an answer: see what stands above, or train without trying "
        "(neither --dry-run nor --pairs-per-process auto)."
    )


def _work(start: StartLoop, pairs: int, for_duration: bool, answer: Connection) -> None:
    """In the process: send a Cost, None when memory is out, or a sentence."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits, which then ends this one
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):  # it is no part of a launched group
        os.environ.pop(name, None)
    result: Cost | str | None
    try:
        with contextlib.redirect_stderr(io.StringIO()), tempfile.TemporaryDirectory() as folder:
            loop = start(pairs, Path(folder))
            with determinism(loop.preset.train.deterministic):
                result = _cost(loop, for_duration)
    except SdmError as error:
        result = str(error)
    except OSError as error:
        file = f" ({error.filename})" if error.filename else ""
        result = f"The steps cannot be tried: {reason_of(error)}{file}."
    except (RuntimeError, MemoryError) as error:
        result = None if is_out_of_memory(error) else f"A step fails: {' '.join(str(error).split())}"
    answer.send(result)
    answer.close()


def _cost(loop: "TrainingLoop", for_duration: bool) -> Cost:
    first = first_semi_supervised_step(loop.work.steps, loop.preset.method.labeled_only_fraction)
    step_seconds = _seconds_of_a_step(loop, min(first, loop.work.steps - 1))
    warm_up_seconds = slice_seconds = 0.0
    if for_duration:
        if first and loop.preset.method.use_unlabeled:
            warm_up_seconds = _seconds_of_a_step(loop, 0)
        since, case_id = time.perf_counter(), loop.plan.selection[0]
        validate(
            loop.state.kept, loop.preset, loop.plan.store, [case_id], loop.accelerator, loop.processes, lambda: False
        )
        slice_seconds = (time.perf_counter() - since) / loop.plan.store.cases[case_id].n_slices
    return Cost(peak_memory(loop.accelerator.device), step_seconds, warm_up_seconds, slice_seconds)


def _seconds_of_a_step(loop: "TrainingLoop", step: int) -> float:
    """Of the fastest of some steps, each done as that step of the run."""
    device, seconds = loop.accelerator.device, []
    draws = range(_STEPS * loop.work.pairs_per_step)
    batches = load_pairs(loop.pairs, draws, loop.preset.train, loop.accelerator)
    for _ in range(_STEPS):
        loop.state.done = step
        since = time.perf_counter()
        try:
            loop.step(batches)
        except SdmError:
            if not loop.folder.broken.exists():
                raise
            # What the loop says of it is for a run: it names checkpoints and a folder that a trial does not leave.
            raise SdmError(
                "The loss or the gradient of a tried step (of random weights) is not finite: lower train.lr, or give "
                "--set train.mixed_precision=no."
            ) from None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - since)
    return min(seconds[1:] or seconds)
