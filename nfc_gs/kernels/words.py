"""What words of logits mean, where decoding is a weighted sum of their sigmoids; and the gradient."""

import numpy as np
from numba import float32, njit

from nfc_gs.kernels.simd import LANES, above, add, below, divide, exp2, fill, load, multiply, select, store

_MINUS_LOG2E = np.float32(-np.log2(np.e))
# exp2 takes no more; the sigmoid is then 1e-38, or one but for that.
_FARTHEST = np.float32(126)
# NaN stays what it is, so that a training that has gone astray is seen.
_SETTINGS = {"nogil": True, "fastmath": {"nsz", "contract", "reassoc", "arcp"}, "error_model": "numpy", "cache": True}


@njit(**_SETTINGS)
def _sigmoids(logits, out, at):
    """Sixteen sigmoids."""
    exponent = multiply(load(logits, at), fill(_MINUS_LOG2E))
    exponent = select(above(exponent, fill(_FARTHEST)), fill(_FARTHEST), exponent)
    exponent = select(below(exponent, fill(-_FARTHEST)), fill(-_FARTHEST), exponent)
    store(out, at, divide(fill(float32(1)), add(fill(float32(1)), exp2(exponent))))


@njit(**_SETTINGS)
def expectations(first, last, logits, weights, probabilities, values):
    """Writes the values of words first .. last, and the sigmoids of their logits.

    Args:
        first: first word.
        last: one behind the last word.
        logits: [N K], flat.
        weights: of a word's bits, [K].
        probabilities: [N K], flat.
        values: [N].
    """
    width = weights.size
    begin, end = first * width, last * width
    whole = begin + (end - begin) // LANES * LANES
    for at in range(begin, whole, LANES):
        _sigmoids(logits, probabilities, at)
    if whole < end:
        some, of_some = np.zeros(LANES, np.float32), np.empty(LANES, np.float32)
        some[: end - whole] = logits[whole:end]
        _sigmoids(some, of_some, 0)
        probabilities[whole:end] = of_some[: end - whole]
    for word in range(first, last):
        total = float32(0)
        for bit in range(width):
            total += weights[bit] * probabilities[word * width + bit]
        values[word] = total


@njit(**_SETTINGS)
def slopes(first, last, by_values, weights, probabilities, by_logits):
    """Writes the gradient of the logits of words first .. last, [N K] flat, from that of their values [N]."""
    width = weights.size
    for word in range(first, last):
        pull = by_values[word]
        for bit in range(width):
            chance = probabilities[word * width + bit]
            by_logits[word * width + bit] = pull * weights[bit] * chance * (float32(1) - chance)
