"""Pictures of a run: masks over scans, and the learning curve.

Owns layout and colours. Draws with matplotlib's Agg canvas and never touches pyplot, so it needs
no display and keeps no state; matplotlib is imported only when something is drawn.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

import numpy as np
from numpy.typing import NDArray

from sdm_cli.data_config import IGNORE
from sdm_cli.errors import OutputError, reason_of
from sdm_cli.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _GRID = "#222222", "#dddddd"
# Okabe and Ito's colours, told apart with any colour vision; the grey scan stays free.
_CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
_BESIDE: Mapping[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}  # of the panel, over no curve
_MOST_CURVES = 13  # that a legend beside a panel has room for
_LOSSES = {
    "loss": ("total", _INK),
    "loss_labeled": ("labeled", "#0072B2"),
    "loss_unlabeled": ("unlabeled", "#D55E00"),
    "loss_consistency": ("consistency", "#009E73"),
}


@dataclass(frozen=True)
class OverlayRow:
    """One row of `draw_overlays`: one slice of one case, as `to_slices` returns slices.

    Attributes:
        case_id: written beside the row.
        image: (H, W) intensities of any scale.
        prediction: (H, W) class indices.
        reference: (H, W) class indices, 255 = ignore; none where there is no label.
        pixel_mm: pixel size along H and W.
    """

    case_id: str
    image: NDArray[Any]
    prediction: NDArray[np.uint8]
    reference: NDArray[np.uint8] | None = None
    pixel_mm: tuple[float, float] = (1.0, 1.0)


def class_colour(index: int) -> str:
    """Colour of foreground class `index` (1, 2, ...) in every picture; repeats after seven classes."""
    return _CLASS_COLOURS[(index - 1) % len(_CLASS_COLOURS)]


def draw_overlays(path: Path, rows: Sequence[OverlayRow], class_names: Sequence[str], title: str = "") -> None:
    """Draw scan, prediction and reference of some slices side by side, as a PNG.

    The radiologist's view: anterior (or superior) up, the patient's right on the left.

    Args:
        path: of the PNG; an older one is replaced.
        rows: one slice each.
        class_names: foreground classes in order, for the legend.
        title: over the whole figure.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.patches import Patch

    has_reference = any(row.reference is not None for row in rows)
    columns = ["scan", "prediction", "reference"] if has_reference else ["scan", "prediction"]
    with png_figure(path, 2.3 * len(columns) + 0.3, 2.1 * len(rows) + 0.9) as figure:
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for row, row_axes in zip(rows, axes, strict=True):
            masks = (None, row.prediction, row.reference)[: len(columns)]
            for name, mask, panel in zip(columns, masks, row_axes, strict=True):
                if name == "reference" and mask is None:
                    panel.set_axis_off()
                else:
                    _draw_slice(panel, row, mask)
            row_axes[0].set_ylabel(row.case_id)
        for name, panel in zip(columns, axes[0], strict=True):
            panel.set_title(name)
        handles = [Patch(color=class_colour(index), label=name) for index, name in enumerate(class_names, start=1)]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))
        figure.suptitle(title)


def draw_progress(path: Path, metrics_jsonl: Path, title: str = "") -> None:
    """Draw the learning curve of a run, finished or not, as a PNG.

    Args:
        path: of the PNG; an older one is replaced.
        metrics_jsonl: the run's metrics, one JSON object a line: training lines with `loss`, and
            validation lines with `validation`.
        title: over the whole figure.

    Raises:
        OutputError: the metrics are missing, damaged or empty, or the picture cannot be written.
    """
    lines = _read_metrics(metrics_jsonl)
    training = [line for line in lines if "loss" in line]
    validations = [line for line in lines if "validation" in line]
    if not training:
        raise OutputError(f"{metrics_jsonl}: holds no training step yet; draw it once training has begun.")
    with png_figure(path, 13.5, 3.4) as figure:
        losses, rate, dice = figure.subplots(1, 3)
        _draw_losses(losses, training)
        rate.plot([line["step"] for line in training], [line["lr"] for line in training], color=_INK)
        rate.set(title="learning rate of the encoder", xlabel="step", ylim=(0, None))
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        _draw_validation(dice, validations)
        figure.suptitle(title)


def _draw_slice(panel: "Axes", row: OverlayRow, mask: NDArray[np.uint8] | None) -> None:
    low, high = np.percentile(row.image, (0.5, 99.5))
    panel.imshow(
        upright(row.image),
        cmap="gray",
        vmin=low,
        vmax=max(high, low + 1e-6),
        aspect=row.pixel_mm[1] / row.pixel_mm[0],
        interpolation="nearest",
    )
    if mask is not None:
        panel.imshow(painted(upright(mask)), aspect=row.pixel_mm[1] / row.pixel_mm[0], interpolation="nearest")
    panel.grid(False)
    panel.set(xticks=[], yticks=[])
    for spine in panel.spines.values():
        spine.set_visible(False)


def upright(pixels: NDArray[Any]) -> NDArray[Any]:
    """(H, W) of `to_slices` to picture rows and columns: the second axis points up, the first to the left."""
    return np.rot90(pixels)[:, ::-1]


def painted(mask: NDArray[np.uint8], inside: float = 0.35) -> NDArray[np.float64]:
    """(H, W) class indices to (H, W, 4) colours: `inside` is how opaque a region is, its outline is full."""
    from matplotlib.colors import to_rgba

    colours = np.zeros((*mask.shape, 4))
    padded = np.pad(mask, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    outline = np.logical_or.reduce([neighbour != mask for neighbour in neighbours])
    for index in np.unique(mask[(mask > 0) & (mask < IGNORE)]):
        region = mask == index
        colours[region] = to_rgba(class_colour(int(index)), inside)
        colours[region & outline, 3] = 1.0
    return colours


def _draw_losses(panel: "Axes", training: Sequence[Mapping[str, Any]]) -> None:
    for key, (label, colour) in _LOSSES.items():
        points = [(line["step"], line[key]) for line in training if line.get(key) is not None]
        if points:
            steps, values = zip(*points, strict=True)
            panel.plot(steps, values, label=label, color=colour, linewidth=1.4 if key == "loss" else 0.9)
    panel.set(title="loss", xlabel="step", ylim=(0, None))
    panel.legend(**_BESIDE)


def _draw_validation(panel: "Axes", validations: Sequence[Mapping[str, Any]]) -> None:
    steps = [line["step"] for line in validations]
    curves: dict[str, list[float]] = {}
    for line in validations:
        for name, value in line["validation"]["per_class"].items():
            curves.setdefault(name, []).append(np.nan if value is None else value)
    marker = "o" if len(steps) == 1 else ""
    worst = sorted(curves, key=lambda name: np.nan_to_num(curves[name][-1]))[:_MOST_CURVES]
    for index, (name, values) in enumerate(curves.items(), start=1):
        if name in worst:
            panel.plot(steps, values, label=name, color=class_colour(index), linewidth=0.9, marker=marker)
    means = [np.nan if line["validation"]["dice"] is None else line["validation"]["dice"] for line in validations]
    panel.plot(steps, means, label="mean", color=_INK, linewidth=1.8, marker=marker)
    shown = "per volume" if len(worst) == len(curves) else f"worst {len(worst)} of {len(curves)} classes"
    panel.set(title=f"validation Dice, {shown}", xlabel="step", ylim=(0, 1))
    if validations:
        panel.legend(**_BESIDE)


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A run that was killed may leave half a last line, which no one has to repair.
        return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read as training metrics ({reason_of(error)}).") from None


@contextmanager
def png_figure(path: Path, width_in: float, height_in: float, made_by: str = "sdm") -> "Iterator[Figure]":
    """An empty figure to draw into; saved as a PNG that says what made it when the block ends."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with (
        rc_context(
            {
                "font.size": 9,
                "axes.titlesize": 10,
                "axes.titleweight": "bold",
                "axes.edgecolor": _INK,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "grid.color": _GRID,
                "grid.linewidth": 0.6,
                "legend.frameon": False,
                "text.parse_math": False,  # a dollar in a name is a dollar
            }
        ),
        catch_warnings(),
    ):
        filterwarnings("ignore", "Glyph")  # a name in a script that the font lacks is drawn as boxes
        figure = Figure(figsize=(width_in, height_in), dpi=150, layout="constrained", facecolor="white")
        yield figure
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": made_by})
