"""What a run will do, known before there is a network: its cases, and how many steps of how many pairs they make."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdm_cli.config import Preset, TrainConfig
from sdm_cli.data.cases import counted
from sdm_cli.data.pairs import PairedSlices
from sdm_cli.data.splits import Split
from sdm_cli.data.store import SliceStore
from sdm_cli.errors import PresetError
from sdm_cli.runs.validate import selection_cases


@dataclass(frozen=True)
class Workload:
    """The size of a run.

    Attributes:
        pairs_per_step: over all processes and micro-batches: the effective batch.
        steps_per_epoch: passes over the unlabeled slices, as a fraction.
        steps: of the whole run.
        validate_every: steps between two validations.
    """

    pairs_per_step: int
    steps_per_epoch: float
    steps: int
    validate_every: int


def plan_workload(train: TrainConfig, n_unlabeled: int, n_processes: int) -> Workload:
    """The size of a run on so many unlabeled slices; PresetError if a step would hold one twice."""
    pairs_per_step = train.pairs * n_processes * train.accumulate
    if pairs_per_step > n_unlabeled:
        raise PresetError(
            f"train.pairs: a step of {counted(pairs_per_step, 'pair')} would hold slices twice, since there are "
            f"{n_unlabeled} unlabeled ones: lower it{' or train.accumulate' if train.accumulate > 1 else ''}."
        )
    steps_per_epoch = n_unlabeled / pairs_per_step
    return Workload(
        pairs_per_step,
        steps_per_epoch,
        steps=total_steps(train, n_unlabeled, pairs_per_step),
        validate_every=train.validate_every_steps or math.ceil(steps_per_epoch),
    )


def total_steps(train: TrainConfig, n_unlabeled: int, pairs_per_step: int) -> int:
    """Steps of the whole run."""
    return train.steps or math.ceil((train.epochs or 1) * (n_unlabeled / pairs_per_step))


@dataclass(frozen=True)
class RunPlan:
    """A run before its first step.

    Attributes:
        preset: resolved.
        store: of the slices.
        split: who plays which role.
        pairs: gives the pairs of each draw number.
        selection: cases that choose the best checkpoint.
        work: its size.
    """

    preset: Preset
    store: SliceStore
    split: Split
    pairs: PairedSlices
    selection: Sequence[str]
    work: Workload


def plan_run(preset: Preset, store: SliceStore, split: Split, n_processes: int) -> RunPlan:
    """The plan of so many processes together.

    Raises:
        PresetError: a step would hold a slice twice, or no case can choose the best checkpoint.
    """
    pairs = PairedSlices(
        store.with_labels_of(split.labeled),
        split.labeled,
        split.unlabeled,
        preset.train.crop,
        preset.augment,
        preset.train.seed,
    )
    selection = selection_cases(preset, store, split)
    work = plan_workload(preset.train, len(pairs.unlabeled), n_processes)
    return RunPlan(preset, store, split, pairs, selection, work)
