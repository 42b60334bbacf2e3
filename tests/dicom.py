"""DICOM series for the tests, written slice by slice under names in another order than their places."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

NAME, PATIENT = "DOE^JANE", "ID4711"
STRAIGHT = (1.0, 0, 0, 0, 1, 0, 0, 0, 1)


def write_series(
    folder: Path,
    array: np.ndarray,
    spacing_mm=(0.7, 1.1, 2.5),
    directions=STRAIGHT,
    series="1.2.3",
    shear_mm=0.0,
    compressed=False,
    **tags: str,
) -> Path:
    """(x, y, z) integers, with an intercept of -1024; `shear_mm` moves each slice along y, as a tilted gantry does."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetUseCompression(compressed)
    axes = np.reshape(directions, (3, 3))
    for z in range(array.shape[2]):
        origin = np.array([20.0, -30.0, 5.0]) + axes[:, 2] * spacing_mm[2] * z + axes[:, 1] * shear_mm * z
        image = sitk.GetImageFromArray(np.ascontiguousarray(array[:, :, z].T)[None])
        image.SetSpacing(spacing_mm)
        for tag, value in {
            "0008|0060": "CT",
            "0008|0018": f"{series}.{z + 1}",
            "0010|0010": NAME,
            "0010|0020": PATIENT,
            "0020|000d": "1.2.9",
            "0020|000e": series,
            "0020|0013": str(z),
            "0020|0032": "\\".join(f"{mm:.6f}" for mm in origin),
            "0020|0037": "\\".join(f"{part:.8f}" for part in (*axes[:, 0], *axes[:, 1])),
            "0028|1052": "-1024",
            "0028|1053": "1",
            **tags,
        }.items():
            image.SetMetaData(tag, value)
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(str(folder / f"{series}-{array.shape[2] - z:03}.dcm"))
        writer.Execute(image)
    return folder
