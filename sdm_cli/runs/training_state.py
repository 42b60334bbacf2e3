"""What a run is after a step, kept whole in a checkpoint: a run that goes on from it ends as if it never stopped.

Random numbers are no part of it: they come from (seed, micro-batch) and (seed, draw number).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdm_cli.config import Preset
from sdm_cli.errors import CheckpointError
from sdm_cli.method.checkpoint import load_model, load_resume, save_model
from sdm_cli.method.difficulty import ClassDifficulty
from sdm_cli.method.network import MessengerNetwork
from sdm_cli.method.schedule import start_average
from sdm_cli.method.tensors import first_line
from sdm_cli.runs.optimizer import optimizer_tensors, restore_optimizer
from sdm_cli.runs.run_folder import RunFolder
from sdm_cli.runs.shares import ClassShares


class TrainingState:
    """Weights, their average, optimiser, class difficulty, class shares, loss scale, and the counters of the loop.

    Attributes:
        done: steps finished.
        skipped: those of them that fp16 left out, because a gradient was too large for it.
        skipped_in_row: the last ones, without a step that was taken since, or since the run went on.
        validated: the last step that was validated.
        saved: the step of the last checkpoint.
        best: score of the best validation.
    """

    def __init__(
        self, network: MessengerNetwork, optimizer: torch.optim.Optimizer, difficulty: ClassDifficulty, scaler: Any
    ) -> None:
        self.network, self.optimizer, self.difficulty, self._scaler = network, optimizer, difficulty, scaler
        self.shares = ClassShares(len(difficulty.last_dice), difficulty.last_dice.device)
        self.average: MessengerNetwork | None = None
        self.done, self.skipped, self.validated, self.saved, self.best = 0, 0, 0, 0, -1.0
        self.skipped_in_row = 0

    @property
    def kept(self) -> MessengerNetwork:
        """The network that makes pseudo-labels, is validated and is kept."""
        return self.average if self.average is not None else self.network

    def start_average(self, decay: float) -> None:
        """Let an average of the weights, which begins as they are, be the network that is kept; not at decay 0."""
        self.average = start_average(self.network) if decay else None

    def take_step(self) -> bool:
        """Let the optimiser use the gradients and clear them; False if fp16 skipped the step and lowered its scale.

        A fused optimiser is called even then and skips on the device, so neither its call nor Accelerate
        (`optimizer_step_was_skipped`) tells; that the scale fell does.
        """
        scale = None if self._scaler is None else self._scaler.get_scale()
        self.optimizer.step()
        self.optimizer.zero_grad()
        is_taken = scale is None or self._scaler.get_scale() >= scale
        self.skipped += not is_taken
        self.skipped_in_row = 0 if is_taken else self.skipped_in_row + 1
        return is_taken

    def save(self, run: RunFolder, preset: Preset) -> None:
        """Write `checkpoints/last`; the one before it becomes `checkpoints/previous`."""
        run.flush_record()
        save_model(
            run.last, self.kept, preset, (self._tensors(), self._values()), chosen_on="last step", keep=run.previous
        )
        self.saved = self.done

    def restore(self, checkpoint: Path, steps: int) -> None:
        """Become what a checkpoint of a run of so many steps says.

        Raises:
            CheckpointError: it cannot be read, or says what no run can; another must be restored.
        """
        (kept, _), (tensors, values) = load_model(checkpoint), load_resume(checkpoint)
        try:
            self.kept.load_state_dict(kept.state_dict())
            if self.average is not None:
                self.network.load_state_dict(_below(tensors, "network."))
            self.difficulty.load_state_dict(_below(tensors, "difficulty."))
            self.shares.counts.copy_(tensors["shares"])
            restore_optimizer(self.optimizer, _below(tensors, "optimizer."))
            if self._scaler is not None and "scaler" in values:
                self._scaler.load_state_dict(values["scaler"])
                self.skipped = int(values["skipped"])
            self.done, self.validated = int(values["step"]), int(values["validated"])
            self.best = float(values["best"])
        except (LookupError, AttributeError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise CheckpointError(f"{checkpoint}: its training state is incomplete ({first_line(error)}).") from None
        if not (0 <= self.validated <= self.done <= steps and -1 <= self.best <= 1):
            raise CheckpointError(
                f"{checkpoint}: no run of {steps} steps is at step {self.done}, validated at {self.validated}, with a "
                f"best score of {self.best}."
            )
        self.saved = self.done

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"difficulty.{name}": value for name, value in self.difficulty.state_dict().items()}
        tensors["shares"] = self.shares.counts
        if self.average is not None:  # the model folder then holds the average
            tensors |= {f"network.{name}": value for name, value in self.network.state_dict().items()}
        return tensors | {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}

    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = {"step": self.done, "validated": self.validated, "best": self.best}
        return (
            values
            if self._scaler is None
            else {
                **values,
                "scaler": self._scaler.state_dict(),
                "skipped": self.skipped,
            }
        )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
