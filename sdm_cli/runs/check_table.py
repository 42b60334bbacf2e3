"""The report of `sdm check` as tables that fit a terminal of 100 columns, or as JSON."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdm_cli.console import print_result, print_table
from sdm_cli.data.cases import counted
from sdm_cli.data.limits import by
from sdm_cli.files import json_text

if TYPE_CHECKING:
    from rich.table import Table

_MOST_CASES = 20
_LONG_NUMBER = 1e10
_MOST_ALIKE = 5
"""Findings of one kind that are listed; --json lists all."""


def show_check(report: Mapping[str, Any], as_json: bool = False) -> None:
    """Print the report on stdout."""
    if as_json:
        print_result(json_text(report))
        return
    print_table(_overview(report))
    print_table(_domains(report["domains"]))
    if report["classes"]:
        print_table(_classes(report["classes"]))
    print_table(_cases(report))
    if report["findings"]:
        print_table(_findings(report))
    print_result(_verdict(report))


def _table(title: str, columns: Sequence[str], n_left: int) -> "Table":
    """An empty table; columns after the first `n_left` are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(columns):
        table.add_column(heading, justify="left" if i < n_left else "right", overflow="fold")
    return table


def _overview(report: Mapping[str, Any]) -> "Table":
    scans = counted(report["n_cases"], "scan")
    title = f"{scans} in {report['folder']}: {report['n_labeled']} labeled, {report['n_unlabeled']} not"
    table = _table(title, ("", "median", "smallest", "largest"), 2)
    for name, key, digits in (("shape (R, A, S)", "shapes", 0), ("spacing mm (R, A, S)", "spacing_mm", 3)):
        if (spread := report[key]) is not None:
            table.add_row(name, *(_rounded(spread[rule], digits) for rule in ("median", "min", "max")))
    if (anisotropy := report["anisotropy"]) is not None:
        table.add_row("longest : shortest side", f"{anisotropy['median']:.1f}", "", f"{anisotropy['max']:.1f}")
    for name, key in (("stored as", "orientations"), ("voxel type", "dtypes"), ("label type", "label_dtypes")):
        table.add_row(name, ", ".join(f"{word} {count}" for word, count in report[key].items()) or "-")
    return table


def _domains(domains: Sequence[Mapping[str, Any]]) -> "Table":
    columns = ("domain", "scans", "labeled", "lowest", "p0.5", "median", "p99.5", "highest", "mean")
    from rich.text import Text

    table = _table("Intensity", columns, 1)
    unnamed = "all" if len(domains) == 1 else "none"
    for entry in domains:
        intensity = entry["intensity"] or {}
        numbers = [_number(intensity.get(key)) for key in ("min", "p0.5", "median", "p99.5", "max", "mean")]
        counts = (str(entry["n_cases"]), str(entry["n_labeled"]))
        table.add_row(Text(entry["domain"] or unnamed), *counts, *numbers)
    return table


def _classes(classes: Sequence[Mapping[str, Any]]) -> "Table":
    from rich.text import Text

    table = _table("Classes", ("class", "value", "in cases", "median ml", "smallest", "largest"), 1)
    for entry in classes:
        volume_ml = entry["volume_ml"] or {}
        numbers = [_number(volume_ml.get(key)) for key in ("median", "min", "max")]
        table.add_row(Text(entry["name"] or "-"), str(entry["value"]), str(entry["n_cases"]), *numbers)
    return table


def _cases(report: Mapping[str, Any]) -> "Table":
    """The cases with findings first."""
    from rich.text import Text

    named = {finding["case_id"] for finding in report["findings"]}
    cases = sorted(report["cases"], key=lambda case: case["case_id"] not in named)
    title = "Cases"
    if len(cases) > _MOST_CASES:
        title += f" (the first {_MOST_CASES}; --json lists all {len(cases)})"
    has_domains = any(case["domain"] is not None for case in cases)
    columns = ("case", "domain", "shape", "spacing mm", "axes", "p0.5 .. p99.5", "label ml")
    table = _table(title, [name for name in columns if has_domains or name != "domain"], 5 if has_domains else 4)
    for case in cases[:_MOST_CASES]:
        intensity, volumes_ml = case["intensity"], case["label_volumes_ml"]
        table.add_row(
            Text(case["case_id"]),
            *([Text(case["domain"] or "-")] if has_domains else []),
            "unreadable" if case["shape"] is None else _rounded(case["shape"], 0),
            _spacing(case),
            case["orientation"] or "-",
            "-" if intensity is None else f"{_number(intensity['p0.5'])} .. {_number(intensity['p99.5'])}",
            "-" if volumes_ml is None else _number(sum(volumes_ml.values())),
        )
    return table


def _spacing(case: Mapping[str, Any]) -> str:
    if case["spacing_mm"] is None:
        return "-" if case["shape"] is None else "unknown"
    return _rounded(case["spacing_mm"], 3)


def _findings(report: Mapping[str, Any]) -> "Table":
    from rich.text import Text

    folder = f"{report['folder'].rstrip('/')}/"
    table = _table("Findings", ("", "case", "what is wrong, and what to do"), 3)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for finding in report["findings"]:
        groups.setdefault(finding["code"], []).append(finding)
    for group in groups.values():
        for finding in group[:_MOST_ALIKE]:
            style = "bold red" if finding["severity"] == "blocks" else "yellow"
            mark = " (--repair does this)" if finding["fix"] is not None else ""
            if finding["fix"] is None and finding["severity"] == "blocks" and finding["case_id"] is not None:
                mark = " (a person must decide: --repair leaves the case out)"
            words = Text(finding["message"].replace(folder, ""))
            words.append(f" {finding['repair'].rstrip('.')}{mark}.", style="dim")
            table.add_row(Text(finding["severity"], style=style), Text(finding["case_id"] or "all"), words)
        if len(group) > _MOST_ALIKE:
            others = [finding["case_id"] for finding in group[_MOST_ALIKE:]]
            table.add_row("", "", Text(f"and {len(others)} more like this ({', '.join(others[:5])}, ...)", style="dim"))
    return table


def _verdict(report: Mapping[str, Any]) -> str:
    n_blocks, n_warns = report["n_blocks"], report["n_warns"]
    words = f"{'Nothing blocks' if n_blocks == 0 else f'{n_blocks} to repair before'} training"
    words += f", {n_warns} to look at." if n_warns else "."
    lines = [words, f"Picture: {report['picture']}"]
    if (repaired := report["repaired"]) is not None:
        lines.append(
            f"Repaired copies of {counted(repaired['n_cases'], 'scan')}: {repaired['folder']} (see repairs.json)"
        )
        if repaired["domains"]:
            lines.append(f"  their domains and patients: sdm preprocess --domains {repaired['domains']}")
        lines += [f"  left out: {entry['case_id'] or 'label'}: {entry['reason']}" for entry in repaired["left_out"]]
    return "\n".join(lines)


def _rounded(sizes: Iterable[float], digits: int) -> str:
    """`digits` are significant ones; 0 stands for whole numbers."""
    return by(f"{size:.{digits}g}" if digits else f"{size:.0f}" for size in sizes)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    is_short = abs(value) < _LONG_NUMBER and (abs(value) >= 1000 or value == round(value))
    return f"{value:.0f}" if is_short else f"{value:.3g}"
