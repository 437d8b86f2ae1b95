"""Reads features from planes and lines by linear interpolation and multiplies them: six factors for each Gaussian.

A level has three planes [3 R R C], over (x, y), (x, z) and (y, z), the second axis of each pair first in memory, and
three lines [3 R C], over x, y and z, which are planes over an axis and time, cut at one time. Positions are in [0, 1].
"""

import numpy as np
from numba import float32, njit

_FIRST, _SECOND = (0, 0, 1), (1, 2, 2)
_SETTINGS = {"nogil": True, "fastmath": True, "error_model": "numpy", "cache": True}


@njit(**_SETTINGS)
def _locate(positions, i, size, cells, parts):
    """The cell that holds position i along each axis, and where in the cell it is, in [0, 1]."""
    for axis in range(3):
        place = min(max(positions[i, axis], float32(0)), float32(1)) * float32(size - 1)
        cells[axis] = min(np.int64(place), size - 2)
        parts[axis] = place - float32(cells[axis])


@njit(**_SETTINGS)
def _read(planes, lines, cells, parts, factors):
    """Writes the six factors [6 C]: three of the planes, then three of the lines."""
    channels = planes.shape[3]
    for k in range(3):
        a, b = _FIRST[k], _SECOND[k]
        i, j, f, g = cells[a], cells[b], parts[a], parts[b]
        w00, w01 = (float32(1) - g) * (float32(1) - f), (float32(1) - g) * f
        w10, w11 = g * (float32(1) - f), g * f
        for c in range(channels):
            factors[k, c] = (
                w00 * planes[k, j, i, c]
                + w01 * planes[k, j, i + 1, c]
                + w10 * planes[k, j + 1, i, c]
                + w11 * planes[k, j + 1, i + 1, c]
            )
    for k in range(3):
        i, f = cells[k], parts[k]
        for c in range(channels):
            factors[3 + k, c] = (float32(1) - f) * lines[k, i, c] + f * lines[k, i + 1, c]


@njit(**_SETTINGS)
def forward(first, last, positions, planes, lines, features):
    """Writes features [N C] in the rows first .. last."""
    size, channels = planes.shape[1], planes.shape[3]
    cells, parts = np.empty(3, np.int64), np.empty(3, np.float32)
    factors = np.empty((6, channels), np.float32)
    for n in range(first, last):
        _locate(positions, n, size, cells, parts)
        _read(planes, lines, cells, parts, factors)
        for c in range(channels):
            product = factors[0, c] * factors[1, c] * factors[2, c]
            features[n, c] = product * (factors[3, c] * factors[4, c] * factors[5, c])


@njit(**_SETTINGS)
def backward(first, last, positions, planes, lines, by_features, by_positions, by_planes, by_lines):
    """Writes the positions' gradients in the rows first .. last, and adds those of the planes and lines.

    `by_planes` and `by_lines` belong to the calling thread alone. Positions outside [0, 1] get no gradient.
    """
    size, channels = planes.shape[1], planes.shape[3]
    cells, parts = np.empty(3, np.int64), np.empty(3, np.float32)
    factors, pulls = np.empty((6, channels), np.float32), np.empty((6, channels), np.float32)
    pull = np.empty(3, np.float32)
    for n in range(first, last):
        _locate(positions, n, size, cells, parts)
        _read(planes, lines, cells, parts, factors)
        for c in range(channels):
            # The product of all the others, without dividing: any factor may be zero.
            p01, p23, p45 = factors[0, c] * factors[1, c], factors[2, c] * factors[3, c], factors[4, c] * factors[5, c]
            g = by_features[n, c]
            rest01, rest23, rest45 = g * p23 * p45, g * p01 * p45, g * p01 * p23
            pulls[0, c], pulls[1, c] = rest01 * factors[1, c], rest01 * factors[0, c]
            pulls[2, c], pulls[3, c] = rest23 * factors[3, c], rest23 * factors[2, c]
            pulls[4, c], pulls[5, c] = rest45 * factors[5, c], rest45 * factors[4, c]
        pull[0], pull[1], pull[2] = float32(0), float32(0), float32(0)
        for k in range(3):
            a, b = _FIRST[k], _SECOND[k]
            i, j, f, g = cells[a], cells[b], parts[a], parts[b]
            w00, w01 = (float32(1) - g) * (float32(1) - f), (float32(1) - g) * f
            w10, w11 = g * (float32(1) - f), g * f
            along_a, along_b = float32(0), float32(0)
            for c in range(channels):
                p = pulls[k, c]
                v00, v01 = planes[k, j, i, c], planes[k, j, i + 1, c]
                v10, v11 = planes[k, j + 1, i, c], planes[k, j + 1, i + 1, c]
                along_a += p * ((float32(1) - g) * (v01 - v00) + g * (v11 - v10))
                along_b += p * ((float32(1) - f) * (v10 - v00) + f * (v11 - v01))
            # In loops of their own, so that LLVM need not prove that the rows do not overlap.
            for c in range(channels):
                by_planes[k, j, i, c] += w00 * pulls[k, c]
            for c in range(channels):
                by_planes[k, j, i + 1, c] += w01 * pulls[k, c]
            for c in range(channels):
                by_planes[k, j + 1, i, c] += w10 * pulls[k, c]
            for c in range(channels):
                by_planes[k, j + 1, i + 1, c] += w11 * pulls[k, c]
            pull[a] += along_a
            pull[b] += along_b
        for k in range(3):
            i, f = cells[k], parts[k]
            along = float32(0)
            for c in range(channels):
                along += pulls[3 + k, c] * (lines[k, i + 1, c] - lines[k, i, c])
            for c in range(channels):
                by_lines[k, i, c] += (float32(1) - f) * pulls[3 + k, c]
            for c in range(channels):
                by_lines[k, i + 1, c] += f * pulls[3 + k, c]
            pull[k] += along
        for axis in range(3):
            inside = 0 <= positions[n, axis] <= 1
            by_positions[n, axis] = pull[axis] * float32(size - 1) if inside else float32(0)
