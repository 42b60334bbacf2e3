"""Charts as SVG for a page: curves, box plots and histograms; each with its legend and its words.

Owns scales and strokes. Colours are CSS classes of `page_style`, so that a chart follows light and dark. Knows no run.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from sdm_cli.runs.html_page import legend, node

Values = NDArray[np.float64]

_WIDTH, _HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 32
_ROW = 40
_MOST_POINTS = 300
"""Of a curve: more would be closer than the pixels of a screen."""
_MOST_DOTS = 100
"""Of a box plot; beyond that only cases outside of the whiskers are dots."""
_TICKS = 5
_LEAST_SPAN = 1e-300


@dataclass(frozen=True, eq=False)
class Curve:
    """One curve.

    Attributes:
        name: for the legend; curves of one name and key stand there once.
        key: CSS classes of its stroke, as `k1` or `k-ink dashed`.
        steps: where, rising.
        values: as many; NaN where there is none.
        marks: steps of alarms.
    """

    name: str
    key: str
    steps: Sequence[float]
    values: Values
    marks: Sequence[float] = ()


@dataclass(frozen=True)
class Box:
    """One row of a box plot.

    Attributes:
        name: beside the box.
        key: CSS class of its colour.
        values: by name of the case; None where there is none.
    """

    name: str
    key: str
    values: dict[str, float | None] = field(default_factory=dict)


def line_chart(
    title: str,
    curves: Sequence[Curve],
    unit: str = "",
    highest: float | None = None,
    lowest: float | None = 0.0,
    note: str = "",
    begin: float | None = None,
) -> Element:
    """Curves over the steps of a training.

    Args:
        title: above the chart.
        curves: to draw.
        unit: after the numbers of the axis.
        highest: upper end; none: that of the curves.
        lowest: lower end; None for a logarithmic axis, whose zeros lie on the lower edge.
        note: below the chart.
        begin: step from which pseudo-labels count, for an upright line; none: without.
    """
    values = np.concatenate([np.empty(0), *(curve.values for curve in curves)])
    values = values[np.isfinite(values)]
    if not len(values):
        return _figure(title, node("p", "Nothing recorded yet.", class_="note"), [], note)
    last = max(curve.steps[-1] for curve in curves if len(curve.steps))
    x_of = _scale(0, last, _LEFT, _WIDTH - _RIGHT)
    y_of, y_ticks = _vertical(values, lowest, highest)
    parts: list[Element] = []
    for tick in y_ticks:
        parts.append(_grid_line(_LEFT, y_of(tick), _WIDTH - _RIGHT, y_of(tick)))
        parts.append(_text(_LEFT - 5, y_of(tick) + 4, f"{_number(tick)}{unit}", "end"))
    for tick in _nice_ticks(0, last):
        parts.append(_text(x_of(tick), _HEIGHT - _BOTTOM + 16, _number(tick), _anchor(x_of(tick))))
    parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 3, "step", "end"))
    if begin is not None and begin <= last:
        mark = node("title", f"from step {begin:g} on, pseudo-labels count")
        parts.append(node("line", mark, x1=x_of(begin), x2=x_of(begin), y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="begin"))
    for curve in curves:
        steps, heights = _thinned(np.asarray(curve.steps, float), curve.values)
        parts.append(node("path", d=_path(x_of, y_of, steps, heights), class_=f"curve {curve.key}"))
        if np.isfinite(heights).sum() == 1:
            (place,) = np.flatnonzero(np.isfinite(heights))
            parts.append(node("circle", cx=x_of(steps[place]), cy=y_of(heights[place]), r=3.0, class_=curve.key))
        for step in curve.marks:
            x = x_of(step)
            mark = node("title", f"{curve.name}: alarm at step {step:g}")
            shape = f"M{x - 5:.1f} 1L{x + 5:.1f} 1L{x:.1f} {_TOP}Z"
            parts.append(node("path", mark, d=shape, class_=f"alarm {curve.key.split()[0]}"))
    words = [_course(curve, unit) for curve in curves if curve.name]
    picture = _svg(_HEIGHT, f"{title}, by step. {'; '.join(words)}.", parts)
    entries = dict.fromkeys((curve.key, curve.name) for curve in curves if curve.name)
    return _figure(title, picture, list(entries), note)


def box_chart(title: str, boxes: Sequence[Box], unit: str = "", top: float | None = None) -> Element:
    """Box plots with a dot for each case.

    The box holds the middle half, the line in it is the median; whiskers reach to the last case within 1.5 times the
    height of the box.

    Args:
        title: above the chart.
        boxes: one a row; those without a value say so.
        unit: after the numbers.
        top: of the axis, which begins a tenth of it below the lowest value at most; none: 0 to the highest value,
            or from the lowest below 0.
    """
    every = [value for box in boxes for value in box.values.values() if value is not None]
    low, high = min([0.0, *every]), max([0.0, *every]) or 1.0
    if top is not None:
        low, high = math.floor(10 * min([*every, 0.9 * top]) / top) * top / 10, top
    x_of = _scale(low, high, 8, _WIDTH - 8)
    height = _ROW * len(boxes) + 24
    parts: list[Element] = []
    for tick in _nice_ticks(low, high):
        parts.append(_grid_line(x_of(tick), 0, x_of(tick), height - 20))
        parts.append(_text(x_of(tick), height - 5, f"{_number(tick)}{unit}", _anchor(x_of(tick))))
    words = []
    for row, box in enumerate(boxes):
        defined = {name: value for name, value in box.values.items() if value is not None}
        edge = _ROW * row
        middle = f"median {np.median(list(defined.values())):.1f}{unit}" if defined else "no value"
        words.append(f"{box.name} {middle} of {len(defined)}")
        parts.append(node("text", _shortened(box.name), node("title", box.name), x=8.0, y=edge + 13.0, class_="name"))
        parts.append(_text(_WIDTH - 8, edge + 13, f"{middle}, n = {len(defined)}", "end"))
        if defined:
            parts.append(node("g", *_box_parts(defined, unit, x_of, edge + 26), class_=box.key))
    note = f"Of more than {_MOST_DOTS} cases only those outside of the whiskers are dots."
    is_crowded = any(len(box.values) > _MOST_DOTS for box in boxes)
    return _figure(title, _svg(height, f"{title}: {'; '.join(words)}.", parts), [], note if is_crowded else "")


def histogram_chart(title: str, edges: Values, shares: dict[str, Values], note: str = "") -> Element:
    """Histograms over each other.

    Args:
        title: above the chart.
        edges: (N + 1) of the bins.
        shares: name -> (N) percent of the pixels in each bin.
        note: below the chart.
    """
    # Air may be half of all voxels: the root keeps the rest visible.
    top = max(float(values.max()) for values in shares.values())
    x_of = _scale(edges[0], edges[-1], _LEFT, _WIDTH - _RIGHT)
    root = _scale(0, math.sqrt(top), _HEIGHT - _BOTTOM, _TOP)

    def y_of(value: float) -> float:
        return root(math.sqrt(max(value, 0.0)))

    parts: list[Element] = []
    for tick in (0.0, *(top_tick for share in (0.1, 0.4, 1.0) for top_tick in _nice_ticks(0, share * top)[-1:])):
        parts.append(_grid_line(_LEFT, y_of(tick), _WIDTH - _RIGHT, y_of(tick)))
        parts.append(_text(_LEFT - 5, y_of(tick) + 4, f"{_number(tick)} %", "end"))
    for tick in _nice_ticks(edges[0], edges[-1]):
        parts.append(_text(x_of(tick), _HEIGHT - _BOTTOM + 16, _number(tick), _anchor(x_of(tick))))
    entries = []
    for index, (name, values) in enumerate(shares.items(), start=1):
        stairs = "".join(f"V{y_of(value):.1f}H{x_of(edge):.1f}" for value, edge in zip(values, edges[1:], strict=True))
        start = f"M{x_of(edges[0]):.1f} {y_of(0):.1f}"
        parts.append(node("path", d=f"{start}{stairs}V{y_of(0):.1f}Z", class_=f"area k{index}"))
        parts.append(node("path", d=f"{start}{stairs}V{y_of(0):.1f}", class_=f"curve k{index}"))
        entries.append((f"k{index}", name))
    return _figure(title, _svg(_HEIGHT, f"{title}: {', '.join(shares)}.", parts), entries, note)


def _box_parts(defined: dict[str, float], unit: str, x_of: Callable[[float], float], y: float) -> list[Element]:
    values = np.array(list(defined.values()))
    first, median, third = np.percentile(values, (25, 50, 75))
    reach = 1.5 * (third - first)
    low, high = values[values >= first - reach].min(), values[values <= third + reach].max()
    parts = [
        node("line", x1=x_of(low), x2=x_of(first), y1=y, y2=y, class_="whisker"),
        node("line", x1=x_of(third), x2=x_of(high), y1=y, y2=y, class_="whisker"),
        node("rect", x=x_of(first), y=y - 7, width=x_of(third) - x_of(first), height=14, rx=2, class_="box"),
        node("line", x1=x_of(median), x2=x_of(median), y1=y - 8, y2=y + 8, class_="median"),
    ]
    for place, (name, value) in enumerate(defined.items()):
        if len(defined) <= _MOST_DOTS or not low <= value <= high:
            spread = (place * 4) % 9 - 4  # beside each other, the same in every chart
            dot = node("title", f"{name}: {value:.2f}{unit}")
            parts.append(node("circle", dot, cx=x_of(value), cy=y + spread, r=2.3))
    return parts


def _vertical(
    values: Values, lowest: float | None, highest: float | None
) -> tuple[Callable[[float], float], list[float]]:
    """Scale and ticks of the vertical axis."""
    if lowest is not None:
        top = highest if highest is not None else max(float(values.max()), lowest + 1e-9)
        return _scale(lowest, top, _HEIGHT - _BOTTOM, _TOP), _nice_ticks(lowest, top)
    positive = values[values > 0]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (0.1, 1.0)
    floor = math.log10(low / 2)
    scale = _scale(floor, max(math.log10(high), floor + 0.5), _HEIGHT - _BOTTOM, _TOP)
    each = (1, 2, 5) if math.log10(high) - floor < 2 else (1,)
    powers = range(math.floor(floor), math.floor(math.log10(high)) + 1)
    ticks = [tick for power in powers for factor in each if low / 2 <= (tick := factor * 10.0**power) <= high]
    return (lambda value: scale(max(math.log10(value), floor) if value > 0 else floor)), ticks


def _span(low: float, high: float) -> float:
    """From low to high; 1 where that is nothing, or so little that its logarithm fails."""
    return high - low if high - low > _LEAST_SPAN else 1.0


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = _span(low, high)
    return lambda value: start + (end - start) * (value - low) / span


def _nice_ticks(low: float, high: float) -> list[float]:
    """At most six round numbers from low to high."""
    span = _span(low, high)
    power = 10.0 ** math.floor(math.log10(span / _TICKS))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= _TICKS)
    return [step * index for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _thinned(steps: Values, values: Values) -> tuple[Values, Values]:
    """Means over neighbours where there are too many points; NaN where none of them is defined."""
    each = -(-len(steps) // _MOST_POINTS)
    if each <= 1:
        return steps, values
    parts = [values[start : start + each] for start in range(0, len(values), each)]
    means = [float(np.mean(part[np.isfinite(part)])) if np.isfinite(part).any() else math.nan for part in parts]
    return steps[each - 1 :: each] if len(steps) % each == 0 else np.append(
        steps[each - 1 :: each], steps[-1]
    ), np.array(means)


def _path(x_of: Callable[[float], float], y_of: Callable[[float], float], steps: Values, values: Values) -> str:
    points, is_drawn = [], False
    for step, value in zip(steps.tolist(), values.tolist(), strict=True):
        if math.isfinite(value):
            points.append(f"{'L' if is_drawn else 'M'}{x_of(step):.1f} {y_of(value):.1f}")
        is_drawn = math.isfinite(value)
    return "".join(points)


def _course(curve: Curve, unit: str) -> str:
    """A curve in words."""
    defined = curve.values[np.isfinite(curve.values)]
    if not len(defined):
        return f"{curve.name}: no value"
    return f"{curve.name} from {_number(defined[0])}{unit} to {_number(defined[-1])}{unit}"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _shortened(name: str) -> str:
    return name if len(name) <= 30 else f"{name[:28]}.."


def _anchor(x: float) -> str:
    """Of the number below a tick, so that the edges of the picture do not cut it."""
    return "start" if x < 20 else "end" if x > _WIDTH - 20 else "middle"


def _grid_line(x1: float, y1: float, x2: float, y2: float) -> Element:
    return node("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="grid")


def _text(x: float, y: float, text: str, anchor: str) -> Element:
    return node("text", text, x=x, y=y, text_anchor=anchor)


def _svg(height: float, words: str, parts: Sequence[Element]) -> Element:
    return node("svg", *parts, viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=words)


def _figure(title: str, picture: Element, entries: Sequence[tuple[str, str]], note: str) -> Element:
    return node(
        "figure",
        node("figcaption", title),
        picture,
        legend(entries) if entries else None,
        node("p", note, class_="note") if note else None,
        class_="chart",
    )
