"""Prediction and reference over the slices of one case: axial, coronal and sagittal, each with a slider.

Owns which slices are shown, how large, and their outlines. Pictures are WebP in the page itself, outlines are vectors.
"""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, tostring

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from PIL import Image

from sdm_cli.data_config import IGNORE
from sdm_cli.runs.html_page import node
from sdm_cli.runs.report import upright

_PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # the axis that its slices are stacked along
_ENDS = ("RL", "AP", "HF")  # of the patient's axes: to the right, forward and up, each with its opposite
_MOST_SLICES = 40
_MOST_PIXELS = 288
_MOST_BYTES = 5_000_000
"""Of one case; fewer slices are shown where they take more, so that a page of three cases stays below 20 MB."""
_MARGIN = 2
_QUALITY = 70
_CONTRAST = (1, 99)


@dataclass(frozen=True, eq=False)
class ShownCase:
    """What is drawn of one case: voxels along the closest of the patient's axes, to the right, forward and up.

    Attributes:
        prediction: (x, y, z) class indices.
        reference: likewise; 255 is ignored.
        spacing_mm: along x, y and z.
        image: intensities of the same voxels; none: masks alone.
        is_oriented: whether the files tell where the patient's right, front and head are.
    """

    prediction: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    image: NDArray[Any] | None = None
    is_oriented: bool = True


def draw_case(case: ShownCase, name: str, class_names: Sequence[str]) -> Element:
    """Three views of a case side by side.

    Args:
        case: what to draw.
        name: of the case, for the words.
        class_names: foreground classes in order.
    """
    sizes = _sizes(case)
    window = _window(case, sizes)
    pages = {
        plane: _pages(case, plane, _chosen(sizes[axis]), name, class_names, window) for plane, axis in _PLANES.items()
    }
    while _n_bytes(pages.values()) > _MOST_BYTES and any(len(of_plane) > 1 for of_plane in pages.values()):
        pages = {plane: _every_second(of_plane) for plane, of_plane in pages.items()}
    return node("div", *(_view(plane, name, of_plane) for plane, of_plane in pages.items()), class_="views")


def _n_bytes(views: Iterable[Sequence[Element]]) -> int:
    return sum(len(tostring(page)) for pages in views for page in pages)


def _pages(
    case: ShownCase,
    plane: str,
    chosen: tuple[list[int], int],
    name: str,
    class_names: Sequence[str],
    window: tuple[float, float],
) -> list[Element]:
    """The slices of a view; without its script the page shows the one that is not hidden."""
    axis = _PLANES[plane]
    indices, start = chosen
    pages = []
    for index in indices:
        place = f"slice {index + 1} of {case.reference.shape[axis]}"
        words = f"{name}, {plane} {place}: outlines of prediction and reference"
        picture = _slice(case, axis, index, window, class_names, words)
        pages.append(
            node("div", picture, class_="slice", data_place=place, hidden=None if index == start else "hidden")
        )
    return pages


def _every_second(pages: Sequence[Element]) -> list[Element]:
    """Half of the slices, with the one that is not hidden."""
    start = _start(pages)
    return list(pages[start % 2 :: 2])


def _start(pages: Sequence[Element]) -> int:
    return next(place for place, page in enumerate(pages) if page.get("hidden") is None)


def _view(plane: str, name: str, pages: Sequence[Element]) -> Element:
    start = _start(pages)
    slider = node(
        "input",
        type="range",
        min="0",
        max=str(len(pages) - 1),
        value=str(start),
        aria_label=f"{plane} slice of {name}",
        hidden="hidden",
    )
    caption = node("figcaption", f"{plane} ", node("output", pages[start].get("data-place")))
    stage = node("div", *pages, class_="stage")
    return node("figure", caption, stage, slider if len(pages) > 1 else None, class_="view")


def _sizes(case: ShownCase) -> list[list[int]]:
    """Voxels of all structures of both masks in each slice along x, y and z."""
    inside = [(mask > 0) & (mask != IGNORE) for mask in (case.prediction, case.reference)]
    return [
        sum(mask.sum(axis=tuple(other for other in range(3) if other != axis)) for mask in inside).tolist()
        for axis in range(3)
    ]


def _extent(sizes: Sequence[int]) -> tuple[int, int]:
    """First and last slice with a structure; all where there is none."""
    occupied = [index for index, size in enumerate(sizes) if size] or [0, len(sizes) - 1]
    return occupied[0], occupied[-1]


def _chosen(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Slices to show, spread over those with a structure; and the one of them with most of it."""
    first, last = _extent(sizes)
    first, last = max(first - _MARGIN, 0), min(last + _MARGIN, len(sizes) - 1)
    indices = sorted({round(index) for index in np.linspace(first, last, min(_MOST_SLICES, last - first + 1)).tolist()})
    return indices, max(indices, key=lambda index: (sizes[index], -abs(index - len(sizes) / 2)))


def _window(case: ShownCase, sizes: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Intensities that are black and white: of what lies around the structures, so that these are seen."""
    if case.image is None:
        return 0.0, 1.0
    box = []
    for first, last in map(_extent, sizes):
        around = (last + 1 - first) // 4
        box.append(slice(max(first - around, 0), last + 1 + around))
    low, high = np.percentile(case.image[tuple(box)], _CONTRAST).tolist()
    return low, max(high, low + 1e-6)


def _slice(
    case: ShownCase, axis: int, index: int, window: tuple[float, float], class_names: Sequence[str], words: str
) -> Element:
    """One slice as SVG, in millimetres, so that voxels have their true proportions."""
    height_mm, width_mm = (case.reference.shape[a] * case.spacing_mm[a] for a in _plane_axes(axis))
    prediction, reference = (_turned(mask, axis, index) for mask in (case.prediction, case.reference))
    size = (min(prediction.shape[1], _MOST_PIXELS), min(prediction.shape[0], _MOST_PIXELS))
    picture = None
    if case.image is not None:
        data = _webp(_turned(case.image, axis, index), window, size)
        picture = node("image", href=data, width=width_mm, height=height_mm, preserveAspectRatio="none")
    outlines = []
    for kind, mask in (("prediction", prediction), ("reference", reference)):  # dashes above the full line
        small = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        for value, path in _outlines(small, len(class_names)):
            title = node("title", f"{class_names[value - 1]}, {kind}")
            if kind == "reference":
                outlines.append(node("path", d=path, class_="outline halo reference"))
            outlines.append(node("path", title, d=path, class_=f"outline {kind} k{value}"))
    scale = f"scale({width_mm / size[0]:.6g} {height_mm / size[1]:.6g})"
    return node(
        "svg",
        picture,
        node("g", *outlines, transform=scale),
        *(_letters(axis, width_mm, height_mm) if case.is_oriented else ()),
        viewBox=f"0 0 {width_mm:.6g} {height_mm:.6g}",
        width="640",
        height=f"{640 * height_mm / width_mm:.0f}",
        role="img",
        aria_label=words,
    )


def _letters(axis: int, width_mm: float, height_mm: float) -> list[Element]:
    """Where the patient's right, front or head are, at the edges of a slice."""
    up, left = _plane_axes(axis)
    size = min(0.055 * max(width_mm, height_mm), 0.25 * min(width_mm, height_mm))
    places = {
        _ENDS[left][0]: (0.6 * size, height_mm / 2),
        _ENDS[left][1]: (width_mm - 0.6 * size, height_mm / 2),
        _ENDS[up][0]: (width_mm / 2, 0.6 * size),
        _ENDS[up][1]: (width_mm / 2, height_mm - 0.6 * size),
    }
    return [
        node("text", letter, x=x, y=y, font_size=size, class_="edge", aria_hidden="true")
        for letter, (x, y) in places.items()
    ]


def _plane_axes(axis: int) -> tuple[int, int]:
    """Axes of a slice that go up and to the left in its picture."""
    left, up = (other for other in range(3) if other != axis)
    return up, left


def _turned(volume: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
    """A slice as rows and columns of the picture."""
    return np.ascontiguousarray(upright(np.take(volume, index, axis)))


def _webp(plane: NDArray[Any], window: tuple[float, float], size: tuple[int, int]) -> str:
    low, high = window
    grey = ((plane.astype(np.float32) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    packed = io.BytesIO()
    Image.fromarray(grey).resize(size, Image.Resampling.BOX).save(packed, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(packed.getvalue()).decode()}"


def _outlines(mask: NDArray[np.uint8], n_classes: int) -> Iterator[tuple[int, str]]:
    """Class index and outline of each class in a picture: a path in pixels, the first one from 0 to 1."""
    for value in np.unique(mask[(mask > 0) & (mask <= n_classes)]).tolist():
        inside = np.pad(mask == value, 1).astype(np.float32)
        lines = contour_generator(z=inside).lines(0.5)
        yield value, "".join(_line_path(np.asarray(line)) for line in lines)


def _line_path(line: NDArray[np.float64]) -> str:
    """A closed line, straight runs as one, in half pixels."""
    points = np.rint(2 * (line - 0.5)).astype(int)  # the margin of one pixel, and pixels from their edges
    moves = np.diff(points, axis=0)
    is_corner = np.append((moves[1:] != moves[:-1]).any(axis=1), True)
    ends = points[1:][is_corner]
    steps = np.diff(np.vstack([points[:1], ends]), axis=0)
    path = " ".join(f"{x / 2:g} {y / 2:g}" for x, y in steps[:-1].tolist())
    return f"M{points[0, 0] / 2:g} {points[0, 1] / 2:g}l{path}z"
