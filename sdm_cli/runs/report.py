"""Pictures: masks over scans, and what all pictures share.

Owns layout and colours. Draws with matplotlib's Agg canvas and never touches pyplot, so it needs
no display and keeps no state; matplotlib is imported only when something is drawn.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

import numpy as np
from numpy.typing import NDArray

from sdm_cli.data_config import IGNORE
from sdm_cli.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, _GRID = "#222222", "#dddddd"
# Okabe and Ito's colours, told apart with any colour vision; the grey scan stays free.
_CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")


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
    """Colour of foreground class `index` (1, 2, ...) in every picture: seven, then their dark shades, then again."""
    turn, place = divmod(index - 1, len(_CLASS_COLOURS))
    colour = _CLASS_COLOURS[place]
    if turn % 2 == 0:
        return colour
    return "#" + "".join(f"{int(colour[i : i + 2], 16) * 11 // 20:02X}" for i in (1, 3, 5))


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
                    draw_slice(panel, row.image, mask, row.pixel_mm)
            row_axes[0].set_ylabel(row.case_id)
        for name, panel in zip(columns, axes[0], strict=True):
            panel.set_title(name)
        class_legend(figure, class_names)
        figure.suptitle(title)


def class_legend(figure: "Figure", class_names: Sequence[str]) -> None:
    """Foreground classes and their colours, below all panels."""
    from matplotlib.patches import Patch

    handles = [Patch(color=class_colour(index), label=name) for index, name in enumerate(class_names, start=1)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))


def draw_slice(
    panel: "Axes",
    image: NDArray[Any],
    mask: NDArray[np.uint8] | None = None,
    pixel_mm: tuple[float, float] = (1.0, 1.0),
) -> None:
    """A slice (H, W), upright and without axes, under its classes; `pixel_mm` as in `OverlayRow`."""
    low, high = np.percentile(image, (0.5, 99.5))
    panel.imshow(
        upright(image),
        cmap="gray",
        vmin=low,
        vmax=max(high, low + 1e-6),
        aspect=pixel_mm[1] / pixel_mm[0],
        interpolation="nearest",
    )
    if mask is not None:
        panel.imshow(painted(upright(mask)), aspect=pixel_mm[1] / pixel_mm[0], interpolation="nearest")
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
                "axes.edgecolor": INK,
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
