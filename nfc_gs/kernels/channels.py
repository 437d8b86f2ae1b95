"""Numbers of several widths side by side in one array, and apart again."""

from numba import njit

_SETTINGS = {"nogil": True, "error_model": "numpy", "cache": True}
# Rows that one part after the other is copied of: they stay in the first cache.
_BAND = 256


@njit(**_SETTINGS)
def _all_threes(parts):
    for part in parts:  # noqa: SIM110  Numba has no all() of a generator
        if part.shape[1] != 3:
            return False
    return True


@njit(**_SETTINGS)
def _copy_three(first, last, source, column, target, place):
    """Three columns, those from `column` on to those from `place` on: twice as fast as a loop of any length within."""
    for row in range(first, last):
        target[row, place] = source[row, column]
        target[row, place + 1] = source[row, column + 1]
        target[row, place + 2] = source[row, column + 2]


@njit(**_SETTINGS)
def join(first, last, parts, joined):
    """Writes rows first .. last of `joined` [N C] from a tuple of parts [N c], whose widths add up to C."""
    if _all_threes(parts):
        for begin in range(first, last, _BAND):
            at = 0
            for part in parts:
                _copy_three(begin, min(begin + _BAND, last), part, 0, joined, at)
                at += 3
        return
    for row in range(first, last):
        at = 0
        for part in parts:
            for column in range(part.shape[1]):
                joined[row, at] = part[row, column]
                at += 1


@njit(**_SETTINGS)
def cut(first, last, joined, parts):
    """Writes rows first .. last of a tuple of parts [N c] from `joined` [N C], whose C are their widths together."""
    if _all_threes(parts):
        for begin in range(first, last, _BAND):
            at = 0
            for part in parts:
                _copy_three(begin, min(begin + _BAND, last), joined, at, part, 0)
                at += 3
        return
    for row in range(first, last):
        at = 0
        for part in parts:
            for column in range(part.shape[1]):
                part[row, column] = joined[row, at]
                at += 1
