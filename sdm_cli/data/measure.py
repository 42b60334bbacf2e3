"""From a folder of scans to its fingerprint.

One pass over the scans: the headers of all, the voxels of all labeled ones and of a few unlabeled ones, one scan in
memory at a time. The same folder has the same fingerprint. Knows files and arrays.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdm_cli.console import progress
from sdm_cli.data.cases import Case, is_nifti
from sdm_cli.data.classes import find_classes, read_dataset_json
from sdm_cli.data.fingerprint import FOREGROUND_PERCENTILES, Fingerprint, Foreground, Modality, ScanFacts
from sdm_cli.data.readers import read_image, read_label
from sdm_cli.data.volume import Array, Geometry, SliceAxis, read_nifti_geometry, slice_spacing_mm, to_slices
from sdm_cli.data_config import IGNORE, DataConfig
from sdm_cli.errors import ImageReadError
from sdm_cli.preset_files import data_config_from_dict

_UNLABELED_SAMPLE = 20
_VOXELS_PER_CASE = 10_000
_ANISOTROPIC = 2.0  # a spacing this many times the others' is that between slices
_AIR_BELOW_HU = -500  # no other modality stores intensities like it
_AIR_SHARE = 0.001
_CT_SHARE = 0.9  # of the scans: an MR scan in a CT window is lost, a CT scan between its percentiles is not
_AXES: tuple[SliceAxis, SliceAxis, SliceAxis] = ("sagittal", "coronal", "axial")  # along x, y, z


def take_fingerprint(folder: Path, cases: Sequence[Case]) -> Fingerprint:
    """Take the fingerprint of the scans of a folder.

    Args:
        folder: where a `dataset.json` may lie, which names classes and modality.
        cases: the scans.

    Raises:
        ImageReadError: no scan can be read; `dataset.json` or the label values cannot be used.
        PresetError: the classes of `dataset.json` contradict each other.
    """
    dataset = read_dataset_json(folder)
    geometries, unreadable = _geometries(cases)
    slice_axis, axis_evidence = usual_slice_axis(list(geometries.values()))
    classes = find_classes(dataset, cases)
    settings = {"classes": classes.values, "ignore_value": classes.ignore_value, "slice_axis": slice_axis}
    voxels = _Voxels(data_config_from_dict(settings, str(folder)))
    sample = _sample([case for case in cases if case.case_id in geometries])
    with progress("fingerprint", len(sample)) as bar:
        for case in sample:
            try:
                voxels.add(case)
            except ImageReadError as error:
                unreadable[case.case_id] = str(error)
            bar.advance()
    if not voxels.has_air:
        raise _none_readable(unreadable)
    modality, evidence = _modality(dataset, voxels.has_air)
    scans = tuple(
        ScanFacts(
            case.case_id,
            _slice_size(geometries[case.case_id], slice_axis),
            slice_spacing_mm(geometries[case.case_id].affine, slice_axis),
            case.label_path is not None,
            case.domain,
        )
        for case in cases
        if case.case_id in geometries
    )
    return Fingerprint(
        scans=scans,
        unreadable=dict(sorted(unreadable.items())),
        modality=modality,
        modality_evidence=evidence,
        slice_axis=slice_axis,
        slice_axis_evidence=axis_evidence,
        classes=classes,
        foreground=voxels.foreground(),
        n_scans_read=len(voxels.has_air),
    )


class _Voxels:
    """What is kept of the voxels of the scans seen so far."""

    def __init__(self, data: DataConfig) -> None:
        self.data = data
        self.has_air: list[bool] = []
        self.intensities: list[Array] = []
        self.boxes_mm: list[tuple[float, float]] = []
        self.volumes_ml: dict[str, list[float]] = {name: [] for name in data.class_names}

    def add(self, case: Case) -> None:
        """Read a scan, and its label; raises ImageReadError."""
        volume = read_image(case, self.data)
        self.has_air.append(float((volume.voxels < _AIR_BELOW_HU).mean()) >= _AIR_SHARE)
        if case.label_path is None or not self.data.classes:
            return
        label = read_label(case, self.data, volume.geometry)
        voxel_ml = abs(float(np.linalg.det(volume.geometry.affine[:3, :3]))) / 1000
        counts = np.bincount(label.ravel(), minlength=IGNORE + 1)
        for index, name in enumerate(self.data.class_names, start=1):
            if counts[index]:
                self.volumes_ml[name].append(float(counts[index]) * voxel_ml)
        inside = (label > 0) & (label != IGNORE)
        if inside.any():
            values = volume.voxels[inside]
            self.intensities.append(values[:: -(-len(values) // _VOXELS_PER_CASE)].astype(np.float64))
            self.boxes_mm.append(self._box_mm(inside, volume.geometry))

    def foreground(self) -> Foreground | None:
        """Over all scans added."""
        if not self.intensities:
            return None
        pooled = np.concatenate(self.intensities)
        low, high = np.percentile(pooled, FOREGROUND_PERCENTILES).tolist()
        height, width = np.max(self.boxes_mm, axis=0).tolist()
        present = {name: volumes for name, volumes in self.volumes_ml.items() if volumes}
        return Foreground(
            low=low,
            high=high,
            mean=float(pooled.mean()),
            box_mm=(height, width),
            class_volumes_ml={name: float(np.median(volumes)) for name, volumes in present.items()},
            class_cases={name: len(volumes) for name, volumes in self.volumes_ml.items()},
        )

    def _box_mm(self, inside: Array, geometry: Geometry) -> tuple[float, float]:
        slices = to_slices(inside, geometry.affine, self.data.slice_axis)
        _, h_mm, w_mm = slice_spacing_mm(geometry.affine, self.data.slice_axis)
        rows, columns = (np.flatnonzero(slices.any(axis=axes)) for axes in ((0, 2), (0, 1)))
        return float(rows[-1] - rows[0] + 1) * h_mm, float(columns[-1] - columns[0] + 1) * w_mm


def _geometries(cases: Sequence[Case]) -> tuple[dict[str, Geometry], dict[str, str]]:
    """Geometry of each scan, and why some have none."""
    geometries, unreadable = {}, {}
    for case in cases:
        try:
            is_header_enough = is_nifti(case.image_path)
            geometry = read_nifti_geometry(case.image_path) if is_header_enough else _whole_geometry(case)
            geometries[case.case_id] = geometry
        except ImageReadError as error:
            unreadable[case.case_id] = str(error)
    if not geometries:
        raise _none_readable(unreadable)
    return geometries, unreadable


def _whole_geometry(case: Case) -> Geometry:
    return read_image(case, DataConfig()).geometry


def _none_readable(unreadable: Mapping[str, str]) -> ImageReadError:
    return ImageReadError(
        f"None of the {len(unreadable)} scans can be read; the first: {next(iter(unreadable.values()))}"
    )


def _sample(cases: Sequence[Case]) -> list[Case]:
    """All labeled scans, and a few unlabeled ones, always the same."""
    unlabeled = [case for case in cases if case.label_path is None]
    order = np.random.default_rng(0).permutation(len(unlabeled))[:_UNLABELED_SAMPLE]
    chosen = {unlabeled[index].case_id for index in order}
    return [case for case in cases if case.label_path is not None or case.case_id in chosen]


def usual_slice_axis(geometries: Sequence[Geometry]) -> tuple[SliceAxis, str]:
    """The plane of the slices of scans without a preset, and why."""
    # "sagittal" keeps the canonical order x, y, z.
    spacing = np.median([slice_spacing_mm(geometry.affine, "sagittal") for geometry in geometries], axis=0)
    text = " x ".join(f"{mm:.3g}" for mm in spacing)
    coarsest = int(np.argmax(spacing))
    if spacing[coarsest] > _ANISOTROPIC * np.delete(spacing, coarsest).max():
        return _AXES[coarsest], f"across the coarsest spacing, of {text} mm (x, y, z)"
    return "axial", f"the usual one, since no spacing of {text} mm (x, y, z) is {_ANISOTROPIC:g} times the others"


def _slice_size(geometry: Geometry, slice_axis: SliceAxis) -> tuple[int, int, int]:
    without_memory = np.broadcast_to(np.uint8(0), geometry.shape)
    z, h, w = to_slices(without_memory, geometry.affine, slice_axis).shape
    return z, h, w


def _modality(dataset: Mapping[str, Any], has_air: Sequence[bool]) -> tuple[Modality, str]:
    channels = dataset.get("channel_names") or dataset.get("modality")
    if isinstance(channels, dict) and channels:
        channel = str(next(iter(channels.values())))
        return "CT" if channel.upper().startswith("CT") else "MR", f"dataset.json calls the scans {channel}"
    n_ct = sum(has_air)
    evidence = f"{n_ct} of {len(has_air)} scans read have voxels below {_AIR_BELOW_HU}, as air has in CT alone"
    if n_ct >= _CT_SHARE * len(has_air):
        return "CT", evidence
    return "mixed" if n_ct else "MR", evidence
