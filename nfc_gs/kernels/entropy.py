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
def cross_entropy(first, last, probabilities, labels, eps, entropies, slopes):
    """Writes -t log p - (1 - t) log(1 - p), continued along its tangent beyond [eps, 1 - eps], and its slope by p.

    All arrays are flat float32; the numbers first .. last are written.
    """
    chances, others = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float32)
    exponents = np.empty(_CHUNK, np.int32)
    for begin in range(first, last, _CHUNK):
        end = min(begin + _CHUNK, last)
        n = end - begin
        p, t, out, slope = probabilities[begin:end], labels[begin:end], entropies[begin:end], slopes[begin:end]
        _clamp(p, eps, chances, others, n)
        _slope(t, chances, others, slope, n)
        _tangent(p, chances, slope, out, n)
        _split(chances.view(np.int32), exponents, n)
        _logarithm(chances, exponents, n)
        _split(others.view(np.int32), exponents, n)
        _logarithm(others, exponents, n)
        _add(t, chances, others, out, n)
