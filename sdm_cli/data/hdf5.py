"""HDF5 files of unknown origin: their datasets, as far as these are the file's own and can be held.

A file may send its reader elsewhere (external and soft links, virtual datasets, storage in other files): none of that
is followed. What a dataset claims is bounded as in `limits`.
"""

import math
import zlib
from pathlib import Path

import h5py

from sdm_cli.data.limits import DEFLATE, require_room
from sdm_cli.documents import require_regular
from sdm_cli.errors import ImageReadError

_STORED_SHARE, _STORED_MORE = 1.1, 4096
"""What filters may add to voxels that cannot be compressed, and more."""
_UNLOOKED = 2**30
DAMAGES = (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError, OverflowError)
"""What h5py raises in a damaged file, depending on where the damage is."""


def open_h5(path: Path, **options: int) -> h5py.File:
    """Open a file to read, without a lock; raises `DAMAGES`, FileNotFoundError among them."""
    require_regular(path)
    return h5py.File(path, "r", locking=False, **options)


def has_dataset(file: h5py.File, name: str) -> bool:
    """Whether the file says that it has such a dataset, whether or not it can be read; follows no link."""
    return file.get(name, getlink=True) is not None


def own_dataset(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    """A dataset of numbers that lies in the file itself.

    Raises:
        ImageReadError: it leads elsewhere, holds no numbers, or claims more than the file holds or memory can take.
        KeyError: there is none of that name; or other `DAMAGES`.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise KeyError(f"{name} is a link")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise ImageReadError(f"{path}: {name} lies in another file: copy its voxels into this one.")
    if dataset.dtype.kind not in "iufb" or dataset.shape is None:
        raise ImageReadError(f"{path}: {name} is {dataset.dtype} {dataset.shape}, not a volume (x, y, z) of numbers.")
    stored = dataset.id.get_storage_size()
    whole = math.prod(dataset.shape) * dataset.dtype.itemsize
    if dataset.chunks is None:
        require_room(path, dataset.shape, dataset.dtype.itemsize, stored)
        return dataset
    chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize
    require_room(path, dataset.shape, dataset.dtype.itemsize, stored * DEFLATE, max(whole, chunk))
    _require_honest_chunks(path, dataset, chunk)
    return dataset


def _require_honest_chunks(path: Path, dataset: h5py.Dataset, n_bytes: int) -> None:
    """HDF5 inflates a chunk to its end, however large the dataset says that it is: look before it does.

    A chunk that could become more than 1 GiB is inflated here as far as it should go.
    """
    stored: list[tuple[int, tuple[int, ...]]] = []
    dataset.id.chunk_iter(lambda info: stored.append((info.size, info.chunk_offset)))
    for size, offset in stored:
        is_bomb = size > _STORED_SHARE * n_bytes + _STORED_MORE
        if not is_bomb and dataset.compression == "gzip" and size * DEFLATE > _UNLOOKED:
            inflater = zlib.decompressobj()
            inflater.decompress(dataset.id.read_direct_chunk(offset)[1], n_bytes + _STORED_MORE)
            is_bomb = bool(inflater.unconsumed_tail)
        if is_bomb:
            raise ImageReadError(f"{path} is damaged (a chunk holds more than its voxels): copy or download it again.")
