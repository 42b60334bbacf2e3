"""What a file may make this program allocate: one rule for all formats, held before a voxel is read.

A header is believed as far as the memory that is free can take what it claims, and the file can hold it: an
uncompressed file holds its own bytes, a deflated one (gzip) at most 1032 times its own, since deflate cannot shrink
more. What a compressed file holds beyond the claim is not read.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from sdm_cli.errors import ImageReadError

DEFLATE = 1032
"""Bytes that a byte of deflated data stands for, at most."""
_LITTLE = 2**26
"""Bytes that are taken without a look at the memory, which would take longer than to open the many files of a store."""
_CGROUPS = (
    ("memory.max", "memory.current", "inactive_file "),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file "),
)
"""Of versions 2 and 1: limit, use, and the part of the use that is cached files, which give way."""


def require_room(
    path: Path, shape: Sequence[int], bytes_per_voxel: int, held_bytes: int, needed_bytes: int | None = None
) -> None:
    """Raise ImageReadError where a file cannot hold what its header claims, or memory cannot take it.

    Args:
        path: of the file, for the message.
        shape: voxels that the header claims.
        bytes_per_voxel: in the file.
        held_bytes: what the file can hold.
        needed_bytes: to read it; none: what is claimed.
    """
    claimed = math.prod(shape) * bytes_per_voxel
    needed = claimed if needed_bytes is None else needed_bytes
    if needed > _LITTLE and (free := free_memory_bytes()) is not None and needed > free:
        raise ImageReadError(beyond_memory(path, shape))
    if claimed > held_bytes:
        raise ImageReadError(
            f"{path} is cut off, or its header is wrong (it says {by(shape)} voxels, and the file can hold "
            f"{held_bytes} bytes): copy or convert it again."
        )


def beyond_memory(path: Path, shape: Sequence[int] = (), spacing_mm: Sequence[float] = ()) -> str:
    """What to say of a scan that does not fit into memory, with what its header says, where known."""
    size = f"{by(shape)} voxels" if shape else ""
    size += f" of {by(f'{mm:.4g}' for mm in spacing_mm)} mm" if spacing_mm else ""
    said = f" (its header says {size})" if size else ""
    return (
        f"{path} does not fit into memory{said}: repair its header if that size is wrong, else use fewer --workers or "
        "more memory."
    )


def by(sizes: Iterable[object]) -> str:
    """Sizes in words: 6 x 5 x 4."""
    return " x ".join(map(str, sizes))


def free_memory_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Memory that this process may still take, of the machine and of its container; none where unknown."""
    try:
        lines = (proc / "meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    available = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return min([*available, *_left_to_container(cgroups)]) if available else None


def _left_to_container(cgroups: Path) -> list[int]:
    """Bytes that each limit of the container leaves; empty without one."""
    left = []
    for limit_name, use_name, cached in _CGROUPS:
        limit, use = cgroups / limit_name, cgroups / use_name
        try:
            statistics = (limit.parent / "memory.stat").read_text(encoding="utf-8").splitlines()
            gives_way = next((int(line.split()[1]) for line in statistics if line.startswith(cached)), 0)
            left.append(int(limit.read_text(encoding="utf-8")) - int(use.read_text(encoding="utf-8")) + gives_way)
        except (OSError, ValueError):  # not here, or `max`: no limit
            continue
    return left
