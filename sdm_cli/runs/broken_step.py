"""A training step whose loss or gradient is not finite: kept before it harms the weights, and replayed.

It is kept as a model folder in the run, `broken/step-<number>`: the weights that the step began with, and beside
them, as training state, its batch. `sdm train --replay` repeats that step and names where it breaks.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sdm_cli.config import Preset
from sdm_cli.console import print_result
from sdm_cli.data.cases import counted
from sdm_cli.data.pairs import PairBatch, PairedSlices
from sdm_cli.errors import CheckpointError, OutputError, SdmError
from sdm_cli.method.checkpoint import has_model, load_model, load_resume, save_model
from sdm_cli.method.difficulty import ClassDifficulty
from sdm_cli.method.losses import LossTerms
from sdm_cli.method.network import MessengerNetwork
from sdm_cli.method.schedule import first_semi_supervised_step
from sdm_cli.method.step import pseudo_label, semi_supervised_step
from sdm_cli.method.tensors import first_line
from sdm_cli.runs.failures import explained
from sdm_cli.runs.processes import Processes
from sdm_cli.runs.run_folder import RunFolder
from sdm_cli.runs.seeds import seed_micro_batch
from sdm_cli.runs.torch_model import resolve_device
from sdm_cli.runs.training_state import TrainingState
from sdm_cli.runs.workload import Workload

Slices = Sequence[tuple[tuple[str, int], tuple[str, int]]]
"""Of each pair of a batch: case and number of the labeled slice, and of the unlabeled one."""
_SHOWN = 4
"""Names in a message; the file has them all."""
_PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}


class StepWatch:
    """Looks at every step between its gradients and the optimiser.

    That makes a GPU wait once a step, as augmentation does (it reads its draws back).
    """

    def __init__(
        self,
        preset: Preset,
        pairs: PairedSlices,
        work: Workload,
        folder: RunFolder,
        accelerator: Accelerator,
        state: TrainingState,
    ) -> None:
        self._preset, self._pairs, self._work, self._folder = preset, pairs, work, folder
        self._accelerator, self._state = accelerator, state
        self._batch: PairBatch
        self._numbers: Tensor
        self._micro_batch: int
        self._before: dict[str, Tensor]

    def begin(self, batch: PairBatch, numbers: Tensor, micro_batch: int) -> None:
        """Remember a micro-batch, its draw numbers and its own number, and what it changes before it can be judged.

        That is the class difficulty, and the running statistics of the network.
        """
        self._batch, self._numbers, self._micro_batch = batch, numbers, micro_batch
        self._before = {f"difficulty.{name}": value for name, value in self._state.difficulty.state_dict().items()}
        self._before |= {f"buffer.{name}": value.clone() for name, value in self._state.network.named_buffers()}

    def require_finite(self, terms: LossTerms, processes: Processes) -> None:
        """Keep the step and raise SdmError if its loss or its gradient is not finite.

        Gradients are averaged over the processes, so one of which the loss is not finite makes those of all so: then
        only that process has broken the step. Under fp16 gradients are scaled up and may overflow: those steps are
        skipped and counted, the loss alone is looked at.

        Raises:
            SdmError: it is not; PeerFailed where another process says so.
        """
        is_loss_broken = not torch.isfinite(terms.total).item()
        is_any_loss_broken = processes.any(is_loss_broken)
        with processes.together():
            if is_loss_broken:
                raise self._broken("loss")
            if not is_any_loss_broken and self._accelerator.scaler is None:
                gradients = [weight.grad for weight in self._state.network.parameters() if weight.grad is not None]
                if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)).item():
                    raise self._broken("gradient")

    def _broken(self, what: str) -> SdmError:
        """Keep the step, as far as there is room for it; the sentence that tells of it."""
        slices = [self._pairs.slices_of(number) for number in self._numbers.tolist()]
        names = [f"{case_id} slice {z}" for pair in slices for case_id, z in pair]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        n_processes = self._accelerator.num_processes
        where = f" of process {self._accelerator.process_index}" if n_processes > 1 else ""
        try:
            shows = f"sdm train --replay {self._keep(slices)} shows where it breaks (the folder holds these slices)"
        except OutputError as error:
            shows = f"the step could not be kept: {error}"
        remedies = ["a lower train.lr"] + ["train.mixed_precision=no"] * (self._preset.train.mixed_precision != "no")
        return SdmError(
            f"The {what} of step {self._state.done + 1} is not finite (its batch{where}: "
            f"{', '.join(names[:_SHOWN])}{more}), and no checkpoint holds it: train again with "
            f"{' or '.join(remedies)}; {shows}."
        )

    def _keep(self, slices: Slices) -> Path:
        """Write the model folder of the step; each process its own."""
        state, process = self._state, self._accelerator.process_index
        suffix = f"-process-{process}" if self._accelerator.num_processes > 1 else ""
        folder = self._folder.broken / f"step-{state.done + 1}{suffix}"
        buffers = {name.removeprefix("buffer."): value for name, value in self._before.items() if "buffer." in name}
        network = {**state.network.state_dict(), **buffers}
        tensors = {name: value for name, value in self._before.items() if "difficulty." in name}
        tensors |= {f"batch.{name}": value for name, value in self._batch._asdict().items()}
        if state.average is not None:
            tensors |= {f"average.{name}": value for name, value in state.average.state_dict().items()}
        fraction = self._preset.method.labeled_only_fraction
        values = {
            "step": state.done,
            "micro_batch": self._micro_batch,
            "process": process,
            "processes": self._accelerator.num_processes,
            "labeled_only": state.done < first_semi_supervised_step(self._work.steps, fraction),
            "slices": [{"labeled": list(labeled), "unlabeled": list(unlabeled)} for labeled, unlabeled in slices],
        }
        save_model(folder, network, self._preset, (tensors, values), chosen_on="a step that is not finite")
        return folder


def replay(folder: Path, device: str | None = None) -> None:
    """Repeat a kept step, in the precision of its run and in float32, and print where it stops being finite.

    Args:
        folder: `broken/step-<number>` of a run.
        device: as `sdm train -d`.

    Raises:
        CheckpointError: not a kept step, or damaged.
    """
    if not has_model(folder):
        run = RunFolder(folder.parent if folder.name == "broken" else folder)
        kept = ", ".join(str(path) for path in sorted(run.broken.glob("step-*"))) or "there is none here"
        raise CheckpointError(f"{folder} is not a step that a run kept: give RUN/broken/step-<number> ({kept}).")
    (network, preset), (tensors, values) = load_model(folder), load_resume(folder)
    target = resolve_device(device)
    try:
        batch = PairBatch(*(tensors[f"batch.{name}"].to(target) for name in PairBatch._fields))
        difficulty = {
            name.removeprefix("difficulty."): value for name, value in tensors.items() if "difficulty." in name
        }
        slices = [tuple(pair[role]) for pair in values["slices"] for role in ("labeled", "unlabeled")]
        step, labeled_only = int(values["step"]), bool(values["labeled_only"])
        micro_batch, process, processes = (int(values[name]) for name in ("micro_batch", "process", "processes"))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is not a step that a run kept ({first_line(error)} is missing): give RUN/broken/step-<number>."
        ) from None
    print_result(f"Step {step + 1} of {preset.name}, on {target}")
    print_result("batch: " + ", ".join(f"{case_id} slice {z}" for case_id, z in slices))
    if processes > 1 or preset.train.accumulate > 1:
        print_result(
            f"The run had {counted(processes, 'process')} and {counted(preset.train.accumulate, 'micro-batch')}: this "
            "is one of them, with the class weights of its own pixels, and without what the messenger gathers from "
            "other processes."
        )
    _print_unless_finite("batch", batch._asdict())
    _print_unless_finite("weights before the step", network.state_dict())
    average = {name.removeprefix("average."): value for name, value in tensors.items() if name.startswith("average.")}
    for precision in dict.fromkeys((preset.train.mixed_precision, "no")):
        if precision == "fp16" and target.type == "cpu":
            print_result("float16: needs a GPU, left out")
            continue
        trained, _ = load_model(folder)
        labels, _ = load_model(folder)
        if average:
            labels.load_state_dict(average)
        state = ClassDifficulty(preset.data.n_classes, preset.method.difficulty_steps, target)
        state.load_state_dict({name: value.to(state.last_dice.dtype) for name, value in difficulty.items()})
        seed_micro_batch(preset.train.seed, micro_batch, process)
        print_result(f"\n{_PRECISIONS[precision]}")
        with explained(preset.train, target):
            _repeat(trained.to(target), labels.to(target), preset, batch, state, labeled_only, precision)


def _repeat(
    network: MessengerNetwork,
    labels: MessengerNetwork,
    preset: Preset,
    batch: PairBatch,
    difficulty: ClassDifficulty,
    labeled_only: bool,
    precision: str,
) -> None:
    """One step without the optimiser; prints losses, the first module that breaks, and the gradients' norms."""
    network.train()
    lower = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with torch.autocast(batch.paste.device.type, lower, enabled=lower is not None), _first_broken(network) as broken:
        terms = semi_supervised_step(
            network,
            lambda image: pseudo_label(labels, image, preset.model.exchange),
            *batch,
            difficulty,
            preset.method,
            labeled_only=labeled_only,
            has_messenger=bool(preset.model.messenger_stages),
            sum_over_processes=lambda counts: counts,
        )
    for name, term in zip(LossTerms._fields, terms, strict=True):
        print_result(f"  loss {name}: {'none in this step' if term is None else f'{term.item():.6g}'}")
    print_result(f"  first module whose output is not finite: {broken[0] if broken else 'none'}")
    terms.total.backward()
    norms: dict[str, float] = {}
    for name, weight in network.named_parameters():
        if weight.grad is not None:
            part = ".".join(name.split(".")[:2])
            norms[part] = math.hypot(norms.get(part, 0.0), weight.grad.float().norm().item())
    for part, norm in norms.items():
        print_result(f"  gradient of {part}: {norm:.4g}")
    finite = math.isfinite(terms.total.item()) and all(map(math.isfinite, norms.values()))
    print_result(f"  the step is {'finite' if finite else 'not finite'} in {_PRECISIONS[precision]}")


@contextmanager
def _first_broken(network: nn.Module) -> Iterator[list[str]]:
    """Names of the modules whose output is not finite, in the order in which they finish."""
    broken: list[str] = []

    def look(name: str, output: Any) -> None:
        parts = output if isinstance(output, (list, tuple)) else [output]
        if not all(torch.isfinite(part).all() for part in parts if isinstance(part, Tensor)):
            broken.append(name or "the whole network")

    hooks = [
        module.register_forward_hook(lambda _module, _input, output, name=name: look(name, output))
        for name, module in network.named_modules()
    ]
    try:
        yield broken
    finally:
        for hook in hooks:
            hook.remove()


def _print_unless_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
    names = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if names:
        print_result(f"not finite in the {what}: {', '.join(names[:_SHOWN])} ({len(names)} in all)")
