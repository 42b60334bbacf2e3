"""What a person sees while training runs: a live table on a terminal, plain lines elsewhere."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdm_cli.config import STRIDE, Preset
from sdm_cli.console import say, stderr_console, warn
from sdm_cli.data.cases import counted
from sdm_cli.data.limits import by
from sdm_cli.data.pairs import PairedSlices
from sdm_cli.runs.workload import Workload

if TYPE_CHECKING:
    from rich.table import Table

_PLAIN_LINES = 20
"""How many progress lines a run prints when stderr is not a terminal."""


def announce(preset: Preset, pairs: PairedSlices, work: Workload, n_processes: int) -> None:
    """Say what a run is about to do, and warn of what of it makes no sense."""
    say(_described(preset, pairs, work, n_processes))
    if (warmup := preset.train.lr_warmup_steps) >= work.steps:
        warn(
            f"train.lr_warmup_steps: {warmup} is no less than the {work.steps} steps of the run, so the learning rate "
            "is still rising when it ends: lower it"
        )
    # A crop may be larger than every slice by as much as rounding it up to the stride of the network takes.
    crop, largest = preset.train.crop, pairs.largest_slice
    enough = [min(side, size + -size % STRIDE) for side, size in zip(crop, largest, strict=True)]
    if enough != list(crop):
        warn(
            f"train.crop {list(crop)} reaches beyond every slice (at most {by(largest)} pixels), where all is zeros: "
            f"lower it to {enough}"
        )


def _described(preset: Preset, pairs: PairedSlices, work: Workload, n_processes: int) -> str:
    train = preset.train
    rise = f"rises for {train.lr_warmup_steps} steps and " if train.lr_warmup_steps else ""
    return (
        f"{_counted(pairs.labeled, 'labeled')}, {_counted(pairs.unlabeled, 'unlabeled')}; "
        f"{counted(work.steps, 'step')} of {counted(work.pairs_per_step, 'pair')} ({counted(train.pairs, 'pair')} x "
        f"{counted(n_processes, 'process')} x {counted(train.accumulate, 'micro-batch')}), "
        f"crop {train.crop[0]} x {train.crop[1]}, {train.optimizer} at {train.lr:g} (head "
        f"{train.lr * train.head_lr_factor:g}), which is not scaled with the batch, "
        f"{rise}falls as (1 - step / {work.steps})^{train.lr_power:g}; "
        f"mixed precision {train.mixed_precision}, "
        f"protocol {preset.protocol}, best chosen on the {train.select_on} cases, {preset.data.label_use}"
    )


def _counted(slices: Sequence[tuple[str, int]], role: str) -> str:
    cases = {case_id for case_id, _ in slices}
    return f"{counted(len(cases), f'{role} case')} ({counted(len(slices), 'slice')})"


class TrainingView:
    """Step, losses, learning rate, speed and time left; use as a context.

    Args:
        title: of the table.
        work: the size of the run.
        shown: False on all processes but one.
    """

    def __init__(self, title: str, work: Workload, shown: bool) -> None:
        self._title = title
        self._work = work
        self._shown = shown
        self._next_line = 0
        self._rows: dict[str, str] = {}
        self._live: Any = None

    def __enter__(self) -> "TrainingView":
        console = stderr_console()
        if self._shown and console.is_terminal:
            from rich.live import Live

            self._live = Live(self._table(), console=console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show_step(self, entry: Mapping[str, Any], vanished: Sequence[str] = ()) -> None:
        """Show a step record (see `RunFolder`), and the classes that the pseudo-labels lack.

        `entry["step"]` counts finished steps.
        """
        done = entry["step"]
        seconds = (self._work.steps - done) * self._work.pairs_per_step / entry["pairs_per_second"]
        losses = {name.removeprefix("loss_"): entry[name] for name in entry if name.startswith("loss_")}
        self._rows |= {
            "step": f"{done} of {self._work.steps}",
            "epoch": f"{entry['epoch']:.2f}",
            "loss": " ".join([f"{entry['loss']:.4f}"] + [f"{k} {v:.4f}" for k, v in losses.items() if v is not None]),
            "learning rate": f"{entry['lr']:.2e}",
            "pairs per second": f"{entry['pairs_per_second']:.1f}",
            "time left": as_clock(seconds),
        }
        self._rows.pop("pseudo-labels", None)
        if vanished:
            self._rows["pseudo-labels"] = f"without {', '.join(vanished)}"
        self._refresh()
        if self._shown and self._live is None and done >= self._next_line:
            self._next_line = done + max(self._work.steps // _PLAIN_LINES, 1)
            say(", ".join(f"{name} {value}" for name, value in self._rows.items() if name != "validation"))

    def show_validation(self, step: int, dice: float | None, is_best: bool) -> None:
        """Show a validation: mean foreground Dice of whole volumes; one of 0 is not praised."""
        text = f"Dice {_percent(dice)} at step {step}{', the best so far' if is_best and dice else ''}"
        self._rows["validation"] = text
        self._refresh()
        if self._shown and self._live is None:
            say(f"validation: {text}")

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._table())

    def _table(self) -> "Table":
        from rich.table import Table

        table = Table(title=self._title, show_header=False)
        for name, value in self._rows.items():
            table.add_row(name, value)
        return table


def _percent(dice: float | None) -> str:
    return "undefined" if dice is None else f"{100 * dice:.2f} %"


def as_clock(seconds: float) -> str:
    """Seconds as hours:minutes:seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
