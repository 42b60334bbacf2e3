"""The health of a data set, before a GPU hour is spent.

Owns the order of the work and the form of the report, which `sdm check --json` prints. Its keys:

- `folder`, `n_cases`, `n_labeled` (with a label file), `n_unlabeled`, `n_blocks` and `n_warns` (findings);
- `findings`: list of `severity` (`blocks` or `warns`), `code`, `case_id` (null: the data set), `message`, `repair`, and
  `fix`, what `--repair` does to the copy (null: nothing);
- `shapes`, `spacing_mm`: `min`, `median`, `max` along left-right, back-front, feet-head; `anisotropy` (median and
  largest ratio of the longest to the shortest side of a voxel); `orientations`, `dtypes`, `label_dtypes`: counts;
- `domains`: list of `domain` (null: none), `n_cases`, `n_labeled`, `intensity` (`min`, `p0.5`, `median`, `p99.5`,
  `max`, `mean`; percentiles give each case the same weight);
- `classes`: list of `name` (null: not known), `value`, `n_cases`, `volume_ml` (`min`, `median`, `max` where present);
- `cases`: list of `case_id`, `domain`, `image`, `label`, `shape` (axes of the file), `spacing_mm`, `orientation`,
  `dtype`, `intensity`, `label_dtype`, `label_volumes_ml` (by label value); null where it could not be read,
  and the spacing where no file stores it;
- `picture`: path of the PNG, or null; `repaired`: null, or `folder`, `n_cases`, `left_out` (`case_id`, `reason`) and
  `domains` (CSV of the domains and patients of the copies; null: there are none).
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sdm_cli.config import Preset
from sdm_cli.console import progress, say
from sdm_cli.data.cases import Case, what_was_found
from sdm_cli.data.classes import claimed_modality, find_classes, read_dataset_json
from sdm_cli.data.compare import classes_in_use, compare_cases
from sdm_cli.data.contents import Intensity
from sdm_cli.data.domains import assign_domains, name_cases, read_own_keys
from sdm_cli.data.findings import Finding, from_error
from sdm_cli.data.health import CaseHealth, examine
from sdm_cli.data.layouts import find_cases
from sdm_cli.data.measure import usual_slice_axis
from sdm_cli.data.readers import read_geometry
from sdm_cli.data.volume import SliceAxis
from sdm_cli.data_config import DataConfig
from sdm_cli.errors import DataCheckFailed, ImageReadError, OutputError
from sdm_cli.runs.check_picture import MOST_SLICES, draw_check, require_replaceable
from sdm_cli.runs.repaired import refuse_output, write_repaired
from sdm_cli.runs.workers import in_processes

_PICTURE = "check.png"


def check(
    folder: Path,
    labels: Path | None = None,
    preset: Preset | None = None,
    domains: Path | None = None,
    picture: Path | None = None,
    repair: Path | None = None,
    workers: int = 1,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Read every scan of a folder once and report what it holds and what is wrong.

    Args:
        folder: scans, in one of the layouts of `sdm_cli.data.layouts`; never written to.
        labels: folder of labels, if the layout has none of its own.
        preset: says which label value is which class; without one `dataset.json` does, if there is one.
        domains: CSV of the columns `case,domain` and perhaps `patient`.
        picture: PNG to draw, or the folder of `check.png`; none: the working folder, or the nearest one above it that
            holds no scans and labels of this data set.
        repair: folder of repaired copies; none: no copies.
        workers: processes.
        overwrite: replace repaired copies of an earlier run, and a file that stands in the place of the picture; an
            older picture of `sdm check` is replaced anyway.

    Returns:
        The report, as JSON types; its keys stand in the docstring of the module.

    Raises:
        ImageReadError: there is nothing to read.
        OutputError: the picture or the copies cannot be written, would lie among scans or labels, or replace
            something unasked.
    """
    if repair is not None:
        refuse_output(repair, [folder, *([labels] if labels is not None else [])], overwrite)
    path = _picture_path(picture, [place for place in (folder, labels) if place is not None])
    require_replaceable(path, overwrite)
    strays: list[Path] = []
    cases = find_cases(folder, labels, preset.data.layout if preset else "auto", strays=strays)
    say(what_was_found(folder, cases))
    cases, domain_findings = _with_domains(cases, folder, domains)
    data, claim, data_findings = (preset.data, None, []) if preset else _known_data(folder, cases)
    healths, drawn = _examine_all(cases, data, workers)
    findings = [*map(_stray_finding, strays), *dict.fromkeys([*domain_findings, *data_findings])]
    findings += [finding for health in healths for finding in health.findings]
    findings += compare_cases(healths, data, is_preset=preset is not None, modality_claim=claim)
    findings.sort(key=lambda finding: (finding.severity, finding.code, finding.case_id or ""))
    report = _report(folder, healths, findings, data)
    draw_check(path, folder.resolve().name, healths, drawn, findings, data)
    report["picture"] = str(path)
    if repair is not None:
        report["repaired"] = write_repaired(repair, folder, healths, findings, data, workers)
    return report


def require_healthy(report: Mapping[str, Any]) -> None:
    """Raise DataCheckFailed if a finding blocks training, once the report has been shown."""
    if report["n_blocks"]:
        n_blocks, repaired = report["n_blocks"], report["repaired"]
        remedy = "repair what is listed as blocking"
        if repaired is not None and repaired["n_cases"]:
            remedy = f"go on with the repaired copies in {repaired['folder']}"
            if repaired["domains"]:
                remedy += f" and --domains {repaired['domains']}"
            if repaired["left_out"]:
                remedy += f" (repairs.json names the {len(repaired['left_out'])} left out)"
        elif any(finding["severity"] == "blocks" and finding["fix"] is not None for finding in report["findings"]):
            remedy += ", or write repaired copies with --repair OUT"
        raise DataCheckFailed(
            f"{n_blocks} finding{' blocks' if n_blocks == 1 else 's block'} training on {report['folder']}: {remedy}."
        )


def _stray_finding(label: Path) -> Finding:
    message = f"{label} has no image of the same name."
    return Finding("blocks", "label_without_image", None, message, "Rename or remove the label.")


def _with_domains(cases: list[Case], folder: Path, table: Path | None) -> tuple[list[Case], list[Finding]]:
    findings = []
    try:
        cases = name_cases(cases, folder)
    except ImageReadError as error:
        findings.append(from_error("dataset_json", None, error))
    try:
        return cases if table is None else assign_domains(cases, table), findings
    except ImageReadError as error:
        return cases, [*findings, from_error("domain_table", None, error)]


def _known_data(folder: Path, cases: Sequence[Case]) -> tuple[DataConfig, str | None, list[Finding]]:
    """What `dataset.json` says: slice axis (else the usual), classes (else the labels say what there is), modality."""
    data = DataConfig(slice_axis=_usual_axis(cases))
    try:
        data = dataclasses.replace(data, slice_axis=read_own_keys(folder).slice_axis or data.slice_axis)
        dataset = read_dataset_json(folder)
        found = find_classes(dataset, [])
        data = dataclasses.replace(data, classes=found.values, ignore_value=found.ignore_value)
        return data, claimed_modality(dataset), []
    except ImageReadError as error:
        return data, None, [from_error("dataset_json", None, error)]


def _usual_axis(cases: Sequence[Case]) -> SliceAxis:
    """By the rule of `sdm preprocess`, which leaves out also what only the voxels show to be unusable."""
    affines = []
    for case in cases:
        with suppress(ImageReadError):  # a finding, once the case is examined
            affines.append(read_geometry(case, DataConfig()).affine)
    return usual_slice_axis(affines)[0] if affines else "axial"


def _picture_path(picture: Path | None, originals: Sequence[Path]) -> Path:
    """Raises OutputError for another format, and for a place among scans or labels."""
    taken = {original.resolve() for original in originals if original.is_dir()}
    if picture is None:
        here = Path.cwd()
        place = next((place for place in (here, *here.parents) if not taken & {place, *place.parents}), here)
        return Path(_PICTURE) if place == here else place / _PICTURE
    path = picture if picture.suffix.lower() == ".png" else picture / _PICTURE
    if path != picture and picture.suffix and not picture.is_dir():
        raise OutputError(f"{picture}: the picture is a PNG: give a name that ends in .png, or a folder that exists.")
    if inside := taken & {*path.resolve().parents}:
        raise OutputError(f"{path} lies among the originals in {inside.pop()}: choose another place for it with -o.")
    return path


def _examine_all(cases: Sequence[Case], data: DataConfig, workers: int) -> tuple[list[CaseHealth], list[CaseHealth]]:
    """Every case in the order of ids, without its slice; and the few to draw, with it."""
    healths: list[CaseHealth] = []
    drawn: list[CaseHealth] = []
    with progress("check", len(cases)) as bar:
        for health in in_processes(partial(examine, data=data), cases, workers):
            healths.append(dataclasses.replace(health, thumbnail=None))
            drawn = sorted([*drawn, health], key=_dullness)[:MOST_SLICES]
            bar.advance()
    return sorted(healths, key=lambda health: health.case.case_id), drawn


def _dullness(health: CaseHealth) -> tuple[bool, bool, bool, str]:
    """What is wrong is drawn first, then what has a label."""
    return health.thumbnail is None, not health.findings, health.case.label_path is None, health.case.case_id


def _report(
    folder: Path, healths: Sequence[CaseHealth], findings: Sequence[Finding], data: DataConfig
) -> dict[str, Any]:
    images = [health.image for health in healths if health.image is not None]
    severities = Counter(finding.severity for finding in findings)
    n_labeled = sum(health.case.label_path is not None for health in healths)
    spacings = [image.spacing_mm for image in images if image.spacing_mm is not None]
    ratios = [max(spacing) / min(spacing) for spacing in spacings]
    return {
        "folder": str(folder),
        "n_cases": len(healths),
        "n_labeled": n_labeled,
        "n_unlabeled": len(healths) - n_labeled,
        "n_blocks": severities["blocks"],
        "n_warns": severities["warns"],
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "shapes": _range_of([image.shape_ras for image in images]),
        "spacing_mm": _range_of(spacings),
        "anisotropy": {"median": float(np.median(ratios)), "max": max(ratios)} if ratios else None,
        "orientations": _counts(image.orientation for image in images),
        "dtypes": _counts(image.dtype for image in images),
        "label_dtypes": _counts(health.label.dtype for health in healths if health.label is not None),
        "domains": _domains(healths),
        "classes": _classes(healths, data),
        "cases": [_case(health) for health in healths],
        "picture": None,
        "repaired": None,
    }


def _range_of(rows: Sequence[Sequence[float]]) -> dict[str, list[float]] | None:
    if not rows:
        return None
    return {
        name: rule(rows, axis=0).tolist() for name, rule in (("min", np.min), ("median", np.median), ("max", np.max))
    }


def _counts(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _domains(healths: Sequence[CaseHealth]) -> list[dict[str, Any]]:
    names = sorted({health.case.domain for health in healths}, key=lambda name: (name is None, name))
    groups = {name: [health for health in healths if health.case.domain == name] for name in names}
    return [
        {
            "domain": name,
            "n_cases": len(group),
            "n_labeled": sum(health.case.label_path is not None for health in group),
            "intensity": _intensity([health.image.intensity for health in group if health.image is not None]),
        }
        for name, group in groups.items()
    ]


def _intensity(scans: Sequence[Intensity | None]) -> dict[str, float] | None:
    known = [scan for scan in scans if scan is not None]
    if not known:
        return None
    low, median, high = np.quantile(np.concatenate([scan.quantiles for scan in known]), (0.005, 0.5, 0.995)).tolist()
    return {
        "min": min(scan.minimum for scan in known),
        "p0.5": low,
        "median": median,
        "p99.5": high,
        "max": max(scan.maximum for scan in known),
        "mean": float(np.mean([scan.mean for scan in known])),
    }


def _classes(healths: Sequence[CaseHealth], data: DataConfig) -> list[dict[str, Any]]:
    names = {value: name for name, value in data.classes.items()}
    rows = []
    for value in classes_in_use(healths, data):
        volumes = [ml for health in healths if (ml := _volumes_ml(health).get(value)) is not None]
        spread = {"min": min(volumes), "median": float(np.median(volumes)), "max": max(volumes)} if volumes else None
        rows.append({"name": names.get(value), "value": value, "n_cases": len(volumes), "volume_ml": spread})
    return rows


def _volumes_ml(health: CaseHealth) -> dict[int, float]:
    if health.label is None or health.label.voxels is None:
        return {}
    return {value: count * health.label.voxel_ml for value, count in health.label.voxels.items()}


def _case(health: CaseHealth) -> dict[str, Any]:
    case, image, label = health.case, health.image, health.label
    has_volumes = label is not None and label.voxels is not None
    return {
        "case_id": case.case_id,
        "domain": case.domain,
        "image": str(case.image_path),
        "label": None if case.label_path is None else str(case.label_path),
        "shape": None if image is None else list(image.shape),
        "spacing_mm": None if image is None or image.spacing_mm is None else list(image.spacing_mm),
        "orientation": None if image is None else image.orientation,
        "dtype": None if image is None else image.dtype,
        "intensity": None if image is None else _intensity([image.intensity]),
        "label_dtype": None if label is None else label.dtype,
        "label_volumes_ml": {str(k): v for k, v in _volumes_ml(health).items()} if has_volumes else None,
    }
