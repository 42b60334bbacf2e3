"""The picture of a run's record: losses, Dice, class shares, learning rate and class weights, step by step.

A class has one colour in all panels, and in all pictures of `report`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdm_cli.errors import OutputError
from sdm_cli.method.schedule import first_semi_supervised_step
from sdm_cli.runs.collapse import RECORDS, VANISHED
from sdm_cli.runs.info import planned_steps
from sdm_cli.runs.record import read_record
from sdm_cli.runs.report import INK, class_colour, png_figure
from sdm_cli.runs.run_folder import RunFolder
from sdm_cli.runs.shares import BACKGROUND

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_MOST_CLASSES = 13  # that the legend has room for
_FEW_DECADES = 2000
_BACKGROUND_COLOUR = "#999999"
_BEGIN: dict[str, Any] = {"color": "#777777", "linewidth": 0.8, "zorder": 1}  # of pseudo-labels, an upright line
_BEGIN_KEY: dict[str, Any] = {"colour": "#777777", "linestyle": "", "marker": "|", "markersize": 12}
_LOSSES = {
    "loss": ("total", INK),
    "loss_labeled": ("labeled", "#0072B2"),
    "loss_unlabeled": ("unlabeled", "#D55E00"),
    "loss_consistency": ("consistency", "#009E73"),
}

Lines = Sequence[Mapping[str, Any]]


class Course(NamedTuple):
    """What the record of a run does not tell.

    Attributes:
        scored: the cases that its validations score, in words.
        semi_from: step from which pseudo-labels count; none: not known, or from none.
    """

    scored: str = "validation"
    semi_from: int | None = None


def course_of(run: RunFolder) -> Course:
    """What the folder of a run tells of its course; raises CheckpointError when it is no run."""
    preset, _ = run.read_config()
    scored = "training" if preset.train.select_on == "labeled" else preset.train.select_on
    steps = planned_steps(run) if preset.method.use_unlabeled else None
    return Course(scored, steps and first_semi_supervised_step(steps, preset.method.labeled_only_fraction))


def draw_progress(path: Path, metrics_jsonl: Path, title: str = "", course: Course = Course()) -> None:  # noqa: B008
    """Draw the record of a run, finished or not, as a PNG.

    Args:
        path: of the PNG; an older one is replaced.
        metrics_jsonl: the run's record (see `record`).
        title: over the whole figure.
        course: of the run.

    Raises:
        OutputError: the record holds no step, or the picture cannot be written.
        CheckpointError: the record cannot be read.
    """
    lines = read_record(metrics_jsonl).entries
    training = [line for line in lines if "loss" in line]
    validations = [line for line in lines if "validation" in line]
    if not training:
        raise OutputError(f"{metrics_jsonl}: holds no training step yet; draw it once training has begun.")
    colours, n_classes = drawn_classes(training, validations)
    has_weights = any(line.get("class_weights") for line in training)
    semi_from = course.semi_from if course.semi_from and course.semi_from <= training[-1]["step"] else None
    with png_figure(path, 13.5, 6.6) as figure:
        rows: list[Any] = [["losses", "dice", "legend"], ["shares", "rate", "legend"]]
        if has_weights:
            rows = [["losses", "dice", "shares"], ["rate", "weights", "legend"]]
        panels = figure.subplot_mosaic(rows, width_ratios=(1, 1, 1 if has_weights else 0.6))
        legend = panels.pop("legend")
        _draw_losses(panels["losses"], training)
        _draw_validations(panels["dice"], validations, colours, course.scored)
        _draw_shares(panels["shares"], training, [line for line in lines if "collapse" in line], colours)
        panels["rate"].plot(*points(training, lambda line: line.get("lr")), color=INK)
        panels["rate"].set(title="learning rate of the encoder", ylim=(0, None))
        panels["rate"].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        if has_weights:
            _draw_weights(panels["weights"], training, colours)
        for panel in panels.values():
            for curve in panel.lines:
                if curve.get_marker() == "None" and np.isfinite(np.asarray(curve.get_ydata(), float)).sum() == 1:
                    curve.set_marker("o")  # a line of one point would not be seen
            panel.set(xlabel="step", xlim=(0, 1.02 * training[-1]["step"]))
            if semi_from is not None:
                panel.axvline(semi_from, **_BEGIN)
        has_pseudo = any(line.get("pseudo_share") for line in training)
        _draw_legend(legend, colours, n_classes, has_weights, has_pseudo, semi_from)
        figure.suptitle(title)


def drawn_classes(training: Lines, validations: Lines) -> tuple[dict[str, str], int]:
    """Colours of the classes that are drawn, the worst of the last validation where they are many; how many exist."""
    if validations:
        scores = validations[-1]["validation"]["per_class"]
    else:
        scores = dict.fromkeys(name for name in training[-1].get("labeled_share") or () if name != BACKGROUND)
    worst = sorted(scores, key=lambda name: scores[name] or 0.0)[:_MOST_CLASSES]
    colours = {name: class_colour(index) for index, name in enumerate(scores, start=1) if name in worst}
    return colours, len(scores)


def _draw_losses(panel: "Axes", training: Lines) -> None:
    for key, (label, colour) in _LOSSES.items():
        steps, values = points(training, lambda line, key=key: line.get(key))
        if not np.isnan(values).all():
            panel.plot(steps, values, label=label, color=colour, linewidth=1.4 if key == "loss" else 0.9)
    panel.set(title="loss", ylim=(0, None))
    panel.legend(loc="upper right", frameon=True, framealpha=0.8, edgecolor="none")


def _draw_validations(panel: "Axes", validations: Lines, colours: Mapping[str, str], scored: str) -> None:
    for name, colour in colours.items():
        steps, dice = points(validations, lambda line, name=name: line["validation"]["per_class"].get(name))
        panel.plot(steps, 100 * dice, color=colour, linewidth=1.1)
    if len(colours) > 1:
        steps, means = points(validations, lambda line: line["validation"]["dice"])
        panel.plot(steps, 100 * means, color=INK, linewidth=1.8)
    panel.set(title=f"Dice of the {scored} cases, per volume", ylim=(0, 100))
    panel.yaxis.set_major_formatter(_as_percent)


def _draw_shares(panel: "Axes", training: Lines, alarms: Lines, colours: Mapping[str, str]) -> None:
    """Pseudo-labels full, labels dashed: means over as many records as the alarm looks at; pale: single records."""
    from matplotlib.ticker import LogLocator, NullFormatter

    lowest = 1.0
    for name, colour in colours.items():
        steps, labeled = points(training, lambda line, name=name: class_value(line, "labeled_share", name))
        _, pseudo = points(training, lambda line, name=name: class_value(line, "pseudo_share", name))
        labeled, single, pseudo = 100 * smoothed(labeled), 100 * pseudo, 100 * smoothed(pseudo)
        if (labeled > 0).any():
            lowest = min(lowest, VANISHED * np.median(labeled[labeled > 0]))
        panel.plot(steps, labeled, color=colour, linewidth=0.9, linestyle=(0, (4, 2)))
        panel.plot(steps, single, color=colour, linewidth=0.8, alpha=0.35)
        panel.plot(steps, pseudo, color=colour, linewidth=1.4)
        for alarm in alarms:
            if name in alarm["collapse"]:
                panel.axvline(alarm["step"], color=colour, linewidth=0.8, linestyle=":")
                panel.plot(
                    alarm["step"],
                    1,
                    "v",
                    color=colour,
                    markersize=7,
                    transform=panel.get_xaxis_transform(),
                    clip_on=False,
                )
    curves = [curve for curve in panel.lines if curve.get_transform() == panel.transData]
    heights = [np.asarray(curve.get_ydata(), float) for curve in curves]
    # No share at all is drawn near the lower edge, well below what counts as vanished where others come near it.
    smallest = np.nanmin(np.concatenate([*heights, [np.inf]]))
    bottom = max(lowest / 3, smallest / 2) if np.isfinite(smallest) else lowest / 3
    for curve, height in zip(curves, heights, strict=True):
        curve.set_ydata(np.maximum(height, bottom))
    panel.relim()  # of what is drawn now: a logarithmic axis takes no 0
    panel.set_yscale("log")
    panel.set(title="share of the pixels, by class", ylim=(0.8 * bottom, None))
    low, high = panel.get_ylim()
    if high < _FEW_DECADES * low:  # a tick a decade would be one or two
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_formatter(NullFormatter())
    panel.yaxis.set_major_formatter(_as_percent)


def _as_percent(value: float, _place: float) -> str:
    return f"{value:g} %"


def _draw_weights(panel: "Axes", training: Lines, colours: Mapping[str, str]) -> None:
    for name, colour in {BACKGROUND: _BACKGROUND_COLOUR, **colours}.items():
        panel.plot(
            *points(training, lambda line, name=name: class_value(line, "class_weights", name)), color=colour, lw=1.1
        )
    panel.set(title="class weights", ylim=(0, None))


def _draw_legend(
    panel: "Axes",
    colours: Mapping[str, str],
    n_classes: int,
    has_weights: bool,
    has_pseudo: bool,
    semi_from: int | None,
) -> None:
    from matplotlib.lines import Line2D

    def key(label: str, colour: str, **style: Any) -> "Line2D":
        return Line2D([], [], label=label, color=colour, **style)

    classes = [key(name, colour, linewidth=2) for name, colour in colours.items()]
    others = [
        *([key("mean of all classes", INK, linewidth=2)] if len(colours) > 1 else ()),
        *([key(BACKGROUND, _BACKGROUND_COLOUR, linewidth=2)] if has_weights else ()),
        *([key("pseudo-labels", INK, linewidth=1.4)] if has_pseudo else ()),
        key("labels", INK, linewidth=0.9, linestyle=(0, (4, 2))),
        *([key("alarm: the class has vanished", INK, linestyle="", marker="v", markersize=7)] if has_pseudo else ()),
        *([] if semi_from is None else [key(f"pseudo-labels count from here, step {semi_from}", **_BEGIN_KEY)]),
    ]
    panel.set_axis_off()
    some = "" if len(colours) == n_classes else f", worst {len(colours)} of {n_classes}"
    beside = panel.legend(handles=classes, title=f"classes{some}", loc="upper left", alignment="left")
    panel.add_artist(beside)
    panel.legend(handles=others, loc="upper right" if has_weights else "lower left", alignment="left")


def points(lines: Lines, value: Any) -> tuple[list[int], NDArray[np.float64]]:
    """Steps, and what `value` takes of each line; NaN for None."""
    values = [value(line) for line in lines]
    return [line["step"] for line in lines], np.array([np.nan if v is None else v for v in values], float)


def class_value(line: Mapping[str, Any], key: str, name: str) -> float | None:
    """What a line says of a class under `key`; None where it says nothing."""
    return (line.get(key) or {}).get(name)


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each value and the few before it, those that are defined."""
    parts = [values[max(0, i + 1 - RECORDS) : i + 1] for i in range(len(values))]
    return np.array([np.nan if np.isnan(part[-1]) else np.nanmean(part) for part in parts])
