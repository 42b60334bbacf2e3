"""The folder of repaired copies that `sdm check --repair` writes, in nnU-Net's raw layout.

Owns which case gets which repair, what is left out, and `repairs.json`, the record of both.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sdm_cli.console import progress
from sdm_cli.data.cases import Case
from sdm_cli.data.compare import classes_in_use, closed_gaps, value_of_mask
from sdm_cli.data.findings import Finding
from sdm_cli.data.health import CaseHealth
from sdm_cli.data.layouts.folders import LABELED, LABELS, UNLABELED
from sdm_cli.data.repair import Copy, Plan, copy_case
from sdm_cli.data_config import IGNORE, DataConfig
from sdm_cli.documents import parse_json, read_text
from sdm_cli.errors import OutputError
from sdm_cli.files import remove_leftovers, write_csv, write_json
from sdm_cli.runs.workers import in_processes

_RECORD = "repairs.json"


def refuse_output(output: Path, originals: Sequence[Path], overwrite: bool) -> None:
    """Stop before the work where copies would touch the originals, or files that are not copies.

    Raises:
        OutputError: the output is among the originals, or holds something.
    """
    target = output.resolve()
    for original in originals:
        source = original.resolve()
        if target == source or target in source.parents or source in target.parents:
            raise OutputError(f"{output} lies with the originals in {original}: choose another folder for --repair.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not (output / _RECORD).is_file():
            raise OutputError(f"{output} exists and holds no repaired copies: choose another folder for --repair.")
        if not overwrite:
            raise OutputError(f"{output} exists: replace the copies with --overwrite, or choose another folder.")


def write_repaired(
    output: Path,
    folder: Path,
    healths: Sequence[CaseHealth],
    findings: Sequence[Finding],
    data: DataConfig,
    workers: int,
) -> dict[str, Any]:
    """Copy every case that is sound or can safely be repaired.

    Args:
        output: folder that `refuse_output` has accepted.
        folder: of the originals, for `dataset.json` and the record.
        healths: all cases.
        findings: of all cases.
        data: classes, as they were known to the check.
        workers: processes.

    Returns:
        `folder`, `n_cases`, `left_out`: list of `case_id` and `reason`, and `domains`: the CSV of domains and
        patients, or null.

    Raises:
        OutputError: the output cannot be written.
    """
    left_out = _left_out(findings)
    new_values = _new_values(healths, findings, data)
    in_use = classes_in_use(healths, data)
    lost = {entry["case_id"] for entry in left_out}
    plans = [_plan(health, findings, new_values, in_use) for health in healths if health.case.case_id not in lost]
    _clear(output)
    record: dict[str, Any] = {"source": str(folder), "complete": False}
    write_json(output / _RECORD, record)  # first, so that a stopped run can be replaced
    copies = _copied(plans, output, data, workers)
    left_out += [{"case_id": copy.case_id, "reason": copy.failure} for copy in copies if copy.failure is not None]
    written = {copy.case_id: copy for copy in copies if copy.failure is None}
    done = [plan for plan in plans if plan.case.case_id in written]
    if data.classes and not data.background_values:
        dataset = _dataset(folder, data, new_values, written)
        write_json(output / "dataset.json", _with_names_of(dataset, [plan.case for plan in done]))
    domains = _write_domains(output / "domains.csv", [plan.case for plan in done])
    record |= {
        "complete": True,
        "label_values": {str(old): new for old, new in new_values.items()},
        "cases": {plan.case.case_id: _case_record(plan, written[plan.case.case_id]) for plan in done},
        "left_out": left_out,
    }
    write_json(output / _RECORD, record)
    return {"folder": str(output), "n_cases": len(written), "left_out": left_out, "domains": domains}


def _copied(plans: Sequence[Plan], output: Path, data: DataConfig, workers: int) -> list[Copy]:
    copies = []
    with progress("repair", len(plans)) as bar:
        for copy in in_processes(partial(copy_case, output=output, data=data), plans, workers):
            copies.append(copy)
            bar.advance()
    return copies


def _case_record(plan: Plan, copy: Copy) -> dict[str, Any]:
    return {
        "image": copy.image,
        "label": copy.label,
        "from": [str(path) for path in (plan.case.image_path, plan.case.label_path) if path is not None],
        "fixes": sorted(plan.fixes),
        "new_values": {str(old): new for old, new in plan.new_values.items()},
    }


def _left_out(findings: Sequence[Finding]) -> list[dict[str, str | None]]:
    """What blocks and cannot safely be repaired, and copies of other cases: one reason each."""
    reasons: dict[str, str | None] = {}
    strays = []
    for finding in findings:
        if finding.code == "label_without_image":
            strays.append({"case_id": None, "reason": finding.message})
        elif finding.case_id is not None and (
            finding.fix == "leave out" or (finding.severity == "blocks" and finding.fix is None)
        ):
            reasons.setdefault(finding.case_id, finding.message)
    return [*({"case_id": case_id, "reason": reason} for case_id, reason in sorted(reasons.items())), *strays]


def _new_values(healths: Sequence[CaseHealth], findings: Sequence[Finding], data: DataConfig) -> dict[int, int]:
    """Label value -> value in the copies, of the whole data set, where gaps are closed."""
    if all(finding.code != "gaps" for finding in findings):
        return {}
    return {old: new for old, new in closed_gaps(classes_in_use(healths, data), data).items() if old != new}


def _plan(
    health: CaseHealth, findings: Sequence[Finding], new_values: Mapping[int, int], in_use: Sequence[int]
) -> Plan:
    own = [finding for finding in findings if finding.case_id == health.case.case_id]
    fixes = frozenset(finding.fix for finding in own if finding.fix is not None)
    present = (health.label.voxels if health.label is not None else None) or {}
    values = {old: new for old, new in new_values.items() if old in present}
    if "value 255 to the class" in fixes:
        value = value_of_mask(in_use)
        values[IGNORE] = new_values.get(value, value)
    return Plan(health.case, fixes, values)


def _clear(output: Path) -> None:
    """Remove the copies of an earlier run."""
    for name in (LABELED, LABELS, UNLABELED):
        remove_leftovers(output / name)
        for path in (output / name).glob("*.nii.gz"):
            path.unlink()
    for name in ("dataset.json", "domains.csv"):
        (output / name).unlink(missing_ok=True)


def _dataset(
    folder: Path, data: DataConfig, new_values: Mapping[int, int], written: Mapping[str, Copy]
) -> dict[str, Any]:
    """The `dataset.json` of the originals, if there is one, with what has changed."""
    try:
        tree: dict[str, Any] = parse_json(read_text(folder / "dataset.json"))
    except (FileNotFoundError, NotADirectoryError):
        tree = {"name": folder.resolve().name}
    labels = {"background": 0} | {name: new_values.get(value, value) for name, value in data.classes.items()}
    if data.ignore_value is not None:
        labels["ignore"] = data.ignore_value
    n_labeled = sum(copy.label is not None for copy in written.values())
    kept = {key: value for key, value in tree.items() if key not in ("training", "test", "numTest")}  # MSD's lists
    return {**kept, "labels": labels, "numTraining": n_labeled, "file_ending": ".nii.gz"}


def _with_names_of(dataset: dict[str, Any], cases: Sequence[Case]) -> dict[str, Any]:
    """The same, whose own keys name the cases that there are, if they name any."""
    own = dataset.get("sdm")
    if not isinstance(own, dict):
        return dataset
    names = {
        "domains": {case.case_id: case.domain for case in cases if case.domain is not None},
        "patients": {case.case_id: case.patient for case in cases if case.patient is not None},
    }
    return {**dataset, "sdm": own | {key: those for key, those in names.items() if key in own}}


def _write_domains(path: Path, cases: Sequence[Case]) -> str | None:
    """Domains and patients of the copies, for `--domains`: nnU-Net's layout has no place for them."""
    if all(case.domain is None and case.patient is None for case in cases):
        return None
    rows = ((case.case_id, case.domain, case.patient) for case in cases)
    write_csv(path, ("case", "domain", "patient"), rows)
    return str(path)
