"""`report.html` of an evaluation: scores in words, tables, box plots and views of cases; then the run itself."""

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from sdm_cli.console import warn
from sdm_cli.data.cases import counted
from sdm_cli.errors import SdmError
from sdm_cli.method.card import choice
from sdm_cli.runs.case_views import ShownCase, draw_case
from sdm_cli.runs.charts import Box, box_chart
from sdm_cli.runs.html_page import REPORT, legend, node, section, sentences, table, write_page
from sdm_cli.runs.metrics import mean_defined
from sdm_cli.runs.run_folder import RunFolder
from sdm_cli.runs.run_report import n_colours, name_of, percent, run_sections, run_sentences, write_run_report
from sdm_cli.runs.score_table import SHOWN, heading, unit_of
from sdm_cli.runs.summary import protocol_remarks

_WITHOUT_PLOT = ("IoU",)
"""A function of Dice: its plot would say the same."""
_FEW, _MANY = 5, 12
_ORIENTATION = (
    "Axial views are seen from the feet and coronal ones from the front, so the patient's right is on the left; in "
    "sagittal ones the front is on the left. Letters at the edges name the patient's right and left, front (A) and "
    "back (P), head and feet. Directions are those that the file tells; an HDF5 file tells none, and is shown as it is "
    "stored, without letters. Voxels have their true proportions; a slider goes through the slices that hold a "
    "structure."
)


def write_evaluation_report(
    folder: Path, summary: Mapping[str, Any], run: Path | None, case_of: Callable[[str], ShownCase]
) -> None:
    """Write `report.html` beside the summary, and that of the run anew, which links to it.

    Args:
        folder: of the summary.
        summary: of the evaluation.
        run: the run that was evaluated, if it was one.
        case_of: what is drawn of a case; an SdmError of it is a warning, and a sentence in the report.

    Raises:
        OutputError: a file cannot be written.
    """
    order = ranked_cases(summary)
    sections = [
        section("Summary", _tiles(summary), sentences(_sentences(summary))),
        section("Classes and domains", *_scores(summary)),
        section("Cases", *_case_tables(summary, order)),
        section("Views", *_views(summary, order, case_of)),
    ]
    if run is not None:
        own, *others = run_sections(RunFolder(run))
        own.insert(1, sentences(run_sentences(RunFolder(run))))
        sections += [own, *others]
    sections.append(section("Rules", _rules(summary)))
    write_page(folder / REPORT, *_title(summary), sections, n_colours(len(summary["classes"])))
    if run is not None:
        write_run_report(RunFolder(run))


def ranked_cases(summary: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Cases that have a Dice, by its mean over the classes, the worst first."""
    dice = {case["case_id"]: _case_mean(case, "Dice") for case in summary["metric_per_case"]}
    return sorted(((name, value) for name, value in dice.items() if value is not None), key=lambda item: item[1])


def _title(summary: Mapping[str, Any]) -> tuple[str, str]:
    """What was scored; and against what, on which day."""
    day = f"{datetime.now(UTC):%Y-%m-%d} (UTC)"
    if "protocol" not in summary:
        cases = counted(summary["n_cases"], "case")
        title = f"Masks in {name_of(summary['predictions'])}, {cases}"
        return title, f"Compared with the labels in {name_of(summary['labels'])}, {day}"
    cases = counted(summary["n_cases"], f"{summary['split']['role']} case")
    return summary["protocol"]["preset"], f"Scores of {cases}, {day}"


def _shown(metric: str, value: float | None) -> float | None:
    return None if value is None else SHOWN[metric].scale * value


def _cell(metric: str, value: float | None) -> str:
    shown = _shown(metric, value)
    return "-" if shown is None else f"{shown:.1f}"


def _spread_cell(metric: str, entry: Mapping[str, Any]) -> str:
    value, deviation = _cell(metric, entry[metric]), entry["std"][metric]
    return value if deviation is None else f"{value} \u00b1 {_cell(metric, deviation)}"


def _case_mean(case: Mapping[str, Any], metric: str) -> float | None:
    return mean_defined(entry[metric] for entry in case["metrics"].values())


def _tiles(summary: Mapping[str, Any]) -> Element:
    mean = summary["foreground_mean"]
    tiles = [
        node("li", node("b", _spread_cell(metric, mean)), node("span", heading(metric, summary))) for metric in SHOWN
    ]
    return node("ul", *tiles, class_="tiles")


def _sentences(summary: Mapping[str, Any]) -> list[str]:
    """What the numbers are, under which protocol, and what is missing from them."""
    texts = [
        f"Mean \u00b1 standard deviation over {counted(summary['n_cases'], 'case')}, whole volumes; mean of the "
        f"{counted(len(summary['classes']), 'foreground class')}."
    ]
    if "protocol" in summary:
        protocol, split = summary["protocol"], summary["split"]
        texts.append(
            f"Model {name_of(summary['model'])} of preset {protocol['preset']} on the {split['role']} cases of split "
            f"{name_of(split['name'])} ({split['hash']}), protocol {protocol['name']}, "
            f"{choice(protocol['checkpoint_chosen_on'])}."
        )
        texts += protocol_remarks(protocol)
    if worst := summary.get("worst_domain"):
        dice = summary["per_domain"][worst]["foreground_mean"]["Dice"]
        texts.append(f"The domain with the lowest mean Dice is {worst}: {percent(dice)}.")
    for label, name in summary["classes"].items():
        missed, invented = summary["mean"][label]["n_missed"], summary["mean"][label]["n_invented"]
        if missed or invented:
            texts.append(f"{name}: missed in {counted(missed, 'case')}, invented in {invented}.")
    if missing := summary.get("missing_predictions"):
        texts.append(f"No mask of {', '.join(missing)}: scored as empty.")
    texts += [f"{failure['case_id']} is in no number: {_reason(summary, failure)}" for failure in summary["failed"]]
    pooled = summary["pooled"]
    texts.append(
        "Pooled, the figure of the published code (voxels of all cases summed): "
        f"Dice {percent(pooled['pooled_dice'])}, Jaccard {percent(pooled['pooled_iou'])}."
    )
    return texts


def _reason(summary: Mapping[str, Any], failure: Mapping[str, str]) -> str:
    """Why a case failed, without the places of its files on this machine."""
    reason = failure["reason"]
    for key in ("store", "predictions", "labels"):
        if key in summary and (parent := Path(summary[key]).parent) != Path():
            reason = reason.replace(f"{parent}{os.sep}", "")
    return reason


def _scores(summary: Mapping[str, Any]) -> list[Element]:
    """Table of the classes and domains, and box plots of them."""
    headings = ["", *(heading(metric, summary) for metric in SHOWN), "cases", "missed", "invented"]
    rows = []
    for label, name in summary["classes"].items():
        entry = summary["mean"][label]
        counts = (entry["n_defined"]["Dice"], entry["n_missed"], entry["n_invented"])
        rows.append([name, *(_spread_cell(metric, entry) for metric in SHOWN), *(str(count) for count in counts)])
    domains = summary.get("per_domain", {}) if len(summary.get("per_domain", {})) > 1 else {}
    for name, group in domains.items():
        cells = (_spread_cell(metric, group["foreground_mean"]) for metric in SHOWN)
        rows.append([f"{name}, mean", *cells, str(group["n_cases"]), "", ""])
    plots = [_plots(summary, "class", lambda metric: _class_boxes(summary, metric, list(domains)))]
    if domains:
        plots.append(
            _plots(summary, "domain, mean of the classes", lambda metric: _domain_boxes(summary, metric, list(domains)))
        )
    words = (
        "Box: the middle half of the cases, with the median; whiskers: to the last case within 1.5 times that; dots: "
        "cases. Undefined values (-) are in no mean: a structure in neither mask has no score, one in only one of the "
        "two has Dice 0 and no distance."
    )
    return [
        table("Mean and standard deviation over the cases that have the class", headings, rows),
        *plots,
        node("p", words, class_="note"),
    ]


def _plots(summary: Mapping[str, Any], by: str, boxes_of: Callable[[str], Sequence[Box]]) -> Element:
    """A box plot of each metric."""
    charts = [
        box_chart(f"{shown.name} by {by}", boxes_of(metric), f" {unit_of(metric, summary)}", shown.top)
        for metric, shown in SHOWN.items()
        if metric not in _WITHOUT_PLOT
    ]
    return node("div", *charts, class_="charts")


def _class_boxes(summary: Mapping[str, Any], metric: str, domains: Sequence[str]) -> list[Box]:
    """One box a class, or one a class and domain."""
    boxes = []
    groups: Sequence[str | None] = domains or [None]
    for index, (label, name) in enumerate(summary["classes"].items(), start=1):
        for domain in groups:
            values = {
                case["case_id"]: _shown(metric, case["metrics"][label][metric])
                for case in summary["metric_per_case"]
                if domain is None or case.get("domain") == domain
            }
            boxes.append(Box(name if domain is None else f"{name}, {domain}", f"k{index}", values))
    return boxes


def _domain_boxes(summary: Mapping[str, Any], metric: str, domains: Sequence[str]) -> list[Box]:
    means: dict[str, dict[str, float | None]] = {domain: {} for domain in domains}
    for case in summary["metric_per_case"]:
        if (domain := case.get("domain")) in means:
            means[domain][case["case_id"]] = _shown(metric, _case_mean(case, metric))
    return [Box(domain, "k-ink", values) for domain, values in means.items()]


def _case_tables(summary: Mapping[str, Any], order: Sequence[tuple[str, float]]) -> list[Element]:
    """The worst and the best cases, and all of them to sort."""
    classes = summary["classes"] if len(summary["classes"]) > 1 else {}
    has_domains = any("domain" in case for case in summary["metric_per_case"])
    headings = [
        "Case",
        *(["Domain"] if has_domains else []),
        *(heading(metric, summary) for metric in SHOWN),
        *(f"Dice %, {name}" for name in classes.values()),
    ]
    rows = {}
    for case in summary["metric_per_case"]:
        means = [_cell(metric, _case_mean(case, metric)) for metric in SHOWN]
        by_class = [_cell("Dice", case["metrics"][label]["Dice"]) for label in classes]
        rows[case["case_id"]] = [
            case["case_id"],
            *([case.get("domain", "-")] if has_domains else []),
            *means,
            *by_class,
        ]
    ids = [case_id for case_id, _ in order]
    ids += [case_id for case_id in rows if case_id not in dict(order)]
    words = "All cases, the worst first; of each the mean over the classes"
    everything = table(words, headings, [rows[case_id] for case_id in ids], sortable=True)
    if len(ids) <= _MANY:
        return [everything]
    worst, best = [rows[case_id] for case_id in ids[:_FEW]], [rows[case_id] for case_id, _ in order[: -_FEW - 1 : -1]]
    return [
        table(f"The worst {_FEW}", headings, worst),
        table(f"The best {_FEW}", headings, best),
        node("details", node("summary", f"All {len(ids)} cases"), everything),
    ]


def _views(
    summary: Mapping[str, Any], order: Sequence[tuple[str, float]], case_of: Callable[[str], ShownCase]
) -> list[Element]:
    """Slices of the worst, the median and the best case with both outlines."""
    if not order:
        return [node("p", "No case has a score, so none is shown.")]
    chosen = {"Worst": 0, "Median": len(order) // 2, "Best": len(order) - 1}
    names = {place: word for word, place in reversed(chosen.items())}  # of fewer than three cases, each once
    class_names = list(summary["classes"].values())
    keys = [(f"k{index}", name) for index, name in enumerate(class_names, start=1)]
    switches = [
        node("label", node("input", type="checkbox", checked="checked", id=f"show-{kind}"), f" {kind} ({stroke})")
        for kind, stroke in (("prediction", "full line"), ("reference", "lighter dashes"))
    ]
    parts = [node("p", _ORIENTATION, class_="note"), legend(keys), node("fieldset", *switches, class_="switches")]
    for place in sorted(names):
        case_id, dice = order[place]
        parts.append(node("h3", f"{names[place]} case: {case_id}, Dice {percent(dice)}"))
        try:
            shown = case_of(case_id)
            parts.append(draw_case(shown, case_id, class_names))
            if shown.image is None:
                parts.append(node("p", "No scan of this case was found, so the outlines stand alone.", class_="note"))
        except SdmError as error:
            warn(f"{case_id} is not shown in {REPORT}: {error}")
            parts.append(node("p", "This case could not be read again, so it is not shown."))
    return [node("div", *parts, class_="overlays")]


def _rules(summary: Mapping[str, Any]) -> Element:
    terms = [part for name, rule in summary["rules"].items() for part in (node("dt", name), node("dd", rule))]
    return node("dl", *terms)
