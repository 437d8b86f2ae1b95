"""Sums of squares of second differences, and their gradient in the same pass."""

import numpy as np
from numba import float32, njit


@njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
def roughness(values, weight, gradient):
    """`weight` times the sum of the squares of the second differences of values [A K B] along K; adds its gradient."""
    pulls = np.empty(values.shape[2], np.float32)
    total = 0.0
    for a in range(values.shape[0]):
        for k in range(values.shape[1] - 2):
            before, here, after = values[a, k], values[a, k + 1], values[a, k + 2]
            by_before, by_here, by_after = gradient[a, k], gradient[a, k + 1], gradient[a, k + 2]
            squares = float32(0)
            for b in range(len(pulls)):
                second = before[b] - float32(2) * here[b] + after[b]
                squares += second * second
                pulls[b] = float32(2) * weight * second
            total += squares
            # In loops of their own, so that LLVM need not prove that the rows do not overlap.
            for b in range(len(pulls)):
                by_before[b] += pulls[b]
            for b in range(len(pulls)):
                by_here[b] -= float32(2) * pulls[b]
            for b in range(len(pulls)):
                by_after[b] += pulls[b]
    return weight * total
