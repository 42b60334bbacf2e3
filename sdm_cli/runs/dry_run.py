"""What a run would be before it is one: its size, its estimated time and memory, and the most pairs that fit."""

import dataclasses
from functools import partial
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from sdm_cli.config import Preset
from sdm_cli.console import print_result, say
from sdm_cli.data.cases import counted
from sdm_cli.data.splits import ROLES, Split
from sdm_cli.data.store import SliceStore
from sdm_cli.errors import SdmError
from sdm_cli.method.schedule import first_semi_supervised_step
from sdm_cli.preset_files import preset_to_dict
from sdm_cli.runs.live import announce, as_clock
from sdm_cli.runs.memory import memory_bound
from sdm_cli.runs.processes import Processes
from sdm_cli.runs.trial import StartLoop, in_gb, most_pairs, try_steps
from sdm_cli.runs.workload import RunPlan

_UNTRIED = ", and what it holds of the others (model.exchange_over: all), which one process alone does not show"


def with_train(preset: Preset, **changes: Any) -> Preset:
    """The preset with other values in its section `train`."""
    return dataclasses.replace(preset, train=dataclasses.replace(preset.train, **changes))


def fitting_pairs(
    start: StartLoop, preset: Preset, store: SliceStore, split: Split, accelerator: Accelerator, processes: Processes
) -> int:
    """The most pairs per process whose steps fit into memory; says which, and tries on the first process alone.

    Raises:
        SdmError: not even one fits, the system does not tell how much memory there is, or one process alone does not
            show what several take.
    """
    found = [0]
    with processes.together():
        if preset.model.exchange_over == "all" and accelerator.num_processes > 1:
            raise SdmError(
                "--pairs-per-process auto tries one process alone, while with model.exchange_over: all each one also "
                f"holds what the {accelerator.num_processes} processes exchange: give a number."
            )
        if accelerator.is_main_process:
            found[0] = _most_on_main(start, preset, store, split, accelerator)
    broadcast_object_list(found)
    return found[0]


def _most_on_main(start: StartLoop, preset: Preset, store: SliceStore, split: Split, accelerator: Accelerator) -> int:
    device, n_processes = accelerator.device, accelerator.num_processes
    # Processes on a GPU have one each; on a CPU they share the machine's memory.
    bound = memory_bound(device) // (n_processes if device.type == "cpu" else 1)
    n_unlabeled = sum(store.cases[case_id].n_slices for case_id in split.unlabeled)
    say(f"Trying how many pairs fit into {in_gb(bound)}, four fifths of what {device} has free for each process.")
    found, cost = most_pairs(
        partial(try_steps, start), bound, max(n_unlabeled // (n_processes * preset.train.accumulate), 1)
    )
    say(
        f"train.pairs: {found}, with {in_gb(cost.peak_bytes)} at most and {cost.step_seconds:.2f} s a step "
        f"(the preset had {preset.train.pairs})."
    )
    return found


def print_dry_run(plan: RunPlan, device: torch.device, n_processes: int, start: StartLoop) -> None:
    """Print the resolved preset as YAML that `--preset FILE` reads back, and the size and cost of the run as remarks.

    Raises:
        SdmError: a step fails, or does not fit into memory.
    """
    preset, work, store = plan.preset, plan.work, plan.store
    announce(preset, plan.pairs, work, n_processes)
    say("Trying some steps.")
    cost = try_steps(start, preset.train.pairs, for_duration=True)
    if cost is None:
        raise SdmError(
            f"A step of train.pairs: {preset.train.pairs} does not fit into the memory of {device}: lower it, or give "
            "--pairs-per-process auto, which finds the most that fit."
        )
    n_validations = -(-work.steps // work.validate_every)
    validation = sum(store.cases[case_id].n_slices for case_id in plan.selection) * cost.slice_seconds
    first = first_semi_supervised_step(work.steps, preset.method.labeled_only_fraction) if cost.warm_up_seconds else 0
    seconds = (
        first * cost.warm_up_seconds
        + (work.steps - first) * cost.step_seconds
        + n_validations * validation / n_processes
    )
    warm_up = f"{counted(first, 'step')} of {cost.warm_up_seconds:.2f} s, then " if first else ""
    print_result(yaml.safe_dump(preset_to_dict(preset), sort_keys=False, allow_unicode=True).rstrip())
    print_result(f"# store: {store.path}, {counted(len(store.cases), 'case')}")
    for role in ROLES:
        cases = getattr(plan.split, role)
        n_slices = sum(store.cases[case_id].n_slices for case_id in cases)
        print_result(f"# {role}: {counted(len(cases), 'case')}, {counted(n_slices, 'slice')}")
    print_result(
        f"# size: {counted(work.steps, 'step')} of {counted(work.pairs_per_step, 'pair')} "
        f"({counted(n_processes, 'process')} on {device}), {work.steps / work.steps_per_epoch:.1f} passes over the "
        f"unlabeled slices, {counted(n_validations, 'validation')} of {counted(len(plan.selection), 'case')}"
    )
    print_result(
        f"# estimated from some steps: {as_clock(seconds)} ({warm_up}{cost.step_seconds:.2f} s a step, "
        f"{validation:.1f} s a validation), {in_gb(cost.peak_bytes)} of memory in each training process"
        f"{_UNTRIED if preset.model.exchange_over == 'all' and n_processes > 1 else ''}"
    )
