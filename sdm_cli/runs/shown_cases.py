"""What a report draws of a case: of a store on the slices that the network sees, of files on their own grid."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sdm_cli.config import Preset
from sdm_cli.data.cases import Case
from sdm_cli.data.layouts import find_cases
from sdm_cli.data.readers import is_same_grid, read_geometry, read_image_file
from sdm_cli.data.store import SliceStore
from sdm_cli.data.volume import Array, from_slices, to_slices
from sdm_cli.data_config import DataConfig
from sdm_cli.errors import ImageReadError
from sdm_cli.runs.case_views import ShownCase
from sdm_cli.runs.mask_pairs import Pair, PairFiles, read_pair


def scans_by_id(folder: Path) -> dict[str, Case]:
    """The scans of a folder as `sdm predict` finds and names them; ImageReadError where there is none."""
    return {case.case_id: case for case in find_cases(folder, for_prediction=True)}


def stored_case(store: SliceStore, pair_of: Callable[[str], Pair], preset: Preset, case_id: str) -> ShownCase:
    """A case of a store with what is predicted for it.

    Args:
        store: where its image is.
        pair_of: prediction and reference, on the slices of the network under protocol `paper`, else on the scan's.
        preset: of the model.
        case_id: name of the case.

    Raises:
        StoreError: the case is damaged.
    """
    geometry, slice_axis = store.geometry(case_id), preset.data.slice_axis
    affine = geometry.affine

    def turned(slices: Array) -> Array:
        return _along_patient(from_slices(slices, affine, slice_axis), affine)

    pair = pair_of(case_id)
    masks: Sequence[Array] = (pair.prediction, pair.reference)
    if preset.protocol != "paper":
        masks = [store.grid(case_id).label(mask) for mask in masks]
    prediction, reference = map(turned, masks)
    # The axes of an array of these sizes tell where each axis went.
    spacing_mm = _in_order(store.cases[case_id].spacing_mm, turned(np.empty((1, 2, 3))))
    image = turned(store.image_volume(case_id))
    return ShownCase(prediction, reference, spacing_mm, image, is_oriented=geometry.header is not None)


def case_on_disk(
    files_of: Mapping[str, PairFiles], scan_of: Mapping[str, Case], data: DataConfig, resample: bool, case_id: str
) -> ShownCase:
    """A mask and its label, with the scan that they belong to.

    Args:
        files_of: where masks and labels lie.
        scan_of: scans of the cases; of one that is not there the masks are shown alone.
        data: how a scan is read, and which label value is which class.
        resample: as `read_pair`.
        case_id: name of the case.

    Raises:
        ImageReadError: a file cannot be read, or the scan is on another grid.
    """
    label, pair = files_of[case_id].label, read_pair(files_of[case_id], data, resample)
    geometry = read_geometry(Case(case_id, label), data)
    image = None
    if scan := scan_of.get(case_id):
        volume = read_image_file(scan, data)
        if not is_same_grid(volume.geometry, geometry):
            raise ImageReadError(
                f"{scan.image_path} is not on the voxel grid of {label}: give the scans of the labels."
            )
        image = np.nan_to_num(_along_patient(volume.voxels, geometry.affine))
    prediction, reference = (_along_patient(mask, geometry.affine) for mask in (pair.prediction, pair.reference))
    spacing_mm = _in_order(pair.spacing_mm, _along_patient(np.empty((1, 2, 3)), geometry.affine))
    return ShownCase(prediction, reference, spacing_mm, image)


def _along_patient(voxels: Array, affine: Array) -> Array:
    """(x, y, z) of a file to the closest axes to the right, forward and up."""
    return to_slices(voxels, affine, "sagittal")


def _in_order(values: tuple[float, float, float], turned: Array) -> tuple[float, float, float]:
    """Values of three axes, turned as an array of the sizes 1, 2 and 3 was."""
    x, y, z = (values[length - 1] for length in turned.shape)
    return x, y, z
