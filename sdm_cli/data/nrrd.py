"""NRRD files, read through SimpleITK; their coordinates become those of NIfTI."""

from pathlib import Path

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

    if not path.exists():
        raise ImageReadError(f"{path} does not exist: check the path (or the link).")
    try:
        image = sitk.ReadImage(str(path), imageIO="NrrdImageIO")
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ImageReadError(f"{path} cannot be read as NRRD ({reason}): download it again.") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        n_values = image.GetNumberOfComponentsPerPixel()
        raise ImageReadError(
            f"{path} is no 3D grey image ({by(image.GetSize())}, {n_values} values a voxel): export it again as one "
            "volume."
        )
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    voxels = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    return Volume(voxels, Geometry(_LPS_TO_RAS @ affine, image.GetSize()))
