"""Pictures: drawn without a display, upright, and clear about what is missing."""

import json

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from sdm_cli.errors import CheckpointError, OutputError
from sdm_cli.runs.progress_picture import Course, _draw_shares, draw_progress
from sdm_cli.runs.record import read_record
from sdm_cli.runs.report import OverlayRow, class_colour, draw_overlays


def _row(case_id="case-1", with_reference=True):
    # (X towards the right, Y towards the front): a bright right side, a class at the front.
    image = np.zeros((40, 30), np.uint16)
    image[20:] = 60000
    mask = np.zeros((40, 30), np.uint8)
    mask[5:12, 24:29] = 1
    mask[30:36, 3:9] = 2
    return OverlayRow(case_id, image, mask, mask.copy() if with_reference else None, (1.0, 1.2))


def _write_metrics(path, n_steps=30, with_validation=True):
    lines = []
    for step in range(1, n_steps + 1):
        loss = 2.0 / step
        lines.append(
            {"step": step, "epoch": 0, "loss": loss, "loss_labeled": loss, "loss_unlabeled": None}
            | {"loss_consistency": None, "lr": 1e-3 * (1 - step / 40), "pairs_per_second": 10.0}
        )
        if with_validation and step % 10 == 0:
            scores = {
                "dice": step / 40,
                "per_class": {"liver": step / 40, "aorta": None},
                "pooled_dice": 0.5,
                "pooled_iou": 0.4,
            }
            lines.append({"step": step, "validation": scores | {"n_cases": 3}})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_of_many_classes_the_curve_names_the_worst_at_its_end(tmp_path, monkeypatch):
    """The legend of 41 classes would leave no room."""
    per_class = [{f"class {i}": min(1, (i + step) / 60) for i in range(41)} for step in (1, 2)]
    per_class[1]["class 40"] = None  # absent: the worst
    lines = [{"step": step, "loss": 1.0, "lr": 1e-3} for step in (1, 2)]
    lines += [
        {"step": step, "validation": {"dice": 0.5, "pooled_iou": 0.4, "per_class": per_class[step - 1]}}
        for step in (1, 2)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    named, legend = {}, Axes.legend

    def spy(panel, **options):
        named[options.get("title")] = [handle.get_label() for handle in options.get("handles", ())]
        return legend(panel, **options)

    monkeypatch.setattr(Axes, "legend", spy)
    draw_progress(tmp_path / "progress.png", tmp_path / "metrics.jsonl")
    assert named["classes, worst 13 of 41"] == [*(f"class {i}" for i in range(12)), "class 40"]


def test_fourteen_classes_have_colours_of_their_own():
    assert len({class_colour(index) for index in range(1, 15)}) == 14


def test_progress_shows_shares_as_long_as_there_are_some_and_marks_alarms(tmp_path, monkeypatch):
    """Every class has its pseudo-label curve, dashed label curve and alarm in its one colour."""

    def line(step, share):
        shares = {"background": 1 - share, "liver": share, "aorta": 0.01}
        weights = {"background": 0.1, "liver": 1.0, "aorta": 2.0}
        return {"step": step, "loss": 1.0, "lr": 1e-3, "labeled_share": shares | {"liver": 0.1}} | {
            "pseudo_share": None if step < 20 else shares,
            "class_weights": weights,
        }

    lines = [line(step, 0.1 if step < 60 else 0.0) for step in range(10, 130, 10)]
    lines.append({"step": 100, "collapse": {"liver": {"pseudo_share": 0.0, "labeled_share": 0.1}}})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    panels = {}
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *a, **k: panels.update({x.get_title(): x for x in figure.axes})
    )
    monkeypatch.setattr("sdm_cli.files.Path.replace", lambda *paths: None)
    draw_progress(tmp_path / "progress.png", tmp_path / "metrics.jsonl")
    curves = panels["share of the pixels, by class"].lines
    liver = [curve for curve in curves if curve.get_color() == class_colour(1)]
    labeled, single, pseudo, *marks = liver
    assert labeled.get_linestyle() == "--" and np.allclose(labeled.get_ydata(), 10)
    assert single.get_ydata()[5] == pseudo.get_ydata()[-1] < pseudo.get_ydata()[5]  # gone at once; the mean falls
    heights = pseudo.get_ydata()
    assert np.isnan(heights[0]) and np.allclose(heights[1:5], 10) and 0 < heights[-1] < 10 / 20  # on the lower edge
    assert {float(np.ravel(mark.get_xdata())[0]) for mark in marks} == {100.0} and len(marks) == 2
    assert sum(curve.get_color() == class_colour(2) for curve in curves) == 3
    assert [curve.get_ydata()[0] for curve in panels["class weights"].lines] == [0.1, 1.0, 2.0]


@pytest.mark.parametrize("has_weights", [True, False])
def test_progress_says_whose_dice_it_is_and_where_pseudo_labels_begin(tmp_path, monkeypatch, has_weights):
    lines = [{"step": step, "loss": 1.0, "lr": 1e-3} for step in range(10, 110, 10)]
    if has_weights:
        lines = [line | {"class_weights": {"liver": 1.0}} for line in lines]
    lines.append(
        {"step": 100, "validation": {"dice": 0.5, "pooled_iou": 0.4, "per_class": {"liver": 0.5, "aorta": 0.5}}}
    )
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: figures.append(figure))
    monkeypatch.setattr("sdm_cli.files.Path.replace", lambda *paths: None)
    for start in (40, 140):
        draw_progress(tmp_path / "progress.png", tmp_path / "metrics.jsonl", course=Course("training", start))
    for figure, start, n_lines in zip(figures, (40, 140), (1, 0), strict=True):
        panels = {panel.get_title(): panel for panel in figure.axes if panel.get_title()}
        dice = panels["Dice of the training cases, per volume"]
        assert {float(curve.get_ydata()[0]) for curve in dice.lines if len(curve.get_ydata()) == 1} == {50.0}
        assert dice.get_ylim() == (0, 100) and dice.yaxis.get_major_formatter()(50, 0) == "50 %"
        assert ("class weights" in panels) == has_weights and len(panels) == 4 + has_weights == len(figure.axes) - 1
        for panel in panels.values():
            assert [list(curve.get_xdata()) for curve in panel.lines].count([start, start]) == n_lines


@pytest.mark.parametrize("name", ["患者一", "a$b$c\\"])
def test_names_of_any_script_are_drawn_without_a_warning(name, tmp_path):
    draw_overlays(tmp_path / "overlays.png", [_row(name)], ("肝臓", "$x$"), title=name)
    assert (tmp_path / "overlays.png").is_file()


def _panels(path, n_columns):
    """Boxes of the dark pixels of one-row overlays: rough, but enough to tell sides apart."""
    picture = imread(path)[..., :3]
    return np.array_split(picture, n_columns, axis=1)


@pytest.mark.parametrize("with_reference", [True, False])
def test_overlays_are_drawn_with_and_without_reference(tmp_path, with_reference):
    path = tmp_path / "pictures" / "overlays.png"
    draw_overlays(path, [_row(with_reference=with_reference), _row("case-2", with_reference)], ("liver", "aorta"))
    assert imread(path).ndim == 3
    assert [file.name for file in path.parent.iterdir()] == ["overlays.png"]


def test_overlays_show_the_right_side_on_the_left_and_the_front_on_top(tmp_path):
    path = tmp_path / "overlays.png"
    draw_overlays(path, [_row()], ("liver", "aorta"))
    scan, prediction, _ = _panels(path, 3)
    dark = (scan < 0.02).all(axis=-1)
    assert dark.any()
    grey_columns = np.flatnonzero(dark.sum(axis=0) > dark.shape[0] // 3)
    # The patient's left (dark) lies on the right half of the panel.
    assert grey_columns.min() > scan.shape[1] // 3
    colour = np.array([int(class_colour(1)[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    painted = np.abs(prediction - colour).max(axis=-1) < 0.02
    panel_rows = np.flatnonzero(dark.any(axis=1))
    rows, _ = np.nonzero(painted[panel_rows.min() : panel_rows.max()])
    assert rows.max() < (panel_rows.max() - panel_rows.min()) / 2


def test_a_constant_slice_and_an_empty_mask_can_be_drawn(tmp_path):
    flat = OverlayRow("flat", np.zeros((8, 8), np.uint16), np.zeros((8, 8), np.uint8))
    draw_overlays(tmp_path / "flat.png", [flat], ("liver",))
    assert (tmp_path / "flat.png").stat().st_size > 0


@pytest.mark.parametrize("with_validation", [True, False])
def test_progress_is_drawn_from_the_metrics(tmp_path, with_validation):
    _write_metrics(tmp_path / "metrics.jsonl", with_validation=with_validation)
    draw_progress(tmp_path / "progress.png", tmp_path / "metrics.jsonl", "a run")
    assert imread(tmp_path / "progress.png").ndim == 3


@pytest.mark.parametrize(("shares", "lowest"), [({}, 0.0), ({"liver": 0.2}, 0.05), ({"liver": 0.0}, 0.0)])
def test_the_panel_of_shares_ends_below_what_it_shows_and_not_far_below(shares, lowest):
    """Shares of 20 % need no decade below them; none at all, or none recorded, leave the axis upright."""
    panel = Figure().subplots()
    training = [{"step": step, "labeled_share": shares, "pseudo_share": shares} for step in range(3)]
    _draw_shares(panel, training, [], {"liver": "#000000"})
    low, high = panel.get_ylim()
    assert 100 * lowest < low < high


@pytest.mark.parametrize(
    "damage",
    [
        '{"step": 31, "lo',
        "not json\n",
        "[1]\n",
        '{"step": "31", "loss": 0.1}\n',
        '{"step": true, "loss": 0.1}\n',
        '{"step": 31, "loss": "low"}\n',
        '{"step": 31, "loss": NaN}\n',
        '{"step": 31, "loss": null}\n',
        '{"step": -31, "loss": 0.1}\n',
        '{"step": 31, "loss": 0.1, "pseudo_share": {"liver": "much"}}\n',
        '{"step": 31, "loss": 0.1, "class_weights": 3}\n',
        '{"step": 31, "validation": {"dice": "hi", "pooled_iou": 0.1, "per_class": {"liver": 0.1}}}\n',
        '{"step": 31, "validation": {"dice": 0.1, "pooled_iou": 0.1, "per_class": 3}}\n',
        '{"step": 31, "validation": {"dice": 0.1, "per_class": {"liver": 0.1}}}\n',
        '{"step": 31, "collapse": ["liver"]}\n',
    ],
)
def test_a_line_that_is_none_of_a_record_is_left_out(tmp_path, damage):
    """A kill leaves half a last line; a disk may damage any."""
    metrics = tmp_path / "metrics.jsonl"
    _write_metrics(metrics)
    draw_progress(tmp_path / "whole.png", metrics)
    metrics.write_text(metrics.read_text() + damage)
    draw_progress(tmp_path / "damaged.png", metrics)
    assert (tmp_path / "damaged.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    assert read_record(metrics).damaged == damage.endswith("\n")


def test_metrics_that_cannot_be_drawn_are_named(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    for text in (None, "", "not json\n"):
        if text is not None:
            metrics.write_text(text)
        with pytest.raises(OutputError, match=r"metrics\.jsonl: holds no training step yet"):
            draw_progress(tmp_path / "progress.png", metrics)
    metrics.unlink()
    metrics.mkdir()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl cannot be read \(Is a directory\)"):
        draw_progress(tmp_path / "progress.png", metrics)
    assert not (tmp_path / "progress.png").exists()


@pytest.mark.parametrize("has_pseudo", [True, False])
def test_a_labeled_only_run_has_no_pseudo_labels_in_its_legend(tmp_path, monkeypatch, has_pseudo):
    line = {
        "step": 10,
        "loss": 1.0,
        "labeled_share": {"liver": 0.1},
        "pseudo_share": {"liver": 0.1} if has_pseudo else None,
    }
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: figures.append(figure))
    monkeypatch.setattr("sdm_cli.files.Path.replace", lambda *paths: None)
    draw_progress(tmp_path / "progress.png", tmp_path / "metrics.jsonl")
    legends = [
        text.get_text() for panel in figures[0].axes if panel.get_legend() for text in panel.get_legend().get_texts()
    ]
    assert "labels" in legends and ("pseudo-labels" in legends) == has_pseudo
    assert ("alarm: the class has vanished" in legends) == has_pseudo
