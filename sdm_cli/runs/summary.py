"""From scored cases to what a person reads: `summary.json`, `per_case.csv` and a table.

Owns the form of the results, with the keys of nnU-Net's summary. Knows no model and no store.
Dice and IoU (the Jaccard index) are 0 to 1 in the files and percent in the table.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sdm_cli.console import print_result, print_table
from sdm_cli.data.cases import counted
from sdm_cli.errors import OutputError, SomeCasesFailed
from sdm_cli.files import replacing
from sdm_cli.method.card import choice
from sdm_cli.runs.html_page import REPORT
from sdm_cli.runs.metrics import ClassScore, PooledCounts, mean_defined
from sdm_cli.runs.provenance import LABELS_TOUCHED

Unit = Literal["mm", "voxel"]

_METRICS = ("Dice", "IoU", "HD95", "ASD")
_COUNTS = ("TP", "FP", "FN", "TN", "n_pred", "n_ref")
_SUMMARY, _PER_CASE = "summary.json", "per_case.csv"
_RULES = {
    "volume": "each score is of one class in one whole volume; means are over cases, then over foreground classes",
    "absent from both": "undefined (null): not in any mean, left out of n_defined",
    "missed": "in the reference only: Dice and IoU 0, HD95 and ASD undefined, counted in n_missed",
    "invented": "in the prediction only: Dice and IoU 0, HD95 and ASD undefined, counted in n_invented",
    "missing prediction": "listed in missing_predictions and scored as an empty mask",
    "failed": "cases that could not be read or compared: listed in failed, in no number",
    "ignored": "voxels that the reference ignores count nowhere",
    "IoU": "the Jaccard index",
    "HD95": "95th percentile of the surface distances of both directions pooled (medpy)",
    "ASD": "mean surface distance from the prediction to the reference, directed (medpy)",
    "std": "over cases, population form (divided by n)",
    "pooled": "the authors' validation figure: voxels of all cases summed, one IoU a class; Dice = 2 IoU / (1 + IoU)",
}


@dataclass(frozen=True)
class ScoredCase:
    """One case with its scores, foreground classes in order.

    Attributes:
        case_id: name of the case.
        scores: one a foreground class.
        domain: scanner, vendor or modality, where known.
        files: `reference_file` and `prediction_file` where masks on disk were scored.
    """

    case_id: str
    scores: tuple[ClassScore, ...]
    domain: str | None = None
    files: Mapping[str, str | None] | None = None


def summarize(
    cases: Sequence[ScoredCase],
    classes: Mapping[str, int],
    pooled: PooledCounts,
    unit: Unit,
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """Put the scores of some cases together, as JSON types.

    Args:
        cases: those that could be scored.
        classes: foreground class name -> label value, in class order.
        pooled: counts of the same cases.
        unit: of HD95 and ASD.
        failed: case id -> reason, of the cases that could not be scored.

    Returns:
        nnU-Net's `metric_per_case`, `mean` (per label value) and `foreground_mean`, with HD95, ASD,
        deviations, numbers of defined values, `pooled`, `per_domain` and `worst_domain` (by mean Dice; both only
        where a domain is known), `failed`, unit and rules.

    Raises:
        SomeCasesFailed: there is no case to put together.
    """
    if not cases:
        raise SomeCasesFailed(
            f"None of the {len(failed)} cases could be scored ({', '.join(failed)}): repair them as the warnings say "
            "and run again."
        )
    labels = [str(value) for value in classes.values()]
    domains = sorted({case.domain for case in cases if case.domain is not None})
    summary: dict[str, Any] = {
        "n_cases": len(cases),
        "failed": [{"case_id": case_id, "reason": reason} for case_id, reason in failed.items()],
        "classes": dict(zip(labels, classes, strict=True)),
        "unit": unit,
        "foreground_mean": _foreground_mean(cases),
        "mean": _class_means(cases, labels),
        "pooled": _pooled(pooled, labels),
    }
    if domains:
        groups = {domain: [case for case in cases if case.domain == domain] for domain in domains}
        summary["per_domain"] = {
            domain: {
                "n_cases": len(group),
                "foreground_mean": _foreground_mean(group),
                "mean": _class_means(group, labels),
            }
            for domain, group in groups.items()
        }
        summary["worst_domain"] = _worst(summary["per_domain"])
    summary["metric_per_case"] = [
        {"case_id": case.case_id}
        | ({} if case.domain is None else {"domain": case.domain})
        | dict(case.files or {})
        | {"metrics": {label: _entry(score) for label, score in zip(labels, case.scores, strict=True)}}
        for case in cases
    ]
    summary["rules"] = dict(_RULES)
    return summary


def _worst(per_domain: Mapping[str, Any]) -> str | None:
    """The domain of the lowest mean Dice; None where there are not two to compare."""
    dice = {name: group["foreground_mean"]["Dice"] for name, group in per_domain.items()}
    defined = {name: value for name, value in dice.items() if value is not None}
    return min(defined, key=lambda name: defined[name]) if len(defined) > 1 else None


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """Stop before the work when a result would be replaced unasked; raises OutputError."""
    present = [name for name in (_SUMMARY, _PER_CASE, REPORT) if (folder / name).exists()]
    if present and not overwrite:
        raise OutputError(
            f"{folder / present[0]} holds the results of an earlier evaluation: replace them with --overwrite, or "
            "choose another folder with -o."
        )


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json` and `per_case.csv`, each whole or not at all; raises OutputError."""
    with replacing(folder / _PER_CASE) as temporary:
        temporary.write_text(_per_case_csv(summary), encoding="utf-8")
    with replacing(folder / _SUMMARY) as temporary:
        temporary.write_text(_to_json(summary), encoding="utf-8")


def require_all_scored(summary: Mapping[str, Any]) -> None:
    """Raise SomeCasesFailed if the summary lacks cases, once it has been written and shown."""
    if failed := [failure["case_id"] for failure in summary["failed"]]:
        raise SomeCasesFailed(
            f"{len(failed)} of {len(failed) + summary['n_cases']} cases could not be scored ({', '.join(failed)}), the "
            "scores are those of the others: repair them as the warnings say and run again with --overwrite."
        )


def show_summary(summary: Mapping[str, Any], as_json: bool = False) -> None:
    """Print the result on stdout: the table, or all of `summary.json`."""
    if as_json:
        print_result(_to_json(summary).rstrip())
        return
    from rich.table import Table

    unit = {"mm": "mm", "voxel": "voxels"}[summary["unit"]]
    table = Table(title=_title(summary), title_justify="left", caption=_caption(summary), caption_justify="left")
    table.add_column("")
    for heading in ("Dice %", "Jaccard %", f"HD95 {unit}", f"ASD {unit}", "cases", "missed", "invented"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, name in summary["classes"].items():
        entry = summary["mean"][label]
        counts = (entry["n_defined"]["Dice"], entry["n_missed"], entry["n_invented"])
        table.add_row(name, *_cells(entry), *(str(count) for count in counts))
    table.add_section()
    table.add_row("mean", *_cells(summary["foreground_mean"]), str(summary["n_cases"]), style="bold")
    per_domain = summary.get("per_domain", {})
    for domain, group in per_domain.items() if len(per_domain) > 1 else ():
        mark = " (worst)" if domain == summary["worst_domain"] else ""
        table.add_row(f"  {domain}{mark}", *_cells(group["foreground_mean"]), str(group["n_cases"]))
    pooled = summary["pooled"]
    table.add_row("pooled", _number(pooled["pooled_dice"], 100), _number(pooled["pooled_iou"], 100))
    print_table(table)


def _entry(score: ClassScore) -> dict[str, float | int | None]:
    counts = score.counts
    scores = (counts.dice, counts.jaccard, score.hd95, score.asd)
    numbers = (counts.true_positive, counts.false_positive, counts.false_negative, counts.true_negative)
    sizes = (counts.n_pred, counts.n_ref)
    return dict(zip((*_METRICS, *_COUNTS), (*scores, *numbers, *sizes), strict=True))


def _class_means(cases: Sequence[ScoredCase], labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    means = {}
    for index, label in enumerate(labels):
        counts = [case.scores[index].counts for case in cases]
        entries = [_entry(case.scores[index]) for case in cases]
        columns = {key: [entry[key] for entry in entries] for key in (*_METRICS, *_COUNTS)}
        means[label] = {
            **{key: mean_defined(values) for key, values in columns.items()},
            "std": {key: _std_defined(columns[key]) for key in _METRICS},
            "n_defined": {key: sum(value is not None for value in columns[key]) for key in _METRICS},
            "n_missed": sum(count.is_missed for count in counts),
            "n_invented": sum(count.is_invented for count in counts),
        }
    return means


def _foreground_mean(cases: Sequence[ScoredCase]) -> dict[str, Any]:
    """Mean of the class means, as nnU-Net; the deviation is that of the cases' own foreground means."""
    by_class = [[_entry(case.scores[index]) for case in cases] for index in range(len(cases[0].scores))]
    means = {
        key: mean_defined(mean_defined(entry[key] for entry in entries) for entries in by_class)
        for key in (*_METRICS, *_COUNTS)
    }
    deviations = {
        key: _std_defined([mean_defined(_entry(score)[key] for score in case.scores) for case in cases])
        for key in _METRICS
    }
    return {**means, "std": deviations}


def _pooled(pooled: PooledCounts, labels: Sequence[str]) -> dict[str, Any]:
    per_class = zip(labels, pooled.dice()[1:], pooled.iou()[1:], strict=True)
    return {
        "pooled_dice": pooled.mean_dice(),
        "pooled_iou": pooled.mean_iou(),
        "per_class": {label: {"pooled_dice": dice, "pooled_iou": iou} for label, dice, iou in per_class},
    }


def _std_defined(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.std(defined)) if defined else None


def _to_json(summary: Mapping[str, Any]) -> str:
    return json.dumps(summary, indent=2, allow_nan=False) + "\n"


def _per_case_csv(summary: Mapping[str, Any]) -> str:
    unit = summary["unit"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case", "domain", "class", "label", "dice", "jaccard", f"hd95_{unit}", f"asd_{unit}", *_COUNTS))
    for case in summary["metric_per_case"]:
        for label, entry in case["metrics"].items():
            values = ("" if entry[key] is None else entry[key] for key in (*_METRICS, *_COUNTS))
            writer.writerow((case["case_id"], case.get("domain", ""), summary["classes"][label], label, *values))
    return text.getvalue()


def _title(summary: Mapping[str, Any]) -> str:
    if "split" not in summary:
        return f"{counted(summary['n_cases'], 'case')}, masks as given"
    split, protocol = summary["split"], summary["protocol"]
    n_cases = counted(summary["n_cases"], f"{split['role']} case")
    return (
        f"{protocol['preset']}: {n_cases} of split {split['name']} ({split['hash']}), "
        f"protocol {protocol['name']}, {choice(protocol['checkpoint_chosen_on'])}"
    )


def _caption(summary: Mapping[str, Any]) -> str:
    words = (
        "Per volume, mean +- standard deviation over the cases that have the class. Missed and invented structures "
        "score Dice 0 and have no distance."
    )
    return " ".join([words, *(protocol_remarks(summary["protocol"]) if "protocol" in summary else ())])


def protocol_remarks(protocol: Mapping[str, Any]) -> list[str]:
    """Sentences that must stand below scores of a protocol."""
    remarks = []
    if protocol["reported_cases_chose_checkpoint"]:
        remarks.append("The checkpoint was chosen on the very cases reported here.")
    if protocol["preprocessing"] == LABELS_TOUCHED:
        remarks.append(f"Mind that {LABELS_TOUCHED}.")
    return [*remarks, f"Scored on {protocol['grid']}."]


def _cells(entry: Mapping[str, Any]) -> list[str]:
    scales = {"Dice": 100, "IoU": 100, "HD95": 1, "ASD": 1}
    return [
        "-" if entry[key] is None else f"{_number(entry[key], scale)} +- {_number(entry['std'][key], scale)}"
        for key, scale in scales.items()
    ]


def _number(value: float | None, scale: float) -> str:
    return "-" if value is None else f"{scale * value:.2f}"
