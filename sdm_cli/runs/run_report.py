"""`report.html` of a run: what was trained on what, its curves, and the intensities of its scans.

The same sections stand in the report of an evaluation of the run, below its scores.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from sdm_cli.config import Preset
from sdm_cli.data.cases import counted
from sdm_cli.data.store import SliceStore
from sdm_cli.documents import parse_json, read_text
from sdm_cli.errors import StoreError
from sdm_cli.runs.charts import Curve, line_chart
from sdm_cli.runs.gain_section import gain_section
from sdm_cli.runs.html_page import REPORT, node, section, sentences, write_page
from sdm_cli.runs.info import describe
from sdm_cli.runs.intensities import draw_intensities
from sdm_cli.runs.progress_picture import Course, Lines, class_value, course_of, drawn_classes, points, smoothed
from sdm_cli.runs.run_folder import STUDY_PREFIX, RunFolder
from sdm_cli.runs.shares import BACKGROUND

_LOSSES = {
    "loss": ("total", "k-ink thick"),
    "loss_labeled": ("labeled", "k7"),
    "loss_unlabeled": ("unlabeled", "k6"),
    "loss_consistency": ("consistency", "k3"),
}
_LEAST_COLOURS = 7
"""That losses and domains need, however few the classes are."""


def write_run_report(run: RunFolder) -> Path:
    """Write `report.html` of a run, finished or not, in place of an older one.

    Args:
        run: its folder.

    Returns:
        The file.

    Raises:
        CheckpointError: it is no run.
        OutputError: the file cannot be written.
    """
    preset, _ = run.read_config()
    path = run.path / REPORT
    bought = gain_section(run.path)
    summary = section("Summary", sentences(run_sentences(run)), _links(run))
    sections = [summary, *([bought] if bought is not None else ()), *run_sections(run)]
    write_page(path, preset.name, "Training", sections, n_colours(preset.data.n_classes - 1))
    return path


def n_colours(n_classes: int) -> int:
    """How many colours a page of so many foreground classes needs."""
    return max(n_classes, _LEAST_COLOURS)


def run_sentences(run: RunFolder) -> list[str]:
    """What was trained on what, and how far, in words."""
    about = describe(run.path)
    preset, _ = run.read_config()
    roles = ("labeled", "unlabeled") if preset.method.use_unlabeled else ("labeled",)
    # Of the cases that a split lists the store may lack some: what was trained on is known in slices.
    counts = about["slices"] or {}
    trained_on = " and ".join(counted(counts[role], f"{role} slice") for role in roles if role in counts)
    listed = ", ".join(f"{n} {role}" for role, n in about["split"]["listed"].items() if n)
    best, measure = about["best"], "pooled IoU" if preset.protocol == "paper" else "Dice"
    texts = [
        f"S&D Messenger with encoder {about['encoder']}, trained on {trained_on or 'slices'} of "
        f"{about['dataset']}; classes: {', '.join(about['classes'])}.",
        f"{about['step']} of {about['steps'] or '?'} steps are done"
        + ("." if about["finished"] else ", the run is not finished."),
        "No validation has been made yet."
        if best is None
        else f"The best checkpoint is that of step {best['step']}: {measure} {percent(best['score'])} on the "
        f"{about['selected_on']} cases, which chose it.",
        f"Protocol {about['protocol']}; {about['preprocessing']}; split {name_of(about['split']['name'])} "
        f"({about['split']['hash']}), which lists as cases: {listed}.",
    ]
    if not preset.method.use_unlabeled:
        texts.append("It is a labeled-only training: the network never saw an unlabeled scan.")
    for alarm in about["alarms"]:
        texts.append(f"Alarm at step {alarm['step']}: {', '.join(alarm['classes'])} vanished from the pseudo-labels.")
    if about["versions"]:
        texts.append(f"Made with {', '.join(f'{name} {version}' for name, version in about['versions'].items())}.")
    return texts


def run_sections(run: RunFolder) -> list[Element]:
    """Curves of the record and intensities of the store; what is not there is said."""
    preset, store = run.read_config()
    return [
        section("Training", *_curves(run.entries(), preset, course_of(run))),
        section("Intensities", _intensities(run, store)),
    ]


def percent(score: float | None) -> str:
    """A score of 0 to 1 in words."""
    return "undefined" if score is None else f"{100 * score:.1f}\u00a0%"


def name_of(place: str) -> str:
    """Of a file or folder its name alone: what a report says must not tell of the machine."""
    return Path(place).name or place


def _links(run: RunFolder) -> Element | None:
    """Links to the reports of the run's evaluations, and to that of its labeled-only twin."""
    links = []
    for path in sorted(run.path.glob(f"evaluation/*/{REPORT}")):
        try:
            summary = parse_json(read_text(path.parent / "summary.json"))
            score = f": Dice {percent(summary['foreground_mean']['Dice'])} of {counted(summary['n_cases'], 'case')}"
        except (OSError, ValueError, KeyError, TypeError):  # the report itself is worth its link
            score = ""
        name = path.parent.name
        role = name.removeprefix(STUDY_PREFIX)
        by = ", by the study" if role != name else ""
        links.append(
            node("li", node("a", f"Scores of the {role} cases", href=f"evaluation/{name}/{REPORT}"), by, score)
        )
    where = f"baseline/{REPORT}"
    if (run.path / where).is_file():
        links.append(node("li", node("a", "The labeled-only training", href=where), " of the same schedule"))
    return node("ul", *links, class_="sentences") if links else None


def _curves(entries: Lines, preset: Preset, course: Course) -> list[Element]:
    training = [line for line in entries if "loss" in line]
    validations = [line for line in entries if "validation" in line]
    alarms = [line for line in entries if "collapse" in line]
    if not training:
        return [node("p", "No step has been recorded yet.")]
    order = list(preset.data.class_names)
    drawn, n_classes = drawn_classes(training, validations)
    keys = {name: f"k{order.index(name) + 1}" for name in drawn if name in order}
    note = "" if len(drawn) == n_classes else f"The worst {len(drawn)} of {n_classes} classes."
    begin = course.semi_from or None
    started = f"Upright line: from step {begin} on, pseudo-labels count." if begin else ""

    def curve(name: str, key: str, lines: Lines, value: Any) -> Curve:
        return Curve(name, key, *points(lines, value))

    losses = [
        curve(name, key, training, lambda line, loss=loss: line.get(loss)) for loss, (name, key) in _LOSSES.items()
    ]
    dice = [
        curve(name, key, validations, lambda line, name=name: _percent_of(line["validation"]["per_class"].get(name)))
        for name, key in keys.items()
    ]
    mean = curve("mean", "k-ink thick", validations, lambda line: _percent_of(line["validation"]["dice"]))
    charts = [
        line_chart(
            "Loss", [each for each in losses if any(value == value for value in each.values)], note=started, begin=begin
        ),
        line_chart(
            f"Dice of the {course.scored} cases, per volume",
            [*dice, *([mean] if len(dice) > 1 else [])],
            " %",
            100,
            note=note,
            begin=begin,
        ),
        _shares(training, alarms, keys, note, begin),
        line_chart("Learning rate of the encoder", [curve("", "k-ink", training, lambda line: line.get("lr"))]),
    ]
    if any(line.get("class_weights") for line in training):
        weights = {BACKGROUND: "k-soft", **keys}
        curves = [
            curve(name, key, training, lambda line, name=name: class_value(line, "class_weights", name))
            for name, key in weights.items()
        ]
        charts.append(line_chart("Class weights", curves, note=note))
    return [node("div", *charts, class_="charts")]


def _shares(training: Lines, alarms: Lines, keys: Mapping[str, str], note: str, begin: int | None) -> Element:
    """Pseudo-labels full, labels dashed: means over as many records as the alarm looks at."""
    curves = []
    for name, key in keys.items():
        steps, labeled = points(training, lambda line, name=name: class_value(line, "labeled_share", name))
        _, pseudo = points(training, lambda line, name=name: class_value(line, "pseudo_share", name))
        marks = [alarm["step"] for alarm in alarms if name in alarm["collapse"]]
        curves.append(Curve("", f"{key} dashed", steps, 100 * smoothed(labeled)))
        curves.append(Curve(name, key, steps, 100 * smoothed(pseudo), marks))
    has_pseudo = any(line.get("pseudo_share") for line in training)
    full = "Full: pseudo-labels; dashed: labels; a triangle: the class has vanished from the pseudo-labels."
    said = [full if has_pseudo else "Dashed: labels.", note]
    return line_chart("Share of the pixels", curves, " %", lowest=None, note=" ".join(filter(None, said)), begin=begin)


def _intensities(run: RunFolder, store: Path) -> Element:
    split = run.read_split()
    role_of = {case_id: role for role, case_ids in vars(split).items() for case_id in case_ids}
    try:
        slices = SliceStore(store)
        group_of = {
            case_id: case.domain or f"{role_of[case_id]} cases"
            for case_id, case in slices.cases.items()
            if case_id in role_of
        }
        if not group_of:
            return node("p", "The store of the run holds other cases now.")
        return node("div", draw_intensities(slices, group_of), class_="charts")
    except StoreError:  # it may have been moved or deleted since, and its message tells its place
        return node("p", "The store of the run cannot be read any more, so no intensities are shown.")


def _percent_of(score: float | None) -> float | None:
    return None if score is None else 100 * score
