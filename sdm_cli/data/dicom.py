"""A DICOM series as the files of one folder, read through SimpleITK.

Its place is computed from the positions of its slices: a tilted gantry becomes a sheared affine. Slices that are
missing, doubled or unevenly spaced are refused: a mask on a wrong grid would look right. Of the tags only those of the
geometry and the number of the series are read; no text of a header is passed on.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdm_cli.console import muted
from sdm_cli.data.itk import LPS_TO_RAS
from sdm_cli.data.limits import DEFLATE, beyond_memory, by, require_room
from sdm_cli.data.volume import Array, Geometry, Volume
from sdm_cli.errors import ImageReadError, reason_of

_MAGIC, _MAGIC_AT = b"DICM", 128
_SERIES = "0020|000e"
_UNEVEN = 0.1
"""By how much of the distance of two slices one may lie off its place."""


@dataclass(frozen=True, eq=False)
class _Slice:
    """One file: place of its first voxel (LPS, mm), directions of its axes times their spacing, sizes (x, y, 1)."""

    path: Path
    series: str
    origin: Array
    axes: Array
    size: tuple[int, int, int]


def dicom_files(folder: Path) -> list[Path]:
    """Files of a folder that are DICOM, whatever their names, but for a DICOMDIR.

    Raises:
        ImageReadError: the folder cannot be listed.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise ImageReadError(f"{folder} cannot be listed ({reason_of(error)}): check its permissions.") from None
    return [path for path in paths if path.name != "DICOMDIR" and is_dicom(path)]


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do; false where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC
    except OSError:
        return False


def read_dicom(folder: Path) -> Volume:
    """Read the one series of a folder.

    Returns:
        Voxels (x, y, z), rescaled as the files say, slices by place; with the affine in RAS+.

    Raises:
        ImageReadError: several series, files that cannot be read, colour, several frames in a file, slices of
            different sizes or directions, missing, doubled or unevenly spaced slices.
    """
    import SimpleITK as sitk  # noqa: N813  # its own name; half a second that most runs do not need

    slices, geometry = _series(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(piece.path) for piece in slices])
    try:
        with muted():  # what it would warn of is checked above
            image = reader.Execute()
        voxels = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    except MemoryError:
        raise ImageReadError(beyond_memory(folder, geometry.shape)) from None
    except RuntimeError:  # its words may quote the header
        raise ImageReadError(f"{folder} has slices that cannot be decoded: copy or export the series again.") from None
    return Volume(voxels, geometry)


def read_dicom_geometry(folder: Path) -> Geometry:
    """Geometry of the one series of a folder, from the headers alone; raises ImageReadError as `read_dicom`."""
    return _series(folder)[1]


def _series(folder: Path) -> tuple[list[_Slice], Geometry]:
    """The slices of the one series by place, and their geometry."""
    paths = dicom_files(folder)
    with muted():
        slices = [_read_header(path) for path in paths]
    if not slices:
        raise ImageReadError(f"{folder} holds no DICOM files: check the path.")
    numbers = Counter(piece.series for piece in slices)
    if len(numbers) > 1:
        sizes = ", ".join(str(number) for number in sorted(numbers.values(), reverse=True))
        raise ImageReadError(
            f"{folder} holds {len(numbers)} DICOM series (of {sizes} files): move each into a folder of its own."
        )
    first = slices[0]
    for piece in slices:
        is_turned = np.abs(piece.axes - first.axes)[:, :2].max() > 1e-3 * np.abs(first.axes).max()
        if is_turned or piece.size != first.size:
            raise ImageReadError(
                f"{folder} has slices of other sizes or directions ({first.path.name}, {piece.path.name}): move the "
                "localiser, or what else is no part of the scan, into another folder."
            )
    normal = np.cross(first.axes[:, 0], first.axes[:, 1])
    normal /= np.linalg.norm(normal)
    slices.sort(key=lambda piece: float(piece.origin @ normal))
    affine = np.eye(4)
    affine[:3, :2] = first.axes[:, :2]
    affine[:3, 2] = _step(folder, slices, normal) if len(slices) > 1 else first.axes[:, 2]
    affine[:3, 3] = slices[0].origin
    width, height, _ = first.size
    # Of compressed slices little is known: none says more with a byte than deflate could.
    held = DEFLATE * sum(piece.path.stat().st_size for piece in slices)
    require_room(folder, (width, height, len(slices)), 1, held, 4 * width * height * len(slices))
    return slices, Geometry(LPS_TO_RAS @ affine, (width, height, len(slices)))


def _step(folder: Path, slices: Sequence[_Slice], normal: Array) -> Array:
    """From one slice to the next, in mm (LPS)."""
    origins = np.stack([piece.origin for piece in slices])
    gaps_mm = np.diff(origins @ normal)
    usual_mm = float(np.median(gaps_mm))
    if gaps_mm.min() <= _UNEVEN * usual_mm:
        raise ImageReadError(
            f"{folder} has several slices at one place (phases, echoes, or the same twice): move each volume into a "
            "folder of its own."
        )
    step = (origins[-1] - origins[0]) / (len(slices) - 1)
    off_mm = np.abs(origins - origins[0] - np.arange(len(slices))[:, None] * step).max()
    if off_mm > _UNEVEN * usual_mm:
        widest = int(np.argmax(np.abs(gaps_mm - usual_mm)))
        low, high = (piece.path.name for piece in slices[widest : widest + 2])
        raise ImageReadError(
            f"{folder} has missing or unevenly spaced slices ({gaps_mm[widest]:.4g} mm between {low} and {high}, "
            f"elsewhere {usual_mm:.4g} mm): export the series again, as a whole."
        )
    return np.asarray(step)


def _read_header(path: Path) -> _Slice:
    import SimpleITK as sitk  # noqa: N813

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        series = str(reader.GetMetaData(_SERIES))
    except RuntimeError:
        raise ImageReadError(
            f"{path} cannot be read as an image of DICOM (it is cut off, damaged or no image): copy it again, or move "
            "it away."
        ) from None
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise ImageReadError(f"{path} is no grey image: move it away, or convert the scan to NIfTI.")
    if reader.GetSize()[2] != 1:
        raise ImageReadError(
            f"{path} holds {reader.GetSize()[2]} frames ({by(reader.GetSize())}), whose places can only be told with "
            "the tools of its scanner: convert it to NIfTI."
        )
    axes = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
    return _Slice(path, series, np.array(reader.GetOrigin()), axes, reader.GetSize())
