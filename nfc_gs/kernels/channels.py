"""Numbers of several widths side by side in one array, and apart again."""

from numba import njit

_SETTINGS = {"nogil": True, "error_model": "numpy", "cache": True}


@njit(**_SETTINGS)
def join(first, last, parts, joined):
    """Writes rows first .. last of `joined` [N C] from a tuple of parts [N c], whose widths add up to C."""
    for row in range(first, last):
        at = 0
        for part in parts:
            for column in range(part.shape[1]):
                joined[row, at] = part[row, column]
                at += 1


@njit(**_SETTINGS)
def cut(first, last, joined, parts):
    """Writes rows first .. last of a tuple of parts [N c] from `joined` [N C], whose C are their widths together."""
    for row in range(first, last):
        at = 0
        for part in parts:
            for column in range(part.shape[1]):
                part[row, column] = joined[row, at]
                at += 1
