"""When the pictures of a run are redrawn, and which panels are kept."""

import time
from collections.abc import Callable

import torch

from sdm_cli.config import Preset
from sdm_cli.console import warn
from sdm_cli.data.pairs import Pair, PairedSlices
from sdm_cli.errors import SdmError
from sdm_cli.files import replacing
from sdm_cli.method.checkpoint import load_model
from sdm_cli.method.network import MessengerNetwork
from sdm_cli.runs.panels import choose_pairs, draw_panels
from sdm_cli.runs.progress_picture import course_of, draw_progress
from sdm_cli.runs.run_folder import RunFolder
from sdm_cli.runs.run_report import write_run_report

_LEAST_PAUSE = 19.0
"""Pauses between drawings, in times of what the last one took: drawing takes a twentieth of the run at most."""
# Of the disk, the memory, or the drawing itself: no picture is worth a run.
_FAILURES = (SdmError, OSError, MemoryError, RuntimeError, ValueError, LookupError, TypeError)


class Pictures:
    """`progress.png`, and panels of the same pairs: `panels/last.png`, `panels/best.png`; at the end `report.html`.

    Drawn at the first validation, at others if drawing takes a twentieth of the run's time at most, and when the run
    ends; `progress.png` also when it is stopped. A picture that cannot be drawn is a warning.
    """

    def __init__(self, folder: RunFolder, preset: Preset, pairs: PairedSlices, device: torch.device) -> None:
        self._folder, self._preset, self._pairs, self._device = folder, preset, pairs, device
        self._chosen: Pair | None = None
        self._best_drawn: int | None = None  # step of the best panels
        self._due = time.monotonic()

    def at_validation(self, network: MessengerNetwork, step: int, is_best: bool) -> None:
        """Redraw what is due after a validation; `network` is the one that was validated."""
        started = time.monotonic()
        if started < self._due:
            return
        self._try(lambda: self._draw(network, step, is_best))
        now = time.monotonic()
        self._due = now + _LEAST_PAUSE * (now - started)

    def at_end(self, network: MessengerNetwork, step: int) -> None:
        """Draw all, however much time it takes."""
        self._try(lambda: self._draw(network, step, step == self._best_step()))
        self._try(self._draw_best)
        self._try(lambda: write_run_report(self._folder))

    def at_stop(self) -> None:
        """Draw what needs no network, for somebody who looks at the run before it goes on."""
        if any("loss" in entry for entry in self._folder.entries()):
            self._try(self._draw_progress)

    def _draw_progress(self) -> None:
        draw_progress(self._folder.picture, self._folder.metrics, self._preset.name, course_of(self._folder))

    def _draw(self, network: MessengerNetwork, step: int, is_best: bool) -> None:
        self._draw_progress()
        self._draw_panels("last", network, step)
        if is_best:
            with replacing(self._folder.panels / "best.png") as temporary:
                temporary.write_bytes((self._folder.panels / "last.png").read_bytes())
            self._best_drawn = step

    def _best_step(self) -> int | None:
        best = self._folder.best_validation(self._preset.protocol)
        return None if best is None else int(best["step"])

    def _draw_best(self) -> None:
        """From the checkpoint, where the best validation came too soon after a drawing."""
        step = self._best_step()
        if step is None or step == self._best_drawn:
            return
        network, _ = load_model(self._folder.best)
        self._draw_panels("best", network.to(self._device), step)
        self._best_drawn = step

    def _draw_panels(self, name: str, network: MessengerNetwork, step: int) -> None:
        self._chosen = self._chosen or choose_pairs(self._pairs)
        title = f"{self._preset.name}, step {step}"
        path, slices_of = self._folder.panels / f"{name}.png", self._pairs.slices_of
        draw_panels(path, network, self._chosen, slices_of, self._preset, self._device, title)

    def _try(self, draw: Callable[[], object]) -> None:
        try:
            draw()
        except _FAILURES as error:
            warn(f"{self._folder.path}: a picture of the run could not be drawn ({error})")
