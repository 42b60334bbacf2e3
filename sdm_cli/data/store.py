"""The slice store: a folder with one HDF5 file a case, ready to be read slice by slice.

    STORE/manifest.json      format, version, complete, data settings, index of the cases
    STORE/cases/<id>.h5      image (Z, H, W) uint16, one chunk a slice; label (Z, H, W) uint8; where these are not
                             on the scan's own grid, reference: the label (Z, H, W) that is

A case file carries everything about itself (geometry, source files, settings) and appears whole
or not at all; the manifest is an index made from the finished files. The store can therefore be
filled in parallel, continued after a kill, and extended. Knows no tensor and no layout of folders.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sdm_cli.data.case_file import OpenCase, case_path, damaged, open_case, open_file, require_names
from sdm_cli.data.cases import Case
from sdm_cli.data.doubts import centres_x_mm
from sdm_cli.data.grid import SliceGrid, grid_from_json, whole_grid
from sdm_cli.data.hdf5 import DAMAGES, has_dataset, own_dataset
from sdm_cli.data.manifest import StoredCase, read_manifest, settings_text
from sdm_cli.data.nifti_header import header_from_bytes
from sdm_cli.data.origin import FinishedCase, place_of
from sdm_cli.data.volume import Geometry, from_slices, slice_spacing_mm
from sdm_cli.data_config import IGNORE, DataConfig
from sdm_cli.documents import parse_json
from sdm_cli.errors import ImageReadError, StoreError
from sdm_cli.files import json_text, replacing

# (Z, H, W) or one slice (H, W)
Image = np.ndarray[Any, np.dtype[np.uint16]]
Label = np.ndarray[Any, np.dtype[np.uint8]]

# Opening a file costs as much as reading ten slices; a process may have at least 256 open on every system.
_OPEN_FILES = 128
# Read three times as fast as lzf, and smaller.
_LABEL_FILTER = {"compression": "gzip", "compression_opts": 1}


class SliceStore:
    """Reads slices of a store; picklable, and safe in forked and spawned loader processes.

    Attributes:
        path: folder of the store.
        data: settings that the store was made with.
        cases: case id -> what is stored, sorted by id.
        failed: case id -> why the scan could not be stored.
    """

    path: Path
    data: DataConfig
    cases: dict[str, StoredCase]
    failed: dict[str, str]

    def __init__(self, path: Path) -> None:
        manifest = read_manifest(path)
        if not manifest.complete:
            raise StoreError(f"{path} is unfinished: run sdm preprocess again, which continues where it stopped.")
        if not manifest.cases:
            raise StoreError(f"{path} has no cases: run sdm preprocess on a folder of readable scans.")
        self.path = path
        self.data = manifest.data
        self.cases = manifest.cases
        self.failed = manifest.failed
        self._readable: frozenset[str] | None = None
        self._files: OrderedDict[str, OpenCase] = OrderedDict()
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the open files, which belong to one process."""
        return {**self.__dict__, "_files": OrderedDict(), "_pid": 0}

    def digest(self, case_ids: Iterable[str]) -> str:
        """What tells two sets of cases apart, by ids and voxels; a copy of the store has the same."""
        facts = {case_id: self.cases[case_id].digest for case_id in sorted(case_ids)}
        return hashlib.sha256(json_text(facts, indent=None).encode()).hexdigest()[:16]

    def with_labels_of(self, case_ids: Iterable[str]) -> "SliceStore":
        """The same store, which gives labels of these cases alone: what training holds in its hands."""
        limited = SliceStore.__new__(SliceStore)
        limited.__dict__ = {**self.__getstate__(), "_readable": frozenset(case_ids)}
        return limited

    def read_image(self, case_id: str, z: int) -> Image:
        """Slice `z` of a case: (H, W) uint16, intensity times 65535."""
        image: Image = self._read(case_id, "image", z)
        return image

    def read_label(self, case_id: str, z: int) -> Label:
        """Label of slice `z`: (H, W) uint8 class indices, 255 where ignored; StoreError without a label."""
        self._require_readable(case_id)
        label: Label = self._read(case_id, "label", z)
        return label

    def image_volume(self, case_id: str) -> Image:
        """All slices of a case: (Z, H, W) uint16."""
        image: Image = self._read(case_id, "image", ...)
        return image

    def label_volume(self, case_id: str) -> Label:
        """Label of all slices: (Z, H, W) uint8 class indices; StoreError without a label."""
        self._require_readable(case_id)
        label: Label = self._read(case_id, "label", ...)
        return label

    def reference_volume(self, case_id: str) -> Label:
        """Label on the scan's own grid (see `grid`): (Z, H, W) uint8 class indices; StoreError without a label."""
        self._require_readable(case_id)
        label: Label = self._read(case_id, "label" if self.grid(case_id).is_identity else "reference", ...)
        return label

    def scan_spacing_mm(self, case_id: str) -> tuple[float, float, float]:
        """Spacing (z, h, w) of the scan's own slices."""
        return slice_spacing_mm(self.geometry(case_id).affine, self.data.slice_axis)

    def grid(self, case_id: str) -> SliceGrid:
        """How the slices lie in those of the scan."""
        case = self._open(case_id)
        try:
            grid = grid_from_json(str(case.file.attrs["grid"]))
            of_scan = case.datasets.get("label" if grid.is_identity else "reference")
            if case.datasets["image"].shape != grid.size or (of_scan is not None and of_scan.shape != grid.scan):
                raise ValueError("its grid is not that of its slices")
            return grid
        except DAMAGES as error:
            raise damaged(case_path(self.path, case_id), error) from error

    def geometry(self, case_id: str) -> Geometry:
        """Geometry of the scan's own file, enough to write a mask on its grid."""
        attributes = self._open(case_id).file.attrs
        try:
            x, y, z = (int(size) for size in attributes["shape"])
            header = header_from_bytes(attributes["header"].tobytes()) if "header" in attributes else None
            return Geometry(np.asarray(attributes["affine"], np.float64).reshape(4, 4), (x, y, z), header)
        except DAMAGES as error:
            raise damaged(case_path(self.path, case_id), error) from error

    def _require_readable(self, case_id: str) -> None:
        if self._readable is not None and case_id not in self._readable:
            raise StoreError(
                f"{self.path}: training must not read the label of {case_id}, which is not a labeled case."
            )

    def _read(self, case_id: str, name: str, selection: Any) -> Any:
        case = self._open(case_id)
        try:
            if name in case.datasets:
                return case.datasets[name][selection]
        except DAMAGES as error:
            raise damaged(case_path(self.path, case_id), error) from error
        raise StoreError(f"{self.path}: case {case_id} has no label, so it cannot be trained on or scored.")

    def _open(self, case_id: str) -> OpenCase:
        if self._pid != os.getpid():
            self._files, self._pid = OrderedDict(), os.getpid()
        if case_id in self._files:
            self._files.move_to_end(case_id)
        else:
            if case_id not in self.cases:
                raise StoreError(f"{self.path} has no case {case_id}: it holds {len(self.cases)} other cases.")
            self._files[case_id] = open_case(self.path, self.cases[case_id])
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].file.close()
        return self._files[case_id]


def open_store(path: Path) -> SliceStore:
    """Open a finished store and check that every case file is there, whole, and of whom the manifest says.

    Raises:
        StoreError: no store, unfinished, of a newer version, with a missing or damaged file, or with a file that is of
            another domain or patient than the manifest says.
    """
    store = SliceStore(path)
    for case_id, case in store.cases.items():
        place = case_path(path, case_id)
        with open_file(place) as file:
            require_names(file, place, case)
    return store


def write_case(
    store: Path,
    case: Case,
    image: Image,
    label: Label | None,
    geometry: Geometry,
    data: DataConfig,
    source: list[list[str | int]],
    grid: SliceGrid | None = None,
    intensities: tuple[float, float] | None = None,
) -> StoredCase:
    """Write one case, whole or not at all.

    Args:
        store: folder of the store.
        case: names the file.
        image: (Z, H, W) uint16, on `grid`.
        label: (Z, H, W) uint8 class indices on the scan's own grid, or none.
        geometry: of the scan's file.
        data: settings that made the slices.
        source: `source_signature` of the case's files.
        grid: of the image, in the slices of the scan; none: the scan's own.
        intensities: lowest and highest of the scan, by which scans differ that are alike once normalised.

    Raises:
        OutputError: the store cannot be written, or the disk is full.
    """
    n_slices, height, width = image.shape
    grid = grid or whole_grid((n_slices, height, width))
    # HDF5 crashes the process when a disk fills up under it, so the file is built in memory.
    with h5py.File(case.case_id, "w", driver="core", backing_store=False) as file:
        file.create_dataset("image", data=image, chunks=(1, height, width))
        if label is not None:
            on_grid = grid.label(label)
            file.create_dataset("label", data=on_grid, chunks=(1, height, width), **_LABEL_FILTER)
            if not grid.is_identity:
                file.create_dataset("reference", data=label, chunks=(1, *label.shape[1:]), **_LABEL_FILTER)
        file.attrs["grid"] = grid.to_json()
        of_image, of_both = _digests(image, label)
        file.attrs["digest"] = of_both
        file.attrs["image_digest"] = f"{of_image} of {intensities}" if intensities is not None else ""
        centres = {}
        if label is not None:
            centres = centres_x_mm(from_slices(label, geometry.affine, data.slice_axis), geometry.affine)
        file.attrs["is_empty"] = label is not None and not centres.keys() - {IGNORE}
        file.attrs["centres_x_mm"] = json_text({index: round(x, 2) for index, x in centres.items()}, indent=None)
        file.attrs["source"] = json_text(source, indent=None)
        file.attrs["place"] = place_of(case)
        file.attrs["data"] = settings_text(data)
        file.attrs["domain"] = case.domain or ""
        file.attrs["patient"] = case.patient or ""
        file.attrs["affine"] = geometry.affine
        file.attrs["shape"] = geometry.shape
        if geometry.header is not None:
            file.attrs["header"] = np.frombuffer(geometry.header.binaryblock, np.uint8)
        file.flush()
        content = file.id.get_file_image()
        stored = _describe(case.case_id, file, data)
    with replacing(case_path(store, case.case_id)) as temporary:
        temporary.write_bytes(content)
    return stored


def finished_cases(store: Path, data: DataConfig) -> dict[str, FinishedCase]:
    """All whole case files that were made with these settings, sorted by id; opens each file."""
    found = {}
    for path in (store / "cases").glob("*.h5"):
        with suppress(StoreError, ImageReadError, *DAMAGES), open_file(path) as file:
            own_dataset(file, path, "image")
            if file.attrs["data"] == settings_text(data):
                stored = _describe(path.stem, file, data)
                place = str(file.attrs.get("place", "")) or None
                found[path.stem] = FinishedCase(stored, str(file.attrs["source"]), place)
    return dict(sorted(found.items()))


def index_cases(store: Path, data: DataConfig) -> dict[str, StoredCase]:
    """The index of the manifest: all finished cases that were made with these settings, sorted by id."""
    return {case_id: finished.stored for case_id, finished in finished_cases(store, data).items()}


def _describe(case_id: str, file: h5py.File, data: DataConfig) -> StoredCase:
    n_slices, height, width = (int(size) for size in file["image"].shape)
    affine = np.asarray(file.attrs["affine"], np.float64)
    centres = parse_json(str(file.attrs.get("centres_x_mm", "{}")))
    return StoredCase(
        case_id=case_id,
        n_slices=n_slices,
        height=height,
        width=width,
        spacing_mm=grid_from_json(str(file.attrs["grid"])).spacing_mm(slice_spacing_mm(affine, data.slice_axis)),
        labeled=has_dataset(file, "label"),
        domain=str(file.attrs["domain"]) or None,
        patient=str(file.attrs["patient"]) or None,
        digest=str(file.attrs["digest"]),
        image_digest=str(file.attrs.get("image_digest", "")),
        is_empty=bool(file.attrs.get("is_empty", False)),
        centres_x_mm={int(index): x for index, x in centres.items()},
    )


def _digests(image: Image, label: Label | None) -> tuple[str, str]:
    """Of the voxels of the image, and of both together, wherever and whenever they were stored."""
    of_image = hashlib.sha256(np.ascontiguousarray(image).data)
    of_both = of_image.copy()
    if label is not None:
        of_both.update(np.ascontiguousarray(label).data)
    return of_image.hexdigest()[:16], of_both.hexdigest()[:16]
