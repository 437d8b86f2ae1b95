"""How the C library keeps memory that was given back."""

import ctypes
import os
import platform

# glibc's names for what is set, of malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# So much freed memory is kept, and blocks up to this size (glibc's largest) are cut from it.
KEPT = 512 * 2**20
LARGEST_BLOCK = 32 * 2**20
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Makes this process use freed memory again rather than hand it back; says whether it could.

    A training step frees and asks for the same few megabytes again and again. glibc gives such blocks back to the kernel,
    which must fill them with zeros, page by page, when they are asked for anew: a sixth of a small step's time. Where the
    user has set one of glibc's environment variables, or the C library is another, nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _VARIABLES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_TRIM_THRESHOLD, KEPT) and mallopt(_MMAP_THRESHOLD, LARGEST_BLOCK))
