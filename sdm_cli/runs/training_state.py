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


class TrainingState:
    """Weights, their average, optimiser, class difficulty, loss scale, and the counters of the loop.

    Attributes:
        done: steps finished.
        validated: the last step that was validated.
        saved: the step of the last checkpoint.
        best: score of the best validation.
    """

    def __init__(
        self, network: MessengerNetwork, optimizer: torch.optim.Optimizer, difficulty: ClassDifficulty, scaler: Any
    ) -> None:
        self.network, self.optimizer, self.difficulty, self._scaler = network, optimizer, difficulty, scaler
        self.average: MessengerNetwork | None = None
        self.done, self.validated, self.saved, self.best = 0, 0, 0, -1.0

    @property
    def kept(self) -> MessengerNetwork:
        """The network that makes pseudo-labels, is validated and is kept."""
        return self.average if self.average is not None else self.network

    def start_average(self, decay: float) -> None:
        """Let an average of the weights, which begins as they are, be the network that is kept; not at decay 0."""
        self.average = start_average(self.network) if decay else None

    def save(self, run: RunFolder, preset: Preset) -> None:
        """Write `checkpoints/last`; the one before it becomes `checkpoints/previous`."""
        save_model(
            run.last, self.kept, preset, (self._tensors(), self._values()), chosen_on="last step", keep=run.previous
        )
        self.saved = self.done

    def restore(self, checkpoint: Path) -> None:
        """Become what a checkpoint says; raises CheckpointError if it cannot be read, and another must be restored."""
        (kept, _), (tensors, values) = load_model(checkpoint), load_resume(checkpoint)
        try:
            self.kept.load_state_dict(kept.state_dict())
            if self.average is not None:
                self.network.load_state_dict(_below(tensors, "network."))
            self.difficulty.load_state_dict(_below(tensors, "difficulty."))
            restore_optimizer(self.optimizer, _below(tensors, "optimizer."))
            if self._scaler is not None and "scaler" in values:
                self._scaler.load_state_dict(values["scaler"])
            self.done, self.validated, self.best = values["step"], values["validated"], values["best"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{checkpoint}: its training state is incomplete ({first_line(error)}).") from None
        self.saved = self.done

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"difficulty.{name}": value for name, value in self.difficulty.state_dict().items()}
        if self.average is not None:  # the model folder then holds the average
            tensors |= {f"network.{name}": value for name, value in self.network.state_dict().items()}
        return tensors | {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}

    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = {"step": self.done, "validated": self.validated, "best": self.best}
        return values if self._scaler is None else {**values, "scaler": self._scaler.state_dict()}


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
