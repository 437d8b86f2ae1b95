"""Reads features from planes and lines by linear interpolation and multiplies them: six factors for each Gaussian.

A level has three planes [3 R R C], over (x, y), (x, z) and (y, z), the second axis of each pair first in memory, and
three lines [3 R C], over x, y and z, which are planes over an axis and time, cut at one time. Positions are in [0, 1].
Sixteen channels are read at a time: C must be a multiple of `LANES`.
"""

import numpy as np
from numba import float32, njit

from nfc_gs.kernels.simd import LANES, fill, fma, load, store

_SETTINGS = {"nogil": True, "fastmath": True, "error_model": "numpy", "cache": True}


@njit(**_SETTINGS)
def _locate(positions, n, size, cells, parts):
    """The cell that holds position n along each axis, and where in the cell it is, in [0, 1]."""
    for axis in range(3):
        place = min(max(positions[n, axis], float32(0)), float32(1)) * float32(size - 1)
        cells[axis] = min(np.int64(place), size - 2)
        parts[axis] = place - float32(cells[axis])


@njit(**_SETTINGS)
def _corner(k, a, b, cells, size, channels):
    """Where plane k's values at the corner of the cell begin; along a the next is `channels` on, along b `size` times that."""
    return ((k * size + cells[b]) * size + cells[a]) * channels


@njit(**_SETTINGS)
def _on_plane(planes, corner, row, channels, f, g):
    """Sixteen interpolated values of a plane: `row` is the distance in memory along its second axis."""
    low = fma(fill(f), load(planes, corner + channels) - load(planes, corner), load(planes, corner))
    corner += row
    high = fma(fill(f), load(planes, corner + channels) - load(planes, corner), load(planes, corner))
    return fma(fill(g), high - low, low)


@njit(**_SETTINGS)
def _on_line(lines, place, channels, f):
    """Sixteen interpolated values of a line."""
    return fma(fill(f), load(lines, place + channels) - load(lines, place), load(lines, place))


@njit(**_SETTINGS)
def forward(first, last, positions, planes, lines, features):
    """Writes features [N C] in the rows first .. last."""
    size, channels = planes.shape[1], planes.shape[3]
    row = size * channels
    cells, parts = np.empty(3, np.int64), np.empty(3, np.float32)
    for n in range(first, last):
        _locate(positions, n, size, cells, parts)
        x, y, z = parts[0], parts[1], parts[2]
        xy, xz, yz = (
            _corner(0, 0, 1, cells, size, channels),
            _corner(1, 0, 2, cells, size, channels),
            _corner(2, 1, 2, cells, size, channels),
        )
        for c in range(0, channels, LANES):
            product = _on_plane(planes, xy + c, row, channels, x, y)
            product = product * _on_plane(planes, xz + c, row, channels, x, z)
            product = product * _on_plane(planes, yz + c, row, channels, y, z)
            for k in range(3):
                place = k * row + cells[k] * channels + c
                product = product * _on_line(lines, place, channels, parts[k])
            store(features, n * channels + c, product)


@njit(**_SETTINGS)
def _push(values, place, weight, pull):
    """Adds a share of `pull` to sixteen values."""
    store(values, place, fma(fill(weight), pull, load(values, place)))


@njit(**_SETTINGS)
def _plane_backward(planes, by_planes, corner, row, channels, f, g, pull, along_a, along_b):
    """Adds the gradients of a plane's four corners; returns those of f and g, still apart by channels."""
    low, high, one = corner, corner + row, float32(1)
    v00, v01 = load(planes, low), load(planes, low + channels)
    v10, v11 = load(planes, high), load(planes, high + channels)
    on_low, on_high = v01 - v00, v11 - v10
    along_a = fma(pull, fma(fill(g), on_high - on_low, on_low), along_a)
    on_first, on_second = v10 - v00, v11 - v01
    along_b = fma(pull, fma(fill(f), on_second - on_first, on_first), along_b)
    _push(by_planes, low, (one - g) * (one - f), pull)
    _push(by_planes, low + channels, (one - g) * f, pull)
    _push(by_planes, high, g * (one - f), pull)
    _push(by_planes, high + channels, g * f, pull)
    return along_a, along_b


@njit(**_SETTINGS)
def _line_backward(lines, by_lines, place, channels, f, pull, along):
    """Adds the gradients of a line's two values; returns that of f, still apart by channels."""
    along = fma(pull, load(lines, place + channels) - load(lines, place), along)
    _push(by_lines, place, float32(1) - f, pull)
    _push(by_lines, place + channels, f, pull)
    return along


@njit(**_SETTINGS)
def backward(first, last, positions, planes, lines, by_features, by_positions, by_planes, by_lines):
    """Writes the positions' gradients in the rows first .. last, and adds those of the planes and lines.

    `by_planes` and `by_lines` belong to the calling thread alone. Positions outside [0, 1] get no gradient.
    """
    size, channels = planes.shape[1], planes.shape[3]
    row = size * channels
    cells, parts = np.empty(3, np.int64), np.empty(3, np.float32)
    lanes = np.empty(3 * LANES, np.float32)
    for n in range(first, last):
        _locate(positions, n, size, cells, parts)
        x, y, z = parts[0], parts[1], parts[2]
        xy, xz, yz = (
            _corner(0, 0, 1, cells, size, channels),
            _corner(1, 0, 2, cells, size, channels),
            _corner(2, 1, 2, cells, size, channels),
        )
        on_x, on_y, on_z = cells[0] * channels, row + cells[1] * channels, 2 * row + cells[2] * channels
        along_x = along_y = along_z = fill(float32(0))
        for c in range(0, channels, LANES):
            # The product of all the others, without dividing: any factor may be zero.
            f0, f1 = _on_plane(planes, xy + c, row, channels, x, y), _on_plane(planes, xz + c, row, channels, x, z)
            f2, f3 = _on_plane(planes, yz + c, row, channels, y, z), _on_line(lines, on_x + c, channels, x)
            f4, f5 = _on_line(lines, on_y + c, channels, y), _on_line(lines, on_z + c, channels, z)
            p01, p23, p45 = f0 * f1, f2 * f3, f4 * f5
            given = load(by_features, n * channels + c)
            but01, but23 = given * (p23 * p45), given * (p01 * p45)
            but45 = given * (p01 * p23)
            along_x, along_y = _plane_backward(
                planes, by_planes, xy + c, row, channels, x, y, but01 * f1, along_x, along_y
            )
            along_x, along_z = _plane_backward(
                planes, by_planes, xz + c, row, channels, x, z, but01 * f0, along_x, along_z
            )
            along_y, along_z = _plane_backward(
                planes, by_planes, yz + c, row, channels, y, z, but23 * f3, along_y, along_z
            )
            along_x = _line_backward(lines, by_lines, on_x + c, channels, x, but23 * f2, along_x)
            along_y = _line_backward(lines, by_lines, on_y + c, channels, y, but45 * f5, along_y)
            along_z = _line_backward(lines, by_lines, on_z + c, channels, z, but45 * f4, along_z)
        store(lanes, 0, along_x)
        store(lanes, LANES, along_y)
        store(lanes, 2 * LANES, along_z)
        for axis in range(3):
            along = float32(0)
            for lane in range(LANES):
                along += lanes[LANES * axis + lane]
            inside = 0 <= positions[n, axis] <= 1
            by_positions[n, axis] = along * float32(size - 1) if inside else float32(0)
