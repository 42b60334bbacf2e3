"""From scored cases to the files of an evaluation: `summary.json` and `per_case.csv`.

Owns the form of the results, with the keys of nnU-Net's summary. Knows no model and no store.
Dice, IoU (the Jaccard index) and NSD are 0 to 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdm_cli.data_config import LABELS_TOUCHED
from sdm_cli.errors import OutputError, SomeCasesFailed
from sdm_cli.files import write_csv, write_json
from sdm_cli.runs.html_page import REPORT
from sdm_cli.runs.metrics import ClassCounts, ClassScore, Measure, PooledCounts, mean_defined

_VOLUMES = ("volume_difference_ml", "volume_difference_percent")
METRICS = ("Dice", "IoU", "HD95", "ASD", "NSD", *_VOLUMES)
"""Scores of a class in a case, by their names in `summary.json`."""

_COUNTS = ("TP", "FP", "FN", "TN", "n_pred", "n_ref")
_NO_VOXELS = ClassCounts(0, 0, 0, 0)
SUMMARY, _PER_CASE = "summary.json", "per_case.csv"
_RULES = {
    "volume": "each score is of one class in one whole volume; means are over cases, then over foreground classes",
    "absent from both": "undefined (null): not in any mean, left out of n_defined",
    "missed": "in the reference only: Dice, IoU and NSD 0, HD95 and ASD undefined, volume difference -100 %; counted "
    "in n_missed",
    "invented": "in the prediction only: Dice, IoU and NSD 0, HD95, ASD and volume_difference_percent undefined; "
    "counted in n_invented",
    "missing prediction": "listed in missing_predictions and scored as an empty mask",
    "failed": "cases that could not be read or compared: listed in failed, in no number",
    "ignored": "voxels that the reference ignores count nowhere",
    "IoU": "the Jaccard index",
    "surface": "voxels of a class that have one of six neighbours outside of it; distances are between voxel centres",
    "HD95": "95th percentile of the surface distances of both directions pooled (as medpy)",
    "ASD": "mean surface distance from the prediction to the reference, directed (as medpy)",
    "NSD": "surface Dice (Nikolov et al.): share of the surface voxels of both sides within `tolerance` of the other "
    "side, each voxel counted once, whatever its area; the tolerance is in the unit of the distances",
    "volume difference": "prediction minus reference, in ml and in percent of the reference",
    "worst_domain": "the one with the lowest mean Dice, of the classes that its cases have; null where not two domains "
    "have one",
    "std": "over cases, population form (divided by n); null where fewer than two have a score",
    "pooled": "the authors' validation figure: voxels of all cases summed, one IoU a class; Dice = 2 IoU / (1 + IoU)",
}


@dataclass(frozen=True)
class ScoredCase:
    """One case with its scores, foreground classes in order.

    Attributes:
        case_id: name of the case.
        scores: one a foreground class, with its voxels.
        domain: scanner, vendor or modality, where known.
        files: `reference_file` and `prediction_file` where masks on disk were scored; `resampled` where that was done.
    """

    case_id: str
    scores: tuple[ClassScore, ...]
    domain: str | None = None
    files: Mapping[str, str | bool | None] | None = None


def summarize(
    cases: Sequence[ScoredCase], failed: Mapping[str, str], classes: Mapping[str, int], measure: Measure
) -> dict[str, Any]:
    """Put the scores of some cases together, as JSON types.

    Args:
        cases: those that could be scored.
        failed: case id -> reason, of the cases that could not be scored.
        classes: foreground class name -> label value, in class order.
        measure: of the distances.

    Returns:
        nnU-Net's `metric_per_case`, `mean` (per label value) and `foreground_mean`, with the other METRICS,
        deviations, numbers of defined values, `pooled`, `per_domain` and `worst_domain` (both only where a domain is
        known), `failed`, unit and rules.

    Raises:
        SomeCasesFailed: there is no case to put together.
    """
    if not cases:
        raise SomeCasesFailed(
            f"None of the {len(failed)} cases could be scored ({', '.join(failed)}): repair them as the warnings say "
            "and run again."
        )
    labels = [str(value) for value in classes.values()]
    per_domain = _per_domain(cases, labels)
    return {
        "n_cases": len(cases),
        "failed": [{"case_id": case_id, "reason": reason} for case_id, reason in failed.items()],
        "classes": dict(zip(labels, classes, strict=True)),
        "unit": measure.unit,
        "tolerance": measure.tolerance,
        "foreground_mean": _foreground_mean(cases),
        "mean": _class_means(cases, labels),
        "pooled": _pooled(cases, labels),
        **({"per_domain": per_domain, "worst_domain": _worst(per_domain)} if per_domain else {}),
        "metric_per_case": [
            {"case_id": case.case_id}
            | ({} if case.domain is None else {"domain": case.domain})
            | dict(case.files or {})
            | {"metrics": {label: _entry(score) for label, score in zip(labels, case.scores, strict=True)}}
            for case in cases
        ],
        "rules": dict(_RULES),
    }


def _per_domain(cases: Sequence[ScoredCase], labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    domains = sorted({case.domain for case in cases if case.domain is not None})
    groups = {domain: [case for case in cases if case.domain == domain] for domain in domains}
    return {
        domain: {
            "n_cases": len(group),
            "foreground_mean": _foreground_mean(group),
            "mean": _class_means(group, labels),
        }
        for domain, group in groups.items()
    }


def _worst(per_domain: Mapping[str, Any]) -> str | None:
    """The domain with the lowest mean Dice; None where there are not two to compare."""
    dice = {name: group["foreground_mean"]["Dice"] for name, group in per_domain.items()}
    defined = {name: value for name, value in dice.items() if value is not None}
    return min(defined, key=lambda name: defined[name]) if len(defined) > 1 else None


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """Stop before the work when a result would be replaced unasked; raises OutputError."""
    present = [name for name in (SUMMARY, _PER_CASE, REPORT) if (folder / name).exists()]
    if present and not overwrite:
        raise OutputError(
            f"{folder / present[0]} holds the results of an earlier evaluation: replace them with --overwrite, or "
            "choose another folder with -o."
        )


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json` and `per_case.csv`, each whole or not at all; raises OutputError."""
    unit = summary["unit"]
    surfaces = (f"hd95_{unit}", f"asd_{unit}", f"nsd_{summary['tolerance']:g}_{unit}")
    columns = ("case", "domain", "class", "label", "dice", "jaccard", *surfaces, *_VOLUMES, *_COUNTS)
    write_json(folder / SUMMARY, summary)
    write_csv(folder / _PER_CASE, columns, _rows(summary))


def require_all_scored(summary: Mapping[str, Any]) -> None:
    """Raise SomeCasesFailed if the summary lacks cases, once it has been written and shown."""
    if failed := [failure["case_id"] for failure in summary["failed"]]:
        raise SomeCasesFailed(
            f"{len(failed)} of {len(failed) + summary['n_cases']} cases could not be scored ({', '.join(failed)}), the "
            "scores are those of the others: repair them as the warnings say and run again with --overwrite."
        )


def _entry(score: ClassScore) -> dict[str, float | int | None]:
    counts = score.counts
    volumes = (score.volume_difference_ml, counts.volume_difference_percent)
    scores = (counts.dice, counts.jaccard, score.hd95, score.asd, score.nsd, *volumes)
    numbers = (counts.true_positive, counts.false_positive, counts.false_negative, counts.true_negative)
    sizes = (counts.n_pred, counts.n_ref)
    return dict(zip((*METRICS, *_COUNTS), (*scores, *numbers, *sizes), strict=True))


def _class_means(cases: Sequence[ScoredCase], labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    means = {}
    for index, label in enumerate(labels):
        counts = [case.scores[index].counts for case in cases]
        entries = [_entry(case.scores[index]) for case in cases]
        columns = {key: [entry[key] for entry in entries] for key in (*METRICS, *_COUNTS)}
        means[label] = {
            **{key: mean_defined(values) for key, values in columns.items()},
            "std": {key: _std_defined(columns[key]) for key in METRICS},
            "n_defined": {key: sum(value is not None for value in columns[key]) for key in METRICS},
            "n_missed": sum(count.is_missed for count in counts),
            "n_invented": sum(count.is_invented for count in counts),
        }
    return means


def _foreground_mean(cases: Sequence[ScoredCase]) -> dict[str, Any]:
    """Mean of the class means, as nnU-Net; the deviation is that of the cases' own foreground means."""
    by_class = [[_entry(case.scores[index]) for case in cases] for index in range(len(cases[0].scores))]
    means = {
        key: mean_defined(mean_defined(entry[key] for entry in entries) for entries in by_class)
        for key in (*METRICS, *_COUNTS)
    }
    deviations = {
        key: _std_defined([mean_defined(_entry(score)[key] for score in case.scores) for case in cases])
        for key in METRICS
    }
    return {**means, "std": deviations}


def _pooled(cases: Sequence[ScoredCase], labels: Sequence[str]) -> dict[str, Any]:
    pooled = PooledCounts(1 + len(labels))
    for case in cases:
        pooled.add([_NO_VOXELS, *(score.counts for score in case.scores)])  # the background is in no pooled figure
    per_class = zip(labels, pooled.dice()[1:], pooled.iou()[1:], strict=True)
    return {
        "pooled_dice": pooled.mean_dice(),
        "pooled_iou": pooled.mean_iou(),
        "per_class": {label: {"pooled_dice": dice, "pooled_iou": iou} for label, dice, iou in per_class},
    }


def _std_defined(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.std(defined)) if len(defined) > 1 else None


def _rows(summary: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Of `per_case.csv`: one for each class of each case."""
    for case in summary["metric_per_case"]:
        for label, entry in case["metrics"].items():
            values = (entry[key] for key in (*METRICS, *_COUNTS))
            yield case["case_id"], case.get("domain"), summary["classes"][label], label, *values


def protocol_remarks(protocol: Mapping[str, Any]) -> list[str]:
    """Sentences that must stand below scores of a protocol."""
    remarks = []
    if protocol["reported_cases_chose_checkpoint"]:
        remarks.append("The checkpoint was chosen on the very cases reported here.")
    if protocol["preprocessing"] == LABELS_TOUCHED:
        remarks.append(f"Mind that {LABELS_TOUCHED}.")
    return [*remarks, f"Scored on {protocol['grid']}."]
