"""`sdm evaluate --compare`: two evaluations that exist, case by case.

Reads their `summary.json` alone: no mask, no model. What a difference, its interval and its p are is in `gain`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdm_cli.console import print_result, print_table, say, warn
from sdm_cli.data.cases import counted, some
from sdm_cli.documents import parse_json, read_text
from sdm_cli.errors import OutputError, SdmError
from sdm_cli.files import json_text, write_csv, write_json
from sdm_cli.runs.gain import (
    BOOTSTRAP,
    FEWEST_DIFFERENCES,
    WILCOXON,
    common_cases,
    metric_of_cases,
    paired_difference,
)
from sdm_cli.runs.score_table import SHOWN, heading, tolerance_of

COMPARED = ("Dice", "NSD", "HD95", "ASD")
"""Metrics that are compared; Jaccard ranks as Dice does."""

_JSON, _CSV = "comparison.json", "comparison.csv"
_SAME = ("classes", "unit", "tolerance")
_RULES = {
    "difference": "first minus second, of the same case and class; a class counts in a case where both have a score",
    "mean": "over cases, then over classes; its p is that of the cases' means over their classes",
    "distances": "a structure that either side misses has none, so it is in no difference of HD95 and ASD: see Dice",
    "wilcoxon": WILCOXON,
    "p_holm": "p, corrected for the number of classes by Holm's steps, each metric by itself; that of the mean is not",
}


def compare_evaluations(
    first: Path, second: Path, role: str = "test", output: Path | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Compare two evaluations on the cases that both scored.

    Args:
        first: a folder with `summary.json`, or a run that `sdm evaluate` has scored.
        second: the other one.
        role: of the cases, for runs.
        output: folder of `comparison.json` and `comparison.csv`; none: `against-<name of the second>` in the folder of
            the first evaluation.
        overwrite: replace files that exist.

    Returns:
        The comparison, as written.

    Raises:
        SdmError: an evaluation is missing or damaged, they are of other classes, or of another unit or tolerance, or
            they share no case.
        OutputError: the files exist or cannot be written.
    """
    folders = [_evaluation(path, role) for path in (first, second)]
    folder = output or folders[0] / f"against-{_name(second)}"
    if (folder / _JSON).exists() and not overwrite:
        raise OutputError(
            f"{folder / _JSON} holds an earlier comparison: replace it with --overwrite, or choose another folder "
            "with -o."
        )
    ours, theirs, case_ids = read_comparable(folders)
    names = list(ours["classes"].values())
    tables = {metric: [metric_of_cases(side, case_ids, metric) for side in (ours, theirs)] for metric in COMPARED}
    entries = {metric: paired_difference(*pair) for metric, pair in tables.items()}
    comparison = {
        **{name: {"path": str(path), **_identity(side)} for name, path, side in _sides(folders, ours, theirs)},
        "n_cases": len(case_ids),
        "only_in_first": _others(ours, case_ids),
        "only_in_second": _others(theirs, case_ids),
        **{key: ours[key] for key in _SAME},
        "remarks": _remarks(ours, theirs, case_ids),
        "metrics": {
            metric: {"mean": of_metric[-1], "per_class": dict(zip(names, of_metric, strict=False))}
            for metric, of_metric in entries.items()
        },
        "per_case": _per_case(tables, case_ids, names),
        "bootstrap": BOOTSTRAP,
        "rules": dict(_RULES),
    }
    write_csv(folder / _CSV, ("case", "class", "metric", "first", "second", "difference"), _rows(comparison))
    write_json(folder / _JSON, comparison)
    say(f"The comparison: {folder / _JSON} and {folder / _CSV}")
    return comparison


def read_comparable(folders: Sequence[Path]) -> tuple[Mapping[str, Any], Mapping[str, Any], list[str]]:
    """Two summaries and the ids of the cases that both scored.

    Raises:
        SdmError: one is missing or damaged, they scored otherwise, or share no case.
    """
    ours, theirs = (_read(folder) for folder in folders)
    for key in _SAME:
        if ours[key] != theirs[key]:
            raise SdmError(
                f"{folders[0]} and {folders[1]} cannot be compared ({key}: {_words(ours[key])} and "
                f"{_words(theirs[key])}): evaluate both with the same preset, --unit and --tolerance."
            )
    case_ids = common_cases([ours, theirs])
    if not case_ids:
        raise SdmError(
            f"{folders[0]} and {folders[1]} share no case ({_cases(ours)}; {_cases(theirs)}): evaluate both on the "
            "same cases."
        )
    return ours, theirs, case_ids


def show_comparison(comparison: Mapping[str, Any], as_json: bool = False) -> None:
    """Print the comparison on stdout: a table, or all of `comparison.json`; and its remarks as warnings."""
    for remark in comparison["remarks"]:
        warn(remark)
    if as_json:
        print_result(json_text(comparison))
        return
    from rich.table import Table

    confidence = f"{100 * comparison['bootstrap']['confidence']:g} %"
    title = (
        f"{counted(comparison['n_cases'], 'case')} in both. First: {comparison['first']['path']}, second: "
        f"{comparison['second']['path']}"
    )
    table = Table(title=title, title_justify="left", caption=_caption(comparison), caption_justify="left")
    table.add_column("")
    for words in ("first", "second", f"difference [{confidence}]", "p", "p (Holm)", "cases"):
        table.add_column(words, justify="right")
    for metric in COMPARED:
        table.add_row(heading(metric, comparison), style="bold")
        of_metric = comparison["metrics"][metric]
        for name, entry in (*of_metric["per_class"].items(), ("mean", of_metric["mean"])):
            table.add_row(f"  {name}", *_cells(entry, SHOWN[metric].scale), str(entry["n_cases"]))
        table.add_section()
    print_table(table)


def _evaluation(path: Path, role: str) -> Path:
    """The folder of `summary.json`: the path itself, or that of a role of a run."""
    for folder in (path, path / "evaluation" / role):
        if (folder / "summary.json").is_file():
            return folder
    if not path.exists():
        raise SdmError(f"{path} does not exist: name two runs or two folders with a summary.json.")
    raise SdmError(
        f"{path} has no summary.json, neither itself nor in evaluation/{role}: score it first with sdm evaluate "
        f"(of a run: sdm evaluate {path} --split {role})."
    )


def _name(path: Path) -> str:
    return path.absolute().name


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    try:
        summary: dict[str, Any] = parse_json(read_text(path))
        is_whole = _is_whole(summary)
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError):
        is_whole = False
    if not is_whole:
        raise SdmError(f"{path} is missing, damaged or of an earlier version: evaluate again with --overwrite.")
    return summary


def _is_whole(summary: Mapping[str, Any]) -> bool:
    """Whether all is there that is compared; what is no summary at all may raise."""
    cases = summary["metric_per_case"]
    entries = [case["metrics"][label] for case in cases for label in summary["classes"]]
    scores = [entry[key] for entry in entries for key in (*COMPARED, "n_ref")]
    return (
        {*_SAME} <= summary.keys()
        and all(isinstance(name, str) for name in summary["classes"].values())
        and isinstance(summary["unit"], str)
        and math.isfinite(summary["tolerance"])
        and all(isinstance(summary.get(section, {}), dict) for section in ("split", "protocol"))
        and all(isinstance(case["case_id"], str) for case in cases)
        and all(score is None or math.isfinite(score) for score in scores)
    )


def _sides(
    folders: Sequence[Path], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> list[tuple[str, Path, Mapping[str, Any]]]:
    return list(zip(("first", "second"), folders, (ours, theirs), strict=True))


def _identity(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What was scored, as far as the summary tells."""
    facts = {key: summary[key] for key in ("model", "weights_sha256", "predictions", "protocol") if key in summary}
    split = summary.get("split")
    return {**facts, **({"split": {key: split.get(key) for key in ("name", "role", "hash")}} if split else {})}


def _remarks(ours: Mapping[str, Any], theirs: Mapping[str, Any], case_ids: Sequence[str]) -> list[str]:
    """What makes the numbers less comparable than they look."""
    remarks = []
    for section, key in (("split", "hash"), ("protocol", "name")):
        values = [side.get(section, {}).get(key) for side in (ours, theirs)]
        if values[0] != values[1] and None not in values:
            remarks.append(f"They are of different {section}s: {values[0]} and {values[1]}.")
    sizes = [metric_of_cases(side, case_ids, "n_ref") for side in (ours, theirs)]
    differing = [case_id for case_id, *pair in zip(case_ids, *sizes, strict=True) if not np.array_equal(*pair)]
    if differing:
        remarks.append(f"The labels that they were scored against differ in {some(differing)}.")
    left_out = [*_others(ours, case_ids), *_others(theirs, case_ids)]
    if left_out:
        remarks.append(f"Scored by one of them only, and left out: {some(left_out)}.")
    return remarks


def _others(summary: Mapping[str, Any], case_ids: Sequence[str]) -> list[str]:
    return [case["case_id"] for case in summary["metric_per_case"] if case["case_id"] not in case_ids]


def _cases(summary: Mapping[str, Any]) -> str:
    return some([case["case_id"] for case in summary["metric_per_case"]])


def _words(value: Any) -> str:
    return ", ".join(f"{label} {name}" for label, name in value.items()) if isinstance(value, dict) else str(value)


def _per_case(tables: Mapping[str, Any], case_ids: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
    """One entry a case: by class and metric the first, the second and their difference."""

    def entry(row: int, column: int, metric: str) -> dict[str, float | None]:
        first, second = (None if np.isnan(side[row, column]) else float(side[row, column]) for side in tables[metric])
        difference = None if first is None or second is None else first - second
        return {"first": first, "second": second, "difference": difference}

    return [
        {
            "case_id": case_id,
            "classes": {
                name: {metric: entry(row, column, metric) for metric in tables} for column, name in enumerate(names)
            },
        }
        for row, case_id in enumerate(case_ids)
    ]


def _rows(comparison: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Of `comparison.csv`: one for each metric of each class of each case."""
    for case in comparison["per_case"]:
        for name, of_class in case["classes"].items():
            for metric, entry in of_class.items():
                yield case["case_id"], name, metric, *entry.values()


def _cells(entry: Mapping[str, Any], scale: float) -> list[str]:
    first, second = ("-" if entry[side] is None else f"{scale * entry[side]:.2f}" for side in ("first", "second"))
    difference = "-" if entry["difference"] is None else f"{scale * entry['difference']:+.2f}"
    if entry["low"] is not None:
        difference += f" [{scale * entry['low']:.2f}, {scale * entry['high']:.2f}]"
    return [first, second, difference, *("-" if entry[key] is None else f"{entry[key]:.3g}" for key in ("p", "p_holm"))]


def _caption(comparison: Mapping[str, Any]) -> str:
    sentences = [
        "Difference: first minus second, paired by case; higher is better for Dice and NSD, lower for HD95 and ASD.",
        "First and second are means over the cases that have the score on both sides, so either may differ from its "
        "own evaluation.",
        f"NSD within {tolerance_of(comparison)}.",
        "A missed structure counts 0 in Dice and NSD and is in no distance.",
        f"p: Wilcoxon's signed-rank test, - with fewer than {FEWEST_DIFFERENCES} differences that are not zero; "
        "(Holm): corrected for the number of classes, that of the mean never is.",
    ]
    return " ".join([*sentences, *comparison["remarks"]])
