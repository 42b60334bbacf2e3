"""The scores of an evaluation as a person reads them: a table, and what must be known of it below.

Shares are percent here, 0 to 1 in the files.
"""

from collections.abc import Mapping
from typing import Any

from sdm_cli.console import print_result, print_table
from sdm_cli.data.cases import counted, some
from sdm_cli.runs.summary import protocol_remarks, to_json

UNIT_NAMES = {"mm": "mm", "voxel": "voxels"}
"""Units of distances as they stand in headings."""

SCALES = {"Dice": 100, "IoU": 100, "NSD": 100, "HD95": 1, "ASD": 1, "volume_difference_percent": 1}
"""Metrics of the tables in their order, with the factor to what is printed."""


def show_summary(summary: Mapping[str, Any], as_json: bool = False) -> None:
    """Print the result on stdout: the table, or all of `summary.json`."""
    if as_json:
        print_result(to_json(summary).rstrip())
        return
    from rich.table import Table

    table = Table(title=_title(summary), title_justify="left", caption=_caption(summary), caption_justify="left")
    table.add_column("")
    for heading in (*headings(summary["unit"], summary["tolerance"]), "cases", "missed", "invented"):
        table.add_column(heading, justify="right")
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


def headings(unit: str, tolerance: float) -> tuple[str, ...]:
    """Of the columns of SCALES."""
    name = UNIT_NAMES[unit]
    return ("Dice %", "Jaccard %", f"NSD {tolerance:g} {name} %", f"HD95 {name}", f"ASD {name}", "volume %")


def _title(summary: Mapping[str, Any]) -> str:
    if "split" not in summary:
        return f"{counted(summary['n_cases'], 'case')}, masks as given"
    from sdm_cli.method.card import choice  # torch, which scoring masks on disk does not need

    split, protocol = summary["split"], summary["protocol"]
    n_cases = counted(summary["n_cases"], f"{split['role']} case")
    return (
        f"{protocol['preset']}: {n_cases} of split {split['name']} ({split['hash']}), "
        f"protocol {protocol['name']}, {choice(protocol['checkpoint_chosen_on'])}"
    )


def _caption(summary: Mapping[str, Any]) -> str:
    sentences = [
        "Per volume, mean +- standard deviation over the cases that have a score.",
        "A structure that is missed or invented scores Dice, Jaccard and NSD 0 and has no distance; one that neither "
        "side has counts nowhere.",
        f"NSD: share of the surface voxels of both sides within {summary['tolerance']:g} {UNIT_NAMES[summary['unit']]} "
        "of the other; volume: prediction minus reference.",
    ]
    if missing := summary.get("missing_predictions"):
        sentences.append(f"Without a mask, scored as empty: {some(missing)}.")
    if resampled := [case["case_id"] for case in summary["metric_per_case"] if case.get("resampled")]:
        sentences.append(f"Resampled from another grid to that of the label: {some(resampled)}.")
    return " ".join([*sentences, *(protocol_remarks(summary["protocol"]) if "protocol" in summary else ())])


def _cells(entry: Mapping[str, Any]) -> list[str]:
    return [
        "-" if entry[key] is None else f"{_number(entry[key], scale)} +- {_number(entry['std'][key], scale)}"
        for key, scale in SCALES.items()
    ]


def _number(value: float | None, scale: float) -> str:
    return "-" if value is None else f"{scale * value:.2f}"
