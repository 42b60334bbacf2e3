"""NRRD and MetaImage files, read and written through SimpleITK; their coordinates become those of NIfTI.

What ITK says of a damaged file may quote its header, which may name the patient: nothing of it is passed on.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from sdm_cli.console import muted
from sdm_cli.data.limits import DEFLATE, beyond_memory, by, require_room
from sdm_cli.data.volume import Array, Geometry, Volume, as_label_values, require_place
from sdm_cli.documents import require_regular
from sdm_cli.errors import ImageReadError, reason_of
from sdm_cli.files import replacing

_LONGEST_HEADER = 2**20
_DATA_FILE = re.compile(rb"^\s*(?:data ?file\s*:=?|ElementDataFile\s*=)(.*)$", re.IGNORECASE | re.MULTILINE)
"""How NRRD and MetaImage name the file of the voxels."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Suffix -> name, ITK's reader, and suffix of a file that holds header and voxels together.
_FORMATS = {
    ".nrrd": ("NRRD", "NrrdImageIO", ".nrrd"),
    ".nhdr": ("NRRD", "NrrdImageIO", ".nrrd"),
    ".mha": ("MetaImage", "MetaImageIO", ".mha"),
    ".mhd": ("MetaImage", "MetaImageIO", ".mha"),
}


def is_itk(path: Path) -> bool:
    """Whether the name says NRRD or MetaImage; hidden files do not count."""
    return path.suffix.lower() in _FORMATS and not path.name.startswith(".")


def suffix_of_mask(path: Path) -> str:
    """Suffix of one file in the format of this scan."""
    return _FORMATS[path.suffix.lower()][2]


def read_itk(path: Path) -> Volume:
    """Read an NRRD or MetaImage file.

    Args:
        path: `.nrrd`, `.nhdr`, `.mha` or `.mhd`, of any encoding and space; ITK turns the space to
            left-posterior-superior.

    Returns:
        Voxels (x, y, z) in the file's own dtype, with the affine in RAS+.

    Raises:
        ImageReadError: the file is missing, damaged, of another format, not a 3D grey image, or larger than memory.
    """
    import SimpleITK as sitk  # noqa: N813  # its own name; half a second that most runs do not need

    geometry, reader, n_bytes = _read_header(path)
    # Plain, hexadecimal or deflated: none of these says more with a byte than the last.
    itemsize = sitk.Image([1, 1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    needed = 2 * itemsize * math.prod(geometry.shape)  # ITK's image and our array
    require_room(path, geometry.shape, itemsize, n_bytes * DEFLATE, needed)
    try:
        with muted():
            image = reader.Execute()
        voxels = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    except MemoryError:
        raise ImageReadError(beyond_memory(path, geometry.shape)) from None
    except RuntimeError:
        raise _unreadable(path) from None
    return Volume(voxels, geometry)


def read_itk_geometry(path: Path) -> Geometry:
    """Geometry of an NRRD or MetaImage file from its header alone; raises ImageReadError as `read_itk`."""
    return _read_header(path)[0]


def write_itk_mask(path: Path, mask: Array, geometry: Geometry, overwrite: bool = False) -> None:
    """Write label values on the grid of a scan as NRRD or MetaImage, compressed and without any text.

    Args:
        path: `.nrrd` or `.mha`.
        mask: (x, y, z) in the axis order of the scan, whole numbers from 0 to 65535.
        geometry: of the scan.
        overwrite: replace an existing file.

    Raises:
        OutputError: the file exists, or cannot be written.
    """
    import SimpleITK as sitk  # noqa: N813

    require_place(path, mask, geometry, overwrite)
    voxels = as_label_values(mask)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    affine = LPS_TO_RAS @ geometry.affine
    image.SetSpacing(geometry.spacing_mm)
    image.SetDirection((affine[:3, :3] / geometry.spacing_mm).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    with replacing(path) as temporary:
        try:
            with muted():
                sitk.WriteImage(image, str(temporary), useCompression=True, compressionLevel=1)
        except RuntimeError as error:  # it does not say why
            raise OSError("SimpleITK could not write it") from error


def _read_header(path: Path) -> tuple[Geometry, Any, int]:
    """The geometry, the reader of the voxels, and the bytes of the files."""
    import SimpleITK as sitk  # noqa: N813

    n_bytes = _own_bytes(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_FORMATS[path.suffix.lower()][1])
    reader.SetFileName(str(path))
    try:
        with muted():
            reader.ReadImageInformation()
    except RuntimeError:
        raise _unreadable(path) from None
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise ImageReadError(
            f"{path} is no 3D grey image ({by(reader.GetSize())}, {reader.GetNumberOfComponents()} values a voxel): "
            "export it again as one volume."
        )
    affine = affine_of(reader)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) == 0:
        raise ImageReadError(f"{path} has no usable affine (voxel axes of zero length): repair its header.")
    return Geometry(affine, reader.GetSize()), reader, n_bytes


def _own_bytes(path: Path) -> int:
    """Bytes of the file and of the one beside it that holds its voxels, where the header names one.

    A header may name any file of the machine, and ITK would read it: refused but for a plain name of the same folder.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(_LONGEST_HEADER)
        n_bytes = path.stat().st_size
    except FileNotFoundError:
        raise ImageReadError(f"{path} does not exist: check the path (or the link).") from None
    except OSError as error:
        raise ImageReadError(f"{path} cannot be opened ({reason_of(error)}): copy or export it again.") from None
    named = _DATA_FILE.search(start.replace(b"\r\n", b"\n").split(b"\n\n")[0])
    name = named[1].strip().decode("utf-8", "replace") if named else "LOCAL"
    if name.upper() == "LOCAL":
        return n_bytes
    beside = path.with_name(name) if Path(name).name == name and "\\" not in name else None
    if beside is None or not beside.is_file() or beside.resolve().parent != path.resolve().parent:
        raise ImageReadError(f"{path} keeps its voxels in files that are not beside it: save it again as one file.")
    return n_bytes + beside.stat().st_size


def affine_of(image: Any) -> Array:
    """Affine (4, 4) in RAS+ of an image or reader of SimpleITK in three dimensions."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine


def _unreadable(path: Path) -> ImageReadError:
    kind = _FORMATS[path.suffix.lower()][0]
    return ImageReadError(
        f"{path} cannot be read as {kind} (it is cut off, damaged or of another format): download or export it again."
    )
