"""NRRD files, read through SimpleITK; their coordinates become those of NIfTI."""

from pathlib import Path
from typing import Any

import numpy as np

from sdm_cli.data.volume import Geometry, Volume, by
from sdm_cli.errors import ImageReadError

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_nrrd(path: Path) -> Volume:
    """Read an NRRD file.

    Args:
        path: `.nrrd`, of any encoding and space; ITK turns the space to left-posterior-superior.

    Returns:
        Voxels (x, y, z) in the file's own dtype, with the affine in RAS+.

    Raises:
        ImageReadError: the file is missing, damaged, no NRRD, or not a 3D grey image.
    """
    import SimpleITK as sitk  # noqa: N813  # its own name; half a second that most runs do not need

    geometry, reader = _read_header(path)
    try:
        voxels = sitk.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return Volume(voxels, geometry)


def read_nrrd_geometry(path: Path) -> Geometry:
    """Geometry of an NRRD file from its header alone; raises ImageReadError as `read_nrrd`."""
    return _read_header(path)[0]


def _read_header(path: Path) -> tuple[Geometry, Any]:
    """The geometry, and the reader of the voxels."""
    import SimpleITK as sitk  # noqa: N813

    if not path.exists():
        raise ImageReadError(f"{path} does not exist: check the path (or the link).")
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise ImageReadError(
            f"{path} is no 3D grey image ({by(reader.GetSize())}, {reader.GetNumberOfComponents()} values a voxel): "
            "export it again as one volume."
        )
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
    affine[:3, 3] = reader.GetOrigin()
    return Geometry(_LPS_TO_RAS @ affine, reader.GetSize()), reader


def _unreadable(path: Path, error: RuntimeError) -> ImageReadError:
    reason = str(error).strip().splitlines()[-1].strip()
    return ImageReadError(f"{path} cannot be read as NRRD ({reason}): download it again.")
