"""Small copies of official downloads: names, folders, dtypes and orientations of the real ones."""

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
from scans import affine, write_nifti

SHAPE = (40, 36, 4)
ODD = affine(axes=(2, 0, 1), flips=(-1, 1, -1), spacing_mm=(1.6, 0.9, 1.2))


def heart(seed: int, values: tuple[int, ...] = (1, 2, 3), shape=SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Image (float64, 0 to about 700) and label (int64) of blocks side by side, brighter one by one, on noise."""
    random = np.random.default_rng(seed)
    label = np.zeros(shape, np.int64)
    for i, value in enumerate(values):
        start = 4 + seed % 3 + i * (30 // len(values))
        label[start : start + max(2, 24 // len(values)), 8:28, 1:-1] = value
    steps = np.searchsorted(sorted(values), label) + 1
    return 100 * random.random(shape) + 600 * np.where(label > 0, steps, 0) / len(values), label


def write_pair(image_path: Path, label_path: Path | None, seed: int, values, dtypes=("int16", "uint8"), matrix=None):
    """One scan and, where it has one, its label."""
    image, label = heart(seed, values)
    write_nifti(image_path, image.astype(dtypes[0]), matrix)
    if label_path is not None:
        write_nifti(label_path, label.astype(dtypes[1]), matrix)


def write_acdc(folder: Path, patient: int, ed: int = 1, es: int = 12, with_label: bool = True) -> Path:
    """`patient001/` as in the download: film, two frames, their labels, `Info.cfg`."""
    name = f"patient{patient:03d}"
    place = folder / name
    for frame in (ed, es):
        stem = f"{name}_frame{frame:02d}"
        label = place / f"{stem}_gt.nii.gz" if with_label else None
        write_pair(place / f"{stem}.nii.gz", label, patient + frame, (1, 2, 3), matrix=affine(flips=(-1, -1, 1)))
    write_nifti(place / f"{name}_4d.nii.gz", np.zeros((*SHAPE, 3), np.int16))
    (place / "Info.cfg").write_text(f"ED: {ed}\nES: {es}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n")
    return place


MNMS_HEADER = ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"
VENDORS = {"A": "Siemens", "B": "Philips", "C": "GE", "D": "Canon"}


def mnms_row(code: str, vendor: str, ed, es) -> str:
    return f"0,{code},{VENDORS[vendor]},{vendor},1,{ed},{es},55,HCM,F,170.0,70.0"


def write_mnms(folder: Path, code: str, frames: tuple[int, ...] = (0, 3), with_label: bool = True) -> None:
    """`A0S9V9/`: films of five frames, float64 with a label that is filled in two of them."""
    films = [heart(sum(map(ord, code)) + t) for t in range(5)]
    write_nifti(folder / code / f"{code}_sa.nii.gz", np.stack([image for image, _ in films], -1), affine())
    if with_label:
        label = np.stack([label * (t in frames) for t, (_, label) in enumerate(films)], -1)
        write_nifti(folder / code / f"{code}_sa_gt.nii.gz", label.astype("float64"), affine())


MMWHS_VALUES = (205, 420, 500, 820)


def write_mmwhs(folder: Path, case_id: str, extra: dict[int, int] | None = None) -> None:
    """`ct_train_1001_image.nii.gz` and its label, oddly oriented; `extra`: values put in place of others."""
    image, label = heart(int(case_id[-2:]), (*MMWHS_VALUES, 550, 600, 850))
    for value, instead in (extra or {}).items():
        label[label == value] = instead
    write_nifti(folder / f"{case_id}_image.nii.gz", image.astype("int16"), ODD)
    write_nifti(folder / f"{case_id}_label.nii.gz", label.astype("uint16"), ODD)


def write_challenge_laseg(folder: Path, case_id: str, with_label: bool = True) -> Path:
    """`<id>/lgemri.nrrd` and `laendo.nrrd` (uint8, 255), gzip, left-posterior-superior."""
    image, label = heart(sum(map(ord, case_id)), (255,))
    place = folder / case_id
    place.mkdir(parents=True)
    write_nrrd(place / "lgemri.nrrd", (image / 4).astype("uint8"))
    if with_label:
        write_nrrd(place / "laendo.nrrd", label.astype("uint8"))
    return place


def write_nrrd(path: Path, array: np.ndarray, spacing=(0.625, 0.625, 0.625)) -> Path:
    """(x, y, z) with x to the right of the patient and y to the front: both against LPS."""
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing(spacing)
    image.SetOrigin((20.0, -30.0, 5.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def write_xls(path: Path, rows: list[list[str | float]]) -> Path:
    """A sheet in Excel's oldest form (BIFF2), which needs no library: text and numbers."""
    records = [(0x0009, (2).to_bytes(2, "little") + (0x10).to_bytes(2, "little"))]
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            cell = i.to_bytes(2, "little") + j.to_bytes(2, "little") + bytes(3)
            if isinstance(value, str):
                records.append((0x0004, cell + bytes([len(value)]) + value.encode("ascii")))
            else:
                records.append((0x0003, cell + np.float64(value).tobytes()))
    records.append((0x000A, b""))
    body = b"".join(kind.to_bytes(2, "little") + len(data).to_bytes(2, "little") + data for kind, data in records)
    path.write_bytes(body)
    return path


def mask_of(folder: Path, case_id: str) -> nib.Nifti1Image:
    """A written mask."""
    return nib.load(folder / f"{case_id}.nii.gz")
