"""The scores of an evaluation as a person reads them: a table, and what must be known of it below.

Shares are percent here, 0 to 1 in the files.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sdm_cli.console import print_result, print_table
from sdm_cli.data.cases import counted, some
from sdm_cli.files import json_text
from sdm_cli.runs.summary import protocol_remarks

_UNIT_NAMES = {"mm": "mm", "voxel": "voxels"}  # as they stand in headings


class Shown(NamedTuple):
    """A metric as people read it.

    Attributes:
        name: in words.
        unit: after its numbers; None: that of the distances.
        scale: factor from the files to what is shown.
        top: end of its axis; None: open.
    """

    name: str
    unit: str | None = None
    scale: float = 1
    top: float | None = None


SHOWN = {
    "Dice": Shown("Dice", "%", 100, 100),
    "IoU": Shown("Jaccard", "%", 100, 100),
    "NSD": Shown("NSD", "%", 100, 100),
    "HD95": Shown("HD95"),
    "ASD": Shown("ASD"),
    "volume_difference_percent": Shown("Volume difference", "%"),
}
"""Metrics of tables and reports in their order, by their names in `summary.json`."""


def show_summary(summary: Mapping[str, Any], as_json: bool = False) -> None:
    """Print the result on stdout: the table, or all of `summary.json`."""
    if as_json:
        print_result(json_text(summary))
        return
    from rich.table import Table

    table = Table(title=_title(summary), title_justify="left", caption=_caption(summary), caption_justify="left")
    table.add_column("")
    for words in (*(heading(metric, summary) for metric in SHOWN), "cases", "missed", "invented"):
        table.add_column(words, justify="right")
    for label, name in summary["classes"].items():
        entry = summary["mean"][label]
        counts = (entry["n_defined"]["Dice"], entry["n_missed"], entry["n_invented"])
        table.add_row(name, *_cells(entry), *(str(count) for count in counts))
    table.add_section()
    table.add_row("mean", *_cells(summary["foreground_mean"]), str(summary["n_cases"]), style="bold")
    per_domain = summary.get("per_domain", {})
    for domain, group in per_domain.items() if len(per_domain) > 1 else ():
        mark = " (lowest Dice)" if domain == summary["worst_domain"] else ""
        table.add_row(f"  {domain}{mark}", *_cells(group["foreground_mean"]), str(group["n_cases"]))
    pooled = summary["pooled"]
    table.add_row("pooled", _number(pooled["pooled_dice"], 100), _number(pooled["pooled_iou"], 100))
    print_table(table)


def heading(metric: str, summary: Mapping[str, Any]) -> str:
    """Name and unit of a metric of SHOWN in a summary or a comparison; of NSD also its tolerance."""
    within = f" {tolerance_of(summary)}" if metric == "NSD" else ""
    return f"{SHOWN[metric].name}{within} {unit_of(metric, summary)}"


def tolerance_of(summary: Mapping[str, Any]) -> str:
    """Tolerance of NSD with its unit."""
    unit = summary["unit"]
    return f"{summary['tolerance']:g} {unit if summary['tolerance'] == 1 else _UNIT_NAMES[unit]}"


def unit_of(metric: str, summary: Mapping[str, Any]) -> str:
    """What stands after the numbers of a metric of SHOWN."""
    return SHOWN[metric].unit or _UNIT_NAMES[summary["unit"]]


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
        f"NSD: share of the surface voxels of both sides within {tolerance_of(summary)} of the other; volume "
        "difference: prediction minus reference.",
    ]
    if missing := summary.get("missing_predictions"):
        sentences.append(f"Without a mask, scored as empty: {some(missing)}.")
    if resampled := [case["case_id"] for case in summary["metric_per_case"] if case.get("resampled")]:
        sentences.append(f"Resampled from another grid to that of the label: {some(resampled)}.")
    return " ".join([*sentences, *(protocol_remarks(summary["protocol"]) if "protocol" in summary else ())])


def _cells(entry: Mapping[str, Any]) -> list[str]:
    cells = []
    for key, shown in SHOWN.items():
        deviation = entry["std"][key]
        spread = "" if deviation is None else f" +- {_number(deviation, shown.scale)}"
        cells.append(f"{_number(entry[key], shown.scale)}{spread}")
    return cells


def _number(value: float | None, scale: float) -> str:
    return "-" if value is None else f"{scale * value:.2f}"
