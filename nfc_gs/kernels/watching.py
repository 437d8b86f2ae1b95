"""What a strategy notes of every Gaussian at every step, in one pass."""

import math

from numba import float32, njit

_SETTINGS = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy", "cache": True}


@njit(**_SETTINGS)
def add_lengths(pulls, lengths, counts, n):
    """Adds the lengths of `pulls`, flat [N 2], to `lengths` [N], and one to `counts` where they are not zero."""
    for i in range(n):
        x, y = pulls[2 * i], pulls[2 * i + 1]
        length = math.sqrt(x * x + y * y)
        lengths[i] += length
        counts[i] += float32(1) if length > float32(0) else float32(0)


@njit(**_SETTINGS)
def keep_largest(numbers, largest, n):
    """Makes `largest` [N] the larger one of itself and `numbers` [N]."""
    for i in range(n):
        largest[i] = max(largest[i], numbers[i])
