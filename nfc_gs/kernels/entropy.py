"""Binary cross-entropy with its slope, sixteen numbers at a time; labels may be made on the way."""

from typing import NamedTuple

import numpy as np
from numba import float32, njit

from nfc_gs.kernels.simd import LANES, fill, fma, load, log2, maximum, minimum, store

_LOG2 = np.float32(np.log(2))
_MOST = float(np.finfo(np.float32).max)
# NaN stays what it is, so that a training that has gone astray is seen.
_SETTINGS = {"nogil": True, "fastmath": {"nsz", "contract", "reassoc", "arcp"}, "error_model": "numpy", "cache": True}
_INLINE = _SETTINGS | {"forceinline": True}


class Ramp(NamedTuple):
    """How numbers become labels: x `factor` - `offset`, between `low` and `high`."""

    factor: np.float32
    offset: np.float32
    low: np.float32
    high: np.float32

    @staticmethod
    def of(factor: float, offset: float, low: float, high: float) -> "Ramp":
        """These numbers as the kernels want them."""
        return Ramp(np.float32(factor), np.float32(offset), np.float32(low), np.float32(high))


# Numbers that are labels.
AS_THEY_ARE = Ramp.of(1, 0, -_MOST, _MOST)


@njit(**_INLINE)
def _entropy(probabilities, numbers, ramp, eps):
    """Sixteen cross-entropies and their slopes; see `cross_entropy`."""
    label = numbers * ramp.factor - ramp.offset
    label = minimum(maximum(label, fill(ramp.low)), fill(ramp.high))
    chance = minimum(maximum(probabilities, fill(eps)), fill(float32(1) - eps))
    other = fill(float32(1)) - chance
    slope = (chance - label) / (chance * other)
    # log2 wants normal positive numbers, and these are: not less than eps.
    log_other = log2(other)
    bits = fma(label, log2(chance) - log_other, log_other)
    return fma(probabilities - chance, slope, fill(-_LOG2) * bits), slope


@njit(**_INLINE)
def _copy(source, first, n, target):
    """The first n of sixteen numbers; the others stay what they are."""
    for i in range(n):
        target[i] = source[first + i]


@njit(**_SETTINGS)
def cross_entropy(first, last, probabilities, labels, eps, entropies, slopes):
    """Writes -t log p - (1 - t) log(1 - p), continued along its tangent beyond [eps, 1 - eps], and its slope by p.

    All arrays are flat float32; the numbers first .. last are written. `eps` is a positive number, and no denormal one.
    """
    p, t = np.full(LANES, float32(0.5)), np.full(LANES, float32(0.5))
    whole = first + (last - first) // LANES * LANES
    for i in range(first, whole, LANES):
        entropy, slope = _entropy(load(probabilities, i), load(labels, i), AS_THEY_ARE, eps)
        store(entropies, i, entropy)
        store(slopes, i, slope)
    if whole < last:
        _copy(probabilities, whole, last - whole, p)
        _copy(labels, whole, last - whole, t)
        entropy, slope = _entropy(load(p, 0), load(t, 0), AS_THEY_ARE, eps)
        store(p, 0, entropy)
        store(t, 0, slope)
        for i in range(last - whole):
            entropies[whole + i], slopes[whole + i] = p[i], t[i]


@njit(**_SETTINGS)
def _sum(values):
    total = 0.0
    for i in range(LANES):
        total += values[i]
    return total


@njit(**_SETTINGS)
def _spread(weights, width, out):
    """Each pixel's weight as often as it has numbers."""
    for pixel in range(weights.size):
        for k in range(width):
            out[pixel * width + k] = weights[pixel]


@njit(**_SETTINGS)
def sums_of_cross_entropy(first, last, probabilities, numbers, ramp, weights, eps, scale, sums, fresh, gradient):
    """Writes the sum of `cross_entropy` of each row first .. last, and adds `scale` times its gradient.

    Args:
        first: first row.
        last: one behind the last row.
        probabilities: [H M], so many numbers of every pixel side by side.
        numbers: [H M], what the labels are made of.
        ramp: how.
        weights: of the pixels, [H W]; of no rows if all count the same.
        eps: see `cross_entropy`.
        scale: of the gradient.
        sums: float64 [H], one a row, so that their sum does not depend on the number of threads.
        fresh: whether the gradient is first cleared.
        gradient: by the probabilities, [H M]; of no rows if none is wanted.
    """
    if fresh:
        gradient[first:last] = float32(0)
    n, wanted, weighed = probabilities.shape[1], gradient.shape[0] > 0, weights.shape[0] > 0
    whole = n // LANES * LANES
    spread = np.ones(n + LANES, np.float32)
    p, t = np.full(LANES, float32(0.5)), np.full(LANES, float32(0.5))
    totals, rest = np.empty(LANES, np.float32), np.zeros(LANES, np.float32)
    for row in range(first, last):
        at = row * n
        if weighed:
            _spread(weights[row], n // weights.shape[1], spread)
        total = fill(float32(0))
        for i in range(0, whole, LANES):
            entropy, slope = _entropy(load(probabilities, at + i), load(numbers, at + i), ramp, eps)
            weight = load(spread, i)
            total = fma(entropy, weight, total)
            if wanted:
                store(gradient, at + i, fma(slope * weight, fill(scale), load(gradient, at + i)))
        store(totals, 0, total)
        sums[row] = _sum(totals)
        if whole < n:
            _copy(probabilities[row], whole, n - whole, p)
            _copy(numbers[row], whole, n - whole, t)
            entropy, slope = _entropy(load(p, 0), load(t, 0), ramp, eps)
            weight = load(spread, whole)
            store(totals, 0, entropy * weight)
            store(rest, 0, slope * weight)
            for i in range(n - whole):
                sums[row] += totals[i]
                if wanted:
                    gradient[row, whole + i] += scale * rest[i]
