"""How much a run is: pairs a step, steps an epoch and in all. From the preset, the slices and the processes."""

import math
from dataclasses import dataclass

from sdm_cli.config import TrainConfig
from sdm_cli.errors import PresetError


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
            f"train.pairs: a step of {pairs_per_step} pairs would hold slices twice, since there are "
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
