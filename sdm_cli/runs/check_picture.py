"""The picture of `sdm check`: intensities of each domain, and a slice of each case with the outline of its label."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sdm_cli.data.cases import counted
from sdm_cli.data.compare import classes_in_use
from sdm_cli.data.contents import QUANTILES, Thumbnail
from sdm_cli.data.findings import Finding
from sdm_cli.data.health import CaseHealth
from sdm_cli.data.hounsfield import SOFT_TISSUE_HU
from sdm_cli.data_config import DataConfig
from sdm_cli.errors import OutputError
from sdm_cli.runs.report import class_colour, painted, png_figure, upright

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_SLICES = 40
_MADE_BY = "sdm check"
_CHUNK = b"tEXtSoftware\0" + _MADE_BY.encode()
_HEAD_BYTES = 1024
_COLUMNS = 8
_MOST_NAMES = 14
_BINS = 120
_LONGEST_NAME = 26
_MOST_UPRIGHT = 1.5
_NARROWEST_IN, _HIGHEST_ROW_IN, _HISTOGRAMS_IN = 8.0, 3.2, 2.4
_DOMAIN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_FRAMES = {"blocks": "#C00000", "warns": "#E08A00"}


def require_replaceable(path: Path, overwrite: bool) -> None:
    """Raise OutputError where a picture would replace anything but an older one of `sdm check` unasked."""
    if overwrite or not path.exists():
        return
    try:
        with path.open("rb") as file:
            is_ours = _CHUNK in file.read(_HEAD_BYTES)
    except OSError:
        is_ours = False
    if not is_ours:
        raise OutputError(
            f"{path} exists and is no picture of sdm check: choose another place with -o, or replace it with "
            "--overwrite."
        )


def draw_check(
    path: Path,
    title: str,
    healths: Sequence[CaseHealth],
    drawn: Sequence[CaseHealth],
    findings: Sequence[Finding],
    data: DataConfig,
) -> None:
    """Draw histograms per domain over slices of the cases.

    Args:
        path: of the PNG; an older one is replaced.
        title: over the whole figure.
        healths: all cases, for the histograms.
        drawn: the cases whose slices are shown, with their thumbnails.
        findings: of all cases; those that are drawn get a frame.
        data: names of the classes.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.patches import Patch

    slices = [(health, health.thumbnail) for health in drawn if health.thumbnail is not None]
    slices.sort(key=lambda item: (item[0].case.domain is None, item[0].case.domain, item[0].case.case_id))
    n_columns = max(1, min(_COLUMNS, len(slices)))
    n_rows = -(-len(slices) // n_columns)
    width_in = max(_NARROWEST_IN, 1.75 * n_columns)
    row_in = min(_tallest([thumbnail for _, thumbnail in slices]) * width_in / n_columns + 0.3, _HIGHEST_ROW_IN)
    index_of = {value: index for index, value in enumerate(classes_in_use(healths, data), start=1)}
    worst = _worst(findings)
    with png_figure(path, width_in, _HISTOGRAMS_IN + row_in * n_rows + 0.9, _MADE_BY) as figure:
        grid = figure.add_gridspec(1 + n_rows, n_columns, height_ratios=[_HISTOGRAMS_IN, *[row_in] * n_rows])
        _draw_histograms(figure.add_subplot(grid[0, :]), healths)
        for i, (health, thumbnail) in enumerate(slices):
            panel = figure.add_subplot(grid[1 + i // n_columns, i % n_columns])
            _draw_thumbnail(panel, health, thumbnail, index_of)
            _name(panel, health, worst.get(health.case.case_id))
        known = {value: name for name, value in data.classes.items()}
        names = {value: known.get(value, f"value {value}") for value in index_of}
        handles = [
            Patch(color=class_colour(index_of[value]), label=name) for value, name in list(names.items())[:_MOST_NAMES]
        ]
        if len(names) > _MOST_NAMES:
            handles.append(Patch(facecolor="none", label=f"and {len(names) - _MOST_NAMES} more"))
        handles += [
            Patch(facecolor="none", edgecolor=_FRAMES[severity], linewidth=2, label=words)
            for severity, words in (("blocks", "blocks training"), ("warns", "look at it"))
            if severity in {worst.get(health.case.case_id) for health, _ in slices}
        ]
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), max(4, n_columns)))
        shown = f"{len(slices)} of " if len(slices) < len(healths) else ""
        figure.suptitle(f"{title}: {shown}{counted(len(healths), 'scan')}")


def _tallest(thumbnails: Sequence[Thumbnail]) -> float:
    """Height to width of the tallest slice, where that leaves it wide enough."""
    ratios = [
        thumbnail.image.shape[1] * thumbnail.pixel_mm[1] / (thumbnail.image.shape[0] * thumbnail.pixel_mm[0])
        for thumbnail in thumbnails
    ]
    return min(max(ratios, default=1.0), _MOST_UPRIGHT)


def _worst(findings: Sequence[Finding]) -> Mapping[str, str]:
    """Case id -> `blocks` or `warns`."""
    worst: dict[str, str] = {}
    for finding in findings:
        if finding.case_id is not None and worst.get(finding.case_id) != "blocks":
            worst[finding.case_id] = finding.severity
    return worst


def _draw_histograms(panel: "Axes", healths: Sequence[CaseHealth]) -> None:
    """One line a domain, each case with the same weight; the tails beyond 0.1 and 99.9 % are cut."""
    samples: dict[str | None, list[NDArray[np.float32]]] = {}
    for health in healths:
        if health.image is not None and health.image.intensity is not None:
            samples.setdefault(health.case.domain, []).append(health.image.intensity.quantiles)
    panel.set(title="Intensities", ylabel="share of voxels, %")
    panel.set_yscale("function", functions=(_root, np.square))  # air may be half of all voxels
    if not samples:
        return
    low, high = np.quantile(np.concatenate([array for arrays in samples.values() for array in arrays]), (0.001, 0.999))
    edges = np.linspace(low, max(high, low + 1e-6), _BINS + 1)
    for i, (domain, arrays) in enumerate(sorted(samples.items(), key=lambda item: (item[0] is None, item[0]))):
        below = np.mean([np.interp(edges, array, QUANTILES) for array in arrays], axis=0)
        colour = _DOMAIN_COLOURS[i % len(_DOMAIN_COLOURS)]
        name = domain or ("no domain" if len(samples) > 1 else "all")
        label = f"{name} ({len(arrays)} scan{'s' if len(arrays) > 1 else ''})"
        panel.stairs(100 * np.diff(below), edges, color=colour, alpha=0.15, fill=True)
        panel.stairs(100 * np.diff(below), edges, color=colour, linewidth=1.4, label=label)
    panel.set_xlim(edges[0], edges[-1])
    panel.set_ylim(0, None)
    panel.legend(loc="upper right")


def _root(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.maximum(shares, 0))


def _draw_thumbnail(panel: "Axes", health: CaseHealth, thumbnail: Thumbnail, index_of: Mapping[int, int]) -> None:
    low, high = np.percentile(thumbnail.image, (0.5, 99.5))
    if health.image is not None and health.image.intensity is not None and health.image.intensity.has_air:
        low, high = SOFT_TISSUE_HU
    aspect = thumbnail.pixel_mm[1] / thumbnail.pixel_mm[0]
    panel.imshow(upright(thumbnail.image), cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
    if thumbnail.label is not None:
        mask = np.zeros(thumbnail.label.shape, np.uint8)
        for value, index in index_of.items():
            mask[thumbnail.label == value] = index
        panel.imshow(painted(upright(mask), inside=0.15), aspect=aspect, interpolation="nearest")


def _name(panel: "Axes", health: CaseHealth, severity: str | None) -> None:
    name = health.case.case_id if health.case.domain is None else f"{health.case.case_id} ({health.case.domain})"
    panel.set_title(
        name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 2]}..",
        fontsize=7,
        fontweight="normal",
        color=_FRAMES.get(severity or "", "black"),
    )
    panel.set_anchor("N")
    panel.grid(False)
    panel.set(xticks=[], yticks=[])
    for spine in panel.spines.values():
        spine.set_visible(severity is not None)
        spine.set(color=_FRAMES.get(severity or "", "white"), linewidth=2)
