"""Binary cross-entropy with its slope in one pass, and a logarithm that LLVM can vectorize."""

import numpy as np
from numba import float32, njit

_CHUNK = 1024  # numbers in work at a time: four kilobytes an array stay in the first cache
_HALF_ROOT = np.int32(0x3F3504F3)  # the bits of sqrt(1/2) as float32
_MANTISSA = np.int32(23)
_LOG2 = np.float32(np.log(2))
_SETTINGS = {"nogil": True, "fastmath": True, "error_model": "numpy", "cache": True}


@njit(**_SETTINGS)
def _split(bits, exponents, n):
    """Takes numbers apart, x = m 2^e with m in [sqrt(1/2), sqrt(2)); `bits` become those of m."""
    for i in range(n):
        exponent = (bits[i] - _HALF_ROOT) >> _MANTISSA
        exponents[i] = exponent
        bits[i] -= exponent << _MANTISSA


@njit(**_SETTINGS)
def _logarithm(x, exponents, n):
    """log(m 2^e) in place of m: 2 atanh(z) with z = (m - 1) / (m + 1), |z| < 0.172; the next term is 7e-10."""
    for i in range(n):
        z = (x[i] - float32(1)) / (x[i] + float32(1))
        s = z * z
        series = float32(1 / 3) + s * (float32(1 / 5) + s * (float32(1 / 7) + s * float32(1 / 9)))
        x[i] = float32(exponents[i]) * _LOG2 + float32(2) * z * (float32(1) + s * series)


@njit(**_SETTINGS)
def _clamp(probabilities, eps, chances, others, n):
    for i in range(n):
        chance = min(max(probabilities[i], eps), float32(1) - eps)
        chances[i] = chance
        others[i] = float32(1) - chance


@njit(**_SETTINGS)
def _slope(labels, chances, others, slopes, n):
    for i in range(n):
        slopes[i] = (chances[i] - labels[i]) / (chances[i] * others[i])


@njit(**_SETTINGS)
def _tangent(probabilities, chances, slopes, out, n):
    for i in range(n):
        out[i] = (probabilities[i] - chances[i]) * slopes[i]


@njit(**_SETTINGS)
def _add(labels, logs, other_logs, out, n):
    for i in range(n):
        out[i] -= other_logs[i] + labels[i] * (logs[i] - other_logs[i])


@njit(**_SETTINGS)
def _buffers():
    return np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.int32)


@njit(**_SETTINGS)
def _chunk(p, t, eps, out, slope, buffers, n):
    """At most _CHUNK numbers of `cross_entropy`."""
    chances, others, exponents = buffers
    _clamp(p, eps, chances, others, n)
    _slope(t, chances, others, slope, n)
    _tangent(p, chances, slope, out, n)
    _split(chances.view(np.int32), exponents, n)
    _logarithm(chances, exponents, n)
    _split(others.view(np.int32), exponents, n)
    _logarithm(others, exponents, n)
    _add(t, chances, others, out, n)


@njit(**_SETTINGS)
def cross_entropy(first, last, probabilities, labels, eps, entropies, slopes):
    """Writes -t log p - (1 - t) log(1 - p), continued along its tangent beyond [eps, 1 - eps], and its slope by p.

    All arrays are flat float32; the numbers first .. last are written.
    """
    buffers = _buffers()
    for begin in range(first, last, _CHUNK):
        end = min(begin + _CHUNK, last)
        here = slice(begin, end)
        _chunk(probabilities[here], labels[here], eps, entropies[here], slopes[here], buffers, end - begin)


@njit(**_SETTINGS)
def _sum(values, n):
    total = 0.0
    for i in range(n):
        total += values[i]
    return total


@njit(**_SETTINGS)
def _weigh(values, weights, first, width, n):
    """Multiplies n numbers, of which `width` belong to a pixel, from number `first` of the row on, by its weight."""
    for i in range(n):
        values[i] *= weights[(first + i) // width]


@njit(**_SETTINGS)
def _add_scaled(slope, scale, out, n):
    for i in range(n):
        out[i] += scale * slope[i]


@njit(**_SETTINGS)
def sums_of_cross_entropy(first, last, probabilities, labels, weights, eps, scale, sums, fresh, gradient):
    """Writes the sum of `cross_entropy` of each row first .. last, and adds `scale` times its gradient.

    Args:
        first: first row.
        last: one behind the last row.
        probabilities: [H M], so many numbers of every pixel side by side.
        labels: [H M].
        weights: of the pixels, [H W]; of no rows if all count the same.
        eps: see `cross_entropy`.
        scale: of the gradient.
        sums: float64 [H], one a row, so that their sum does not depend on the number of threads.
        fresh: whether the gradient is first cleared.
        gradient: by the probabilities, [H M]; of no rows if none is wanted.
    """
    if fresh:
        gradient[first:last] = float32(0)
    buffers, entropies, slope = _buffers(), np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float32)
    total_width = probabilities.shape[1]
    for row in range(first, last):
        total = 0.0
        for begin in range(0, total_width, _CHUNK):
            n = min(_CHUNK, total_width - begin)
            here = slice(begin, begin + n)
            _chunk(probabilities[row, here], labels[row, here], eps, entropies, slope, buffers, n)
            if weights.shape[0] > 0:
                width = total_width // weights.shape[1]
                _weigh(entropies, weights[row], begin, width, n)
                _weigh(slope, weights[row], begin, width, n)
            total += _sum(entropies, n)
            if gradient.shape[0] > 0:
                _add_scaled(slope, scale, gradient[row, here], n)
        sums[row] = total
