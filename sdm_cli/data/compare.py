"""What only all cases together show: duplicates, gaps and strange label values, outliers, missing domains."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import count

import numpy as np

from sdm_cli.data.cases import some, stores_spacing
from sdm_cli.data.contents import LARGEST_CLASS
from sdm_cli.data.findings import Finding, Severity
from sdm_cli.data.health import CaseHealth
from sdm_cli.data.hounsfield import AIR_BELOW_HU, contradicts, modality_of
from sdm_cli.data.limits import by
from sdm_cli.data.pixels import odd_pixels
from sdm_cli.data_config import IGNORE, DataConfig

_FEW = 4
"""Below this many cases there is no rule to be an outlier of."""

_SPACING_RATIO = 2.0
_MAJORITY = 0.75


def compare_cases(
    healths: Sequence[CaseHealth], data: DataConfig, is_preset: bool, modality_claim: str | None = None
) -> list[Finding]:
    """Findings of the whole data set.

    Args:
        healths: all cases.
        data: the classes that are known, by a preset or by `dataset.json`; none: what the labels hold.
        is_preset: label values are a preset's, which may leave gaps on purpose.
        modality_claim: what a `dataset.json` that is used calls the scans.
    """
    findings = [*_label_value_findings(healths, data), *_class_findings(healths, data, is_preset)]
    findings += [*_duplicates(healths), *_orientation_outliers(healths)]
    known = [health for health in healths if health.image is not None and health.image.spacing_mm is not None]
    odd = [known[i] for i in odd_pixels([health.image.pixel_mm for health in known if health.image is not None])]
    findings += [*map(_pixel_finding, odd), *_spacing_outliers([health for health in healths if health not in odd])]
    findings += [*_mixed_modalities(healths), *_disputed(healths, modality_claim), *_without_spacing(healths, data)]
    return [*findings, *_role_findings(healths, data), *_domain_findings(healths)]


def closed_gaps(values: Iterable[int], data: DataConfig) -> dict[int, int]:
    """Label value -> the value that it has once the gaps between the classes are closed.

    Values that stand for something else keep it: what is ignored, background, or an alias of another value.
    """
    taken = {data.ignore_value, *data.background_values, *data.value_aliases}
    free = (value for value in count(1) if value not in taken)
    return dict(zip(sorted(values), free, strict=False))


def value_of_mask(in_use: Sequence[int]) -> int:
    """What the 255 of a mask stands for, where there is one class."""
    return 1 if list(in_use) == [IGNORE] else in_use[0]


def classes_in_use(healths: Sequence[CaseHealth], data: DataConfig) -> list[int]:
    """Values of the classes: those of `data`, else those that the labels hold, without a 255 to ignore."""
    if data.classes:
        return sorted(data.classes.values())
    found = {value for health in healths for value in _values(health) if 0 < value <= LARGEST_CLASS}
    return sorted(found - {IGNORE}) or sorted(found)


def _values(health: CaseHealth) -> set[int]:
    """Label values but 0; none where there is no label that can be read."""
    return set(health.label.voxels or ()) if health.label is not None else set()


def _label_value_findings(healths: Sequence[CaseHealth], data: DataConfig) -> Iterable[Finding]:
    known = {*data.classes.values(), *data.background_values, *data.value_aliases, data.ignore_value}
    in_use = classes_in_use(healths, data)
    with_ignored = []
    for health in healths:
        values, path, case_id = _values(health), health.case.label_path, health.case.case_id
        if health.label is not None and health.label.voxels == {}:
            message = f"{path} is empty: all voxels are background."
            repair = "If the scan was never annotated, remove the label, and it counts as unlabeled."
            yield Finding("warns", "empty_label", case_id, message, repair)
        if values == {IGNORE} and IGNORE not in known:
            yield _mask_of_255(health, data, in_use)
        elif data.classes and (unknown := values - known):
            text = some([str(value) for value in sorted(unknown)])
            names = ", ".join(f"{value} {name}" for name, value in data.classes.items())
            message = f"{path} has label values {text} that are no class (classes: {names})."
            repair = "Name them in data.classes, data.background_values or data.ignore_value of a preset."
            yield Finding("blocks", "unknown_values", case_id, message, repair)
        elif unusable := [value for value in values if not 0 < value <= LARGEST_CLASS]:
            message = f"{path} has label values that no class can have ({some([str(value) for value in unusable])})."
            yield Finding("blocks", "unknown_values", case_id, message, "Check that the file is a label map.")
        elif not data.classes and IGNORE in values and values != {IGNORE}:
            with_ignored.append(str(path))
    if with_ignored:
        message = f"255 stands beside other values in {some(with_ignored)}, and is left out of losses and scores."
        repair = "Nothing has to be done if it marks voxels to leave out; else name it in data.classes of a preset."
        yield Finding("warns", "ignored_255", None, message, repair)


def _mask_of_255(health: CaseHealth, data: DataConfig, in_use: Sequence[int]) -> Finding:
    message = f"{health.case.label_path} is a mask of 0 and 255: 255 is its only foreground"
    # Where no class is named, 255 is the class if all labels are such masks, and left out beside other values.
    # Beside several classes nobody knows which it is, and what it does not mark would count as background of all.
    severity: Severity = "blocks" if data.classes or len(in_use) > 1 else "warns"
    is_left_out = not data.classes and list(in_use) != [IGNORE]
    message += ", left out of losses and scores beside the values of others." if is_left_out else "."
    if len(in_use) > 1:
        repair = "Say which class it is: the other labels have several."
        return Finding(severity, "mask_255", health.case.case_id, message, repair)
    repair = f"Replace 255 by {value_of_mask(in_use)}."
    return Finding(severity, "mask_255", health.case.case_id, message, repair, "value 255 to the class")


def _class_findings(healths: Sequence[CaseHealth], data: DataConfig, is_preset: bool) -> Iterable[Finding]:
    in_use = classes_in_use(healths, data)
    found = set().union(*(_values(health) for health in healths))
    closed = closed_gaps(in_use, data)
    moved = [f"{old} to {new}" for old, new in closed.items() if old != new]
    if found and not is_preset and in_use != [IGNORE] and moved:
        gaps = [str(value) for value in sorted(set(closed.values()) - set(in_use))]
        message = f"The label values {some([str(value) for value in in_use])} leave gaps ({some(gaps)})."
        repair = f"Close the gaps ({some(moved)}), or name the classes in a preset."
        yield Finding("warns", "gaps", None, message, repair)
    labels = [health.label for health in healths if health.label is not None]
    if labels and all(label.voxels == {} for label in labels):
        yield Finding("blocks", "no_foreground", None, "Every label is empty.", "Check that these are the label files.")
    if found and (absent := [name for name, value in data.classes.items() if value not in found]):
        message = f"No label has a voxel of {some(absent)}."
        yield Finding("warns", "absent_class", None, message, "Check the label values of the classes.")


def _duplicates(healths: Sequence[CaseHealth]) -> Iterable[Finding]:
    groups: dict[str, list[CaseHealth]] = {}
    for health in healths:
        if health.image is not None and all(finding.code != "constant" for finding in health.findings):
            groups.setdefault(health.image.digest, []).append(health)
    for group in groups.values():
        kept, *others = sorted(group, key=_worth)
        for other in others:
            case_id, message = other.case.case_id, f"{other.case.image_path} has the voxels of {kept.case.image_path}"
            if (kept.label is None) != (other.label is None):
                repair = "Keep the labeled one: one scan cannot be both labeled and unlabeled."
                message += ", which is labeled." if other.label is None else ", which has no label."
                yield Finding("blocks", "duplicate", case_id, message, repair, "leave out")
            elif kept.label is None or other.label is None or kept.label.digest == other.label.digest:
                repair = "Keep one of the two."
                yield Finding("warns", "duplicate", case_id, f"{message}.", repair, "leave out")
            else:
                for health in (kept, other):
                    text = f"{kept.case.case_id} and {other.case.case_id} are one scan with two different labels."
                    repair = "Decide which label is right, and remove the other case."
                    yield Finding("blocks", "duplicate", health.case.case_id, text, repair)


def _worth(health: CaseHealth) -> tuple[bool, bool, str]:
    """The best case first: one that can be used, then one with a label."""
    is_lost = any(finding.severity == "blocks" and finding.fix is None for finding in health.findings)
    return is_lost, health.label is None, health.case.case_id


def _pixel_finding(health: CaseHealth) -> Finding:
    pixel_mm = health.image.pixel_mm if health.image is not None else ()
    message = f"{health.case.image_path} has pixels of {by(f'{mm:.4g}' for mm in pixel_mm)} mm, which no scanner makes."
    return Finding("blocks", "pixel_size", health.case.case_id, message, "Write the true voxel size into the header.")


def _spacing_outliers(healths: Sequence[CaseHealth]) -> Iterable[Finding]:
    """Within its domain, where that is large enough to have a rule."""
    sizes = Counter(health.case.domain for health in healths if health.image is not None)
    groups: dict[str | None, list[CaseHealth]] = {}
    for health in healths:
        domain = health.case.domain
        groups.setdefault(domain if sizes[domain] >= _FEW else None, []).append(health)
    for group in groups.values():
        images = {health.case: health.image for health in group if health.image is not None}
        spacings = {case: image.spacing_mm for case, image in images.items() if image.spacing_mm is not None}
        if len(spacings) < _FEW:
            continue
        median = np.median(list(spacings.values()), axis=0)
        for case, spacing in spacings.items():
            ratio = np.max(np.maximum(spacing / median, median / spacing))
            if ratio > _SPACING_RATIO:
                message = (
                    f"{case.image_path} has a spacing of {millimetres(spacing)}, {ratio:.1f} times off the median "
                    f"({millimetres(median)})."
                )
                repair = "Check the header; if it is right, nothing has to be done."
                yield Finding("warns", "spacing_outlier", case.case_id, message, repair)


def millimetres(spacing_mm: Iterable[float]) -> str:
    """Voxel sizes in words."""
    return f"{by(f'{size:.3g}' for size in spacing_mm)} mm"


def _orientation_outliers(healths: Sequence[CaseHealth]) -> Iterable[Finding]:
    orientations = {health.case: health.image.orientation for health in healths if health.image is not None}
    if len(orientations) < _FEW:
        return
    usual, count = Counter(orientations.values()).most_common(1)[0]
    if count < _MAJORITY * len(orientations):
        return
    for case, orientation in orientations.items():
        if orientation != usual:
            message = f"{case.image_path} is stored as {orientation}, most others as {usual}."
            repair = "Scans are turned on reading; check only that the header of this one is right."
            yield Finding("warns", "orientation_outlier", case.case_id, message, repair)


def _mixed_modalities(healths: Sequence[CaseHealth]) -> Iterable[Finding]:
    """Scans with the air of CT beside scans without, in one domain or in none."""
    groups: dict[str | None, dict[bool, list[str]]] = {}
    for health in healths:
        if health.image is not None and health.image.intensity is not None:
            group = groups.setdefault(health.case.domain, {True: [], False: []})
            group[health.image.intensity.has_air].append(health.case.case_id)
    for domain, group in groups.items():
        few, many = sorted(group.values(), key=len)
        if few:
            hold = "hold" if len(few) > 1 else "holds"
            what = f"{hold} the air of CT" if few is group[True] else f"{hold} no air as CT does"
            where = "no domain tells them apart" if domain is None else f"all are of domain {domain}"
            message = f"{some(few)} {what} (below {AIR_BELOW_HU}), unlike {len(many)} others, and {where}."
            repair = "If CT and MR are mixed, name the modality of each case as its domain (--domains)."
            yield Finding("warns", "mixed_modalities", None, message, repair)


def _disputed(healths: Sequence[CaseHealth], claim: str | None) -> Iterable[Finding]:
    """The rule of `sdm preprocess`, but all scans are read here."""
    images = [health.image.intensity for health in healths if health.image is not None]
    have_air = [image.has_air for image in images if image is not None]
    modality, evidence = modality_of(have_air)
    if have_air and contradicts(claim, modality):
        message = f"dataset.json calls the scans {claim}, but {evidence}."
        repair = (
            "Correct dataset.json, or name the intensities in data.normalize of a preset; sdm preprocess scales each "
            "scan between its percentiles, which suits CT and others."
        )
        yield Finding("warns", "modality_claim", None, message, repair)


def _without_spacing(healths: Sequence[CaseHealth], data: DataConfig) -> Iterable[Finding]:
    files = [str(health.case.image_path) for health in healths if not stores_spacing(health.case.image_path)]
    if files and data.spacing_mm is None:
        message = f"No voxel size is stored in {some(files)}: 1 mm is assumed, for the volumes in ml too."
        yield Finding("warns", "no_spacing", None, message, "Name the voxel size in data.spacing_mm of a preset.")


def _role_findings(healths: Sequence[CaseHealth], data: DataConfig) -> Iterable[Finding]:
    n_labeled = sum(health.case.label_path is not None for health in healths)
    if n_labeled == 0:
        message = "No scan has a label."
        yield Finding("blocks", "no_label", None, message, "Add label files of the same names (--labels FOLDER).")
    elif n_labeled == len(healths) and data.split is None:
        message = "Every scan has a label: without a split none is unlabeled."
        repair = (
            "Add scans without a label, or list some as unlabeled in a split, once there is a store: sdm split --store "
            "STORE --labeled N -o FILE."
        )
        yield Finding("blocks", "no_unlabeled", None, message, repair)


def _domain_findings(healths: Sequence[CaseHealth]) -> Iterable[Finding]:
    without = [health.case.case_id for health in healths if health.case.domain is None]
    if without and len(without) < len(healths):
        message = f"{some(without)} {'have' if len(without) > 1 else 'has'} no domain, unlike the others."
        yield Finding("warns", "no_domain", None, message, "Name the domain of each case in the CSV (--domains).")
