"""NRRD files, read through SimpleITK; their coordinates become those of NIfTI."""

from pathlib import Path
from typing import Any

import numpy as np

from sdm_cli.data.limits import DEFLATE, by, require_room
from sdm_cli.data.volume import Geometry, Volume
from sdm_cli.documents import require_regular
from sdm_cli.errors import ImageReadError, reason_of

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_LONGEST_HEADER = 2**20


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
    # Plain, hexadecimal or deflated: none of these says more with a byte than the last.
    itemsize = sitk.Image([1, 1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    require_room(path, geometry.shape, itemsize, path.stat().st_size * DEFLATE)
    try:
        voxels = sitk.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)
    except (RuntimeError, MemoryError) as error:
        raise _unreadable(path, error) from error
    return Volume(voxels, geometry)


def read_nrrd_geometry(path: Path) -> Geometry:
    """Geometry of an NRRD file from its header alone; raises ImageReadError as `read_nrrd`."""
    return _read_header(path)[0]


def _read_header(path: Path) -> tuple[Geometry, Any]:
    """The geometry, and the reader of the voxels."""
    import SimpleITK as sitk  # noqa: N813

    _require_own_voxels(path)
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
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) == 0:
        raise ImageReadError(f"{path} has no usable affine (voxel axes of zero length): repair its header.")
    return Geometry(_LPS_TO_RAS @ affine, reader.GetSize()), reader


def _require_own_voxels(path: Path) -> None:
    """A header may name other files that hold the voxels, any file of the machine: refused, before ITK reads it."""
    try:
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(_LONGEST_HEADER)
    except FileNotFoundError:
        raise ImageReadError(f"{path} does not exist: check the path (or the link).") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    lines = start.replace(b"\r\n", b"\n").split(b"\n\n")[0].splitlines()
    if any(line.partition(b":")[0].replace(b" ", b"").lower() == b"datafile" for line in lines):
        raise ImageReadError(f"{path} keeps its voxels in another file: save it again as one file.")
    if len(start) == _LONGEST_HEADER and b"\n\n" not in start.replace(b"\r\n", b"\n"):
        raise ImageReadError(f"{path} cannot be read as NRRD (its header does not end): download it again.")


def _unreadable(path: Path, error: Exception) -> ImageReadError:
    last_line = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
    reason = reason_of(error) if isinstance(error, OSError) else last_line
    return ImageReadError(f"{path} cannot be read as NRRD ({reason}): download it again.")
