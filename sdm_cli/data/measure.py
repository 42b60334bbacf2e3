"""From a folder of scans to its fingerprint.

One pass over the scans, shared out to processes: the headers of all, the voxels of all labeled ones, with their labels,
and of a few unlabeled ones; no file is read twice. What the pass keeps of a scan does not depend on the others, so the
same folder has the same fingerprint, whoever measures it. Knows files and arrays.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from sdm_cli.console import progress
from sdm_cli.data.cases import Case, is_nifti, stores_spacing
from sdm_cli.data.classes import FoundClasses, claimed_modality, find_classes, read_dataset_json
from sdm_cli.data.contents import voxels_by_value
from sdm_cli.data.domains import read_own_keys
from sdm_cli.data.fingerprint import FOREGROUND_PERCENTILES, Fingerprint, Foreground, ScanFacts
from sdm_cli.data.hounsfield import has_air, modality_of
from sdm_cli.data.limits import beyond_memory
from sdm_cli.data.readers import read_label_values, read_scan, unknown_values
from sdm_cli.data.volume import Array, Geometry, SliceAxis, read_nifti_geometry, slice_spacing_mm, to_slices
from sdm_cli.data_config import IGNORE, DataConfig
from sdm_cli.errors import ImageReadError
from sdm_cli.preset_files import data_config_from_dict

_UNLABELED_SAMPLE = 20
_VOXELS_PER_CASE = 10_000
_ANISOTROPIC = 2.0  # a spacing this many times the others' is that between slices
_AXES: tuple[SliceAxis, SliceAxis, SliceAxis] = ("sagittal", "coronal", "axial")  # along x, y, z


@dataclass(frozen=True, eq=False)
class Region:
    """A part of the voxels of a scan.

    Attributes:
        intensities: of at most `_VOXELS_PER_CASE` of them.
        box: (x, y, z), the size of their box in voxels of the file.
    """

    intensities: Array
    box: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """What is kept of one scan, whatever the classes and the slice axis of its folder turn out to be.

    Attributes:
        case_id: of the scan.
        problem: why it cannot be read; then nothing else is known.
        geometry: of its file.
        has_air: whether there is air as in CT; none where no voxel was read.
        counts: label value but 0 -> voxels.
        labeled: the voxels with a label but 0 and the ignorable value.
        ignorable: the voxels with that value, which may turn out to be a class.
    """

    case_id: str
    problem: str | None = None
    geometry: Geometry | None = None
    has_air: bool | None = None
    counts: dict[int, int] = field(default_factory=dict)
    labeled: Region | None = None
    ignorable: Region | None = None


# A case, and whether its voxels are read.
Task = tuple[Case, bool]


def take_fingerprint(
    folder: Path,
    cases: Sequence[Case],
    share_out: Callable[[Callable[[Task], CaseFacts], Sequence[Task]], Iterable[CaseFacts]] = map,
) -> Fingerprint:
    """Take the fingerprint of the scans of a folder.

    Args:
        folder: where a `dataset.json` may lie, which names classes, modality and slice axis.
        cases: the scans.
        share_out: as `map`, in any order: how the scans are shared out.

    Raises:
        ImageReadError: no scan can be read, or none of those with a label; `dataset.json` or the label values cannot
            be used.
        PresetError: the classes of `dataset.json` contradict each other.
    """
    dataset = read_dataset_json(folder)
    named = find_classes(dataset, ())
    measure = partial(measure_case, ignorable=named.ignore_value if named.values else IGNORE)
    found: dict[str, CaseFacts] = {}
    with progress("fingerprint", len(cases)) as bar:
        for facts in share_out(measure, _tasks(cases)):
            found[facts.case_id] = facts
            bar.advance()
    classes = find_classes(dataset, {value for facts in found.values() for value in facts.counts})
    settings = {"classes": classes.values, "ignore_value": classes.ignore_value}
    data = data_config_from_dict(settings, str(folder))
    measured = [(case, _with_known_values(found[case.case_id], case, data)) for case in cases]
    unusable = {case.case_id: facts.problem for case, facts in measured if facts.problem is not None}
    read = [facts for _, facts in measured if facts.has_air is not None]
    _require_readable(cases, unusable, len(read))
    located = [(case, facts.geometry) for case, facts in measured if facts.geometry is not None]
    slice_axis, axis_evidence = usual_slice_axis([geometry.affine for _, geometry in located])
    if named_axis := read_own_keys(folder).slice_axis:
        slice_axis, axis_evidence = named_axis, "named by dataset.json"
    modality, evidence = modality_of([facts.has_air is True for facts in read])
    return Fingerprint(
        scans=tuple(_scan_facts(case, geometry, slice_axis) for case, geometry in located),
        unusable=dict(sorted(unusable.items())),
        modality=modality,
        modality_evidence=evidence,
        slice_axis=slice_axis,
        slice_axis_evidence=axis_evidence,
        classes=classes,
        foreground=_foreground(read, classes, slice_axis),
        n_scans_read=len(read),
        modality_claim=claimed_modality(dataset),
    )


def measure_case(task: Task, ignorable: int | None) -> CaseFacts:
    """Read a scan, or its header alone, once; runs in a worker.

    Args:
        task: the case, and whether its voxels are read.
        ignorable: label value that may turn out to mark voxels to leave out.
    """
    case, is_read = task
    if case.problem is not None:
        return CaseFacts(case.case_id, case.problem)
    try:
        if not is_read:
            geometry = read_nifti_geometry(case.image_path, case.frame)
            return CaseFacts(case.case_id, geometry=replace(geometry, header=None))
        return _measure_voxels(case, ignorable)
    except ImageReadError as error:
        return CaseFacts(case.case_id, str(error))
    except MemoryError:
        return CaseFacts(case.case_id, beyond_memory(case.image_path))


def _measure_voxels(case: Case, ignorable: int | None) -> CaseFacts:
    volume = read_scan(case, DataConfig())
    geometry = replace(volume.geometry, header=None)
    facts = CaseFacts(case.case_id, geometry=geometry, has_air=has_air(volume.voxels))
    if case.label_path is None:
        return facts
    label = read_label_values(case, DataConfig(), volume.geometry)
    is_ignorable = label == ignorable if ignorable is not None else np.zeros(label.shape, bool)
    return replace(
        facts,
        counts=voxels_by_value(label) or {},
        labeled=_region(volume.voxels, (label != 0) & ~is_ignorable),
        ignorable=_region(volume.voxels, is_ignorable),
    )


def _region(voxels: Array, inside: Array) -> Region | None:
    if not inside.any():
        return None
    values = voxels[inside]
    occupied = [np.flatnonzero(inside.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    x, y, z = (int(indices[-1] - indices[0]) + 1 for indices in occupied)
    return Region(values[:: -(-len(values) // _VOXELS_PER_CASE)].copy(), (x, y, z))


def _tasks(cases: Sequence[Case]) -> list[Task]:
    """Voxels are read of labeled scans, of a few unlabeled ones, always the same, and where the header is not apart."""
    unlabeled = [case for case in cases if case.label_path is None]
    order = np.random.default_rng(0).permutation(len(unlabeled))[:_UNLABELED_SAMPLE]
    chosen = {unlabeled[index].case_id for index in order}
    return [
        (case, case.label_path is not None or case.case_id in chosen or not is_nifti(case.image_path)) for case in cases
    ]


def _with_known_values(facts: CaseFacts, case: Case, data: DataConfig) -> CaseFacts:
    """The facts, or the problem that the label has values which `dataset.json` does not name."""
    unknown = facts.counts.keys() - {*data.classes.values(), data.ignore_value}
    return CaseFacts(facts.case_id, unknown_values(case, unknown, data)) if unknown else facts


def _scan_facts(case: Case, geometry: Geometry, slice_axis: SliceAxis) -> ScanFacts:
    return ScanFacts(
        case.case_id,
        _slice_size(geometry.shape, geometry.affine, slice_axis),
        slice_spacing_mm(geometry.affine, slice_axis),
        case.label_path is not None,
        case.domain,
        stores_spacing(case.image_path),
    )


def _foreground(read: Sequence[CaseFacts], classes: FoundClasses, slice_axis: SliceAxis) -> Foreground | None:
    """Over the voxels of all classes; the ignorable value is one only where it is the only one."""
    intensities, boxes_mm = [], []
    volumes_ml: dict[str, list[float]] = {name: [] for name in classes.values}
    is_only_class = list(classes.values.values()) == [IGNORE]
    for facts in read:
        region = facts.ignorable if is_only_class and facts.labeled is None else facts.labeled
        if region is None or facts.geometry is None:
            continue
        affine = facts.geometry.affine
        _, height, width = _slice_size(region.box, affine, slice_axis)
        _, height_mm, width_mm = slice_spacing_mm(affine, slice_axis)
        boxes_mm.append((height * height_mm, width * width_mm))
        intensities.append(region.intensities)
        voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
        for name, value in classes.values.items():
            if value in facts.counts:
                volumes_ml[name].append(facts.counts[value] * voxel_ml)
    if not intensities:
        return None
    pooled = np.concatenate(intensities).astype(np.float64)
    low, high = np.percentile(pooled, FOREGROUND_PERCENTILES).tolist()
    height_mm, width_mm = np.max(boxes_mm, axis=0).tolist()
    return Foreground(
        low=low,
        high=high,
        mean=float(pooled.mean()),
        box_mm=(height_mm, width_mm),
        class_volumes_ml={name: float(np.median(volumes)) for name, volumes in volumes_ml.items() if volumes},
        class_cases={name: len(volumes) for name, volumes in volumes_ml.items()},
    )


def _require_readable(cases: Sequence[Case], unusable: Mapping[str, str], n_read: int) -> None:
    labeled = [case.case_id for case in cases if case.label_path is not None]
    if n_read and (not labeled or not unusable.keys() >= set(labeled)):
        return
    kind, failed = ("scans with a label", labeled) if n_read else ("scans", list(unusable))
    raise ImageReadError(f"None of the {len(failed)} {kind} can be read; the first: {unusable[failed[0]]}")


def usual_slice_axis(affines: Sequence[Array]) -> tuple[SliceAxis, str]:
    """The plane of the slices of scans without a preset, and why."""
    # "sagittal" keeps the canonical order x, y, z.
    spacing = np.median([slice_spacing_mm(affine, "sagittal") for affine in affines], axis=0)
    text = " x ".join(f"{mm:.3g}" for mm in spacing)
    coarsest = int(np.argmax(spacing))
    if spacing[coarsest] > _ANISOTROPIC * np.delete(spacing, coarsest).max():
        return _AXES[coarsest], f"across the coarsest spacing, of {text} mm (x, y, z)"
    return "axial", f"the usual one, since no spacing of {text} mm (x, y, z) is {_ANISOTROPIC:g} times the others"


def _slice_size(shape: tuple[int, int, int], affine: Array, slice_axis: SliceAxis) -> tuple[int, int, int]:
    without_memory = np.broadcast_to(np.uint8(0), shape)
    z, h, w = to_slices(without_memory, affine, slice_axis).shape
    return z, h, w
