"""The C library's allocator, told to keep what torch frees.

On a CPU every large tensor is otherwise given back to the system and faulted in again, page by page, in
every step; `benchmarks/step.py` with and without `--keep-memory` shows what that costs.
"""

import ctypes
import platform

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for reuse; True where the C library can (glibc)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 * 2**20))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
