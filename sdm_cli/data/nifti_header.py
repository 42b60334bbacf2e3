"""The header of a NIfTI file, read without believing it.

Knows header bytes only. Extensions, which nibabel would read at whatever length they claim and which may name the
patient, are never read; neither is the XML of CIFTI-2.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from sdm_cli.data.limits import DEFLATE
from sdm_cli.documents import require_regular
from sdm_cli.errors import ImageReadError, reason_of

_KINDS: dict[bytes, type[nibabel.Nifti1Header]] = {
    b"n+1": nibabel.Nifti1Header,
    b"ni1": nibabel.Nifti1Header,
    b"n+2": nibabel.Nifti2Header,
    b"ni2": nibabel.Nifti2Header,
}
_NO_HEADER = (ImageFileError, HeaderDataError, WrapStructError)
_DAMAGES = (*_NO_HEADER, OSError, EOFError, zlib.error, ValueError, OverflowError)
_CIFTI_INTENTS = range(3000, 3100)
_FREE_TEXT = ("descrip", "aux_file", "db_name", "intent_name")
"""Fields that hold what people and scanners write into them; the first two are in both versions."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what nibabel raises on a missing or damaged file into ImageReadError."""
    try:
        yield
    except FileNotFoundError:
        raise ImageReadError(f"{path} does not exist: check the path (or the link).") from None
    except _DAMAGES as error:
        raise ImageReadError(
            f"{path} cannot be read as NIfTI ({reason_of(error)}): copy or convert it again."
        ) from error


def read_header(path: Path) -> nibabel.Nifti1Header:
    """The header of a `.nii` or `.nii.gz` file, without extensions and without its free text.

    Raises:
        ImageReadError: missing, a pipe or a device, damaged, or no NIfTI volume.
    """
    with explained(path):
        block = header_block(path)
        kind = _KINDS.get(block[344:347]) or _KINDS.get(block[4:7])
        if kind is None:
            raise ImageFileError("it does not begin with a NIfTI header")
        header: nibabel.Nifti1Header = kind(block[: kind.sizeof_hdr])
        if kind is nibabel.Nifti2Header and int(header["intent_code"]) in _CIFTI_INTENTS:
            raise ImageReadError(f"{path} is no NIfTI volume (but CIFTI-2): convert it to .nii.gz.")
    clear_text(header)
    return header


def header_block(path: Path) -> bytes:
    """The first bytes of a file, as many as the longest header has; raises what `explained` explains."""
    require_regular(path)
    with ImageOpener(str(path)) as file:
        return bytes(file.read(nibabel.Nifti2Header.sizeof_hdr))


def header_from_bytes(block: bytes) -> nibabel.Nifti1Header:
    """The header that a store kept; ValueError for other bytes."""
    kind: type[nibabel.Nifti1Header]
    kind = nibabel.Nifti1Header if len(block) == nibabel.Nifti1Header.sizeof_hdr else nibabel.Nifti2Header
    try:
        return kind(block)
    except HeaderDataError as error:
        raise ValueError(reason_of(error)) from None


def clear_text(header: nibabel.Nifti1Header) -> None:
    """Empty the fields in which names of patients stand; geometry, units and codes stay."""
    for name in _FREE_TEXT:
        if name in header:
            header[name] = b""


def held_bytes(path: Path, offset: int) -> int:
    """Bytes of voxels that the file can hold behind `offset`."""
    size = path.stat().st_size
    return (size * DEFLATE if path.name.lower().endswith(".gz") else size) - offset
