"""Small scans for tests of the data path: affines of every kind and files of every layout."""

import gzip
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np

SPACING_MM = (0.7, 1.1, 2.5)


def rotation(degrees: float, axis: int = 2) -> np.ndarray:
    """(3, 3) rotation about an axis."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.insert(np.insert([[c, -s], [s, c]], axis, 0, 0), axis, np.eye(3)[axis], 1)


def affine(
    axes: tuple[int, int, int] = (0, 1, 2),
    flips: tuple[int, int, int] = (1, 1, 1),
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    tilt: np.ndarray | None = None,
) -> np.ndarray:
    """Voxel axis i points (with sign flips[i]) along canonical axis axes[i], then everything is tilted."""
    matrix = np.zeros((3, 3))
    for i in range(3):
        matrix[axes[i], i] = flips[i] * spacing_mm[i]
    result = np.eye(4)
    result[:3, :3] = (np.eye(3) if tilt is None else tilt) @ matrix
    result[:3, 3] = [-31.25, 12.5, 100.0]
    return result


def voxels(shape: tuple[int, ...] = (6, 5, 4), dtype: str = "int16") -> np.ndarray:
    """Intensities that are all different."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def label(
    shape: tuple[int, int, int] = (6, 5, 4), values: tuple[int, ...] = (1, 2), dtype: str = "uint8"
) -> np.ndarray:
    """One block a value, side by side along x."""
    blocks = np.zeros(shape, dtype)
    for i, value in enumerate(values):
        blocks[i, 1:4, 1:3] = value
    return blocks


def write_nifti(path: Path, array: np.ndarray, matrix: np.ndarray | None = None) -> Path:
    """A plain NIfTI file; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine() if matrix is None else matrix, dtype=array.dtype), path)
    return path


def edit_header(path: Path, **fields: object) -> None:
    """Write into a NIfTI file what no library would."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    header = np.frombuffer(raw, nib.Nifti1Header.template_dtype, 1).copy()
    for name, value in fields.items():
        header[name] = value
    raw[: header.nbytes] = header.tobytes()
    path.write_bytes(gzip.compress(bytes(raw)))


def write_laseg(folder: Path, case_id: str, shape: tuple[int, int, int] = (6, 5, 4), with_label: bool = True) -> Path:
    """A case as the community's LASeg release has it."""
    path = folder / case_id / "mri_norm2.h5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        image = voxels(shape, "float32")
        file.create_dataset("image", data=(image - image.mean()) / image.std(), compression="gzip")
        if with_label:
            file.create_dataset("label", data=label(shape, (1,)), compression="gzip")
    return path
