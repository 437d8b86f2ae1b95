"""View-dependent colour from spherical harmonics of degree 1 to 3, forward and backward, one pass over the Gaussians.

The constants, signs and order are those of 3DGS (Kerbl et al. 2023): real harmonics with the Condon-Shortley phase,
within a degree from m = -l to m = l. Sixteen Gaussians at a time, a lane each: see `simd`.
"""

import numpy as np
from numba import njit

from nfc_gs.kernels.adam import step_numbers
from nfc_gs.kernels.patterns import pattern
from nfc_gs.kernels.simd import (
    LANES,
    fill,
    find_rows_of,
    gather,
    load,
    load_columns,
    load_three,
    maximum,
    select,
    sqrt,
    store,
    store_three,
    transpose,
)

SH_C1 = 0.4886025119029199
SH_C2 = (1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792, 0.5462742152960396)
SH_C3 = (
    -0.5900435899266435,
    2.890611442640554,
    -0.4570457994644658,
    0.3731763325901154,
    -0.4570457994644658,
    1.445305721320277,
    -0.5900435899266435,
)

_C1 = np.float32(SH_C1)
_C20, _C21, _C22, _C23, _C24 = (np.float32(c) for c in SH_C2)
_C30, _C31, _C32, _C33, _C34, _C35, _C36 = (np.float32(c) for c in SH_C3)
_2, _3, _4, _6, _8 = (np.float32(n) for n in (2, 3, 4, 6, 8))
_ZERO, _ONE = np.float32(0), np.float32(1)
_SETTINGS = {"nogil": True, "fastmath": {"nsz", "contract", "reassoc", "arcp"}, "error_model": "numpy", "cache": True}
_INLINE = _SETTINGS | {"forceinline": True}


@njit(**_INLINE)
def _direction(mean, position):
    """The unit vectors from the camera to sixteen Gaussians and the inverse distances; zeros where they coincide."""
    x, y, z = mean[0] - position[0], mean[1] - position[1], mean[2] - position[2]
    square = x * x + y * y + z * z
    nothing = fill(_ZERO)
    inverse = select(square > _ZERO, _ONE / sqrt(square), nothing)
    return x * inverse, y * inverse, z * inverse, inverse


@njit(**_INLINE)
def _basis(x, y, z, degree, basis):
    """Fills `basis` [15 16] with the harmonics of degree 1 to `degree` at the unit vectors (x, y, z)."""
    store(basis, 0, -_C1 * y)
    store(basis, 1 * LANES, _C1 * z)
    store(basis, 2 * LANES, -_C1 * x)
    if degree > 1:
        xx, yy, zz = x * x, y * y, z * z
        store(basis, 3 * LANES, _C20 * x * y)
        store(basis, 4 * LANES, _C21 * y * z)
        store(basis, 5 * LANES, _C22 * (_2 * zz - xx - yy))
        store(basis, 6 * LANES, _C23 * x * z)
        store(basis, 7 * LANES, _C24 * (xx - yy))
        if degree > 2:
            store(basis, 8 * LANES, _C30 * y * (_3 * xx - yy))
            store(basis, 9 * LANES, _C31 * x * y * z)
            store(basis, 10 * LANES, _C32 * y * (_4 * zz - xx - yy))
            store(basis, 11 * LANES, _C33 * z * (_2 * zz - _3 * xx - _3 * yy))
            store(basis, 12 * LANES, _C34 * x * (_4 * zz - xx - yy))
            store(basis, 13 * LANES, _C35 * z * (xx - yy))
            store(basis, 14 * LANES, _C36 * x * (xx - _3 * yy))


@njit(**_INLINE)
def _load_four(harmonics, starts, k):
    """The coefficients of harmonics k .. k + 3, three colours each."""
    column = 3 * k
    a, b = load_columns(harmonics, starts, column), load_columns(harmonics, starts, column + 4)
    c = load_columns(harmonics, starts, column + 8)
    return (a[0], a[1], a[2]), (a[3], b[0], b[1]), (b[2], b[3], c[0]), (c[1], c[2], c[3])


@njit(**_INLINE)
def _load_three(harmonics, starts, k):
    """The coefficients of harmonics k .. k + 2, the last ones of a row, three colours each."""
    column = 3 * k
    a, b = load_columns(harmonics, starts, column), load_columns(harmonics, starts, column + 4)
    return (a[0], a[1], a[2]), (a[3], b[0], b[1]), (b[2], b[3], gather(harmonics, starts, column + 8))


@njit(**_INLINE)
def _shaded(colour, basis, k, coefficients):
    """The colour with one more harmonic's share."""
    red, green, blue = colour
    value, (x, y, z) = load(basis, k * LANES), coefficients
    return red + value * x, green + value * y, blue + value * z


@njit(**_INLINE)
def _store_slope(slopes, k, by_x, by_y, by_z):
    store(slopes, k * LANES, by_x)
    store(slopes, (LANES + k) * LANES, by_y)
    store(slopes, (2 * LANES + k) * LANES, by_z)


@njit(**_INLINE)
def _slopes(x, y, z, degree, slopes):
    """Fills `slopes` [3 16 16] with the derivatives of `_basis` by x, y and z."""
    nothing = fill(_ZERO)
    _store_slope(slopes, 0, nothing, fill(-_C1), nothing)
    _store_slope(slopes, 1, nothing, nothing, fill(_C1))
    _store_slope(slopes, 2, fill(-_C1), nothing, nothing)
    if degree > 1:
        _store_slope(slopes, 3, _C20 * y, _C20 * x, nothing)
        _store_slope(slopes, 4, nothing, _C21 * z, _C21 * y)
        _store_slope(slopes, 5, -_2 * _C22 * x, -_2 * _C22 * y, _4 * _C22 * z)
        _store_slope(slopes, 6, _C23 * z, nothing, _C23 * x)
        _store_slope(slopes, 7, _2 * _C24 * x, -_2 * _C24 * y, nothing)
        if degree > 2:
            xx, yy, zz, xy, xz, yz = x * x, y * y, z * z, x * y, x * z, y * z
            _store_slope(slopes, 8, _6 * _C30 * xy, _3 * _C30 * (xx - yy), nothing)
            _store_slope(slopes, 9, _C31 * yz, _C31 * xz, _C31 * xy)
            _store_slope(slopes, 10, -_2 * _C32 * xy, _C32 * (_4 * zz - xx - _3 * yy), _8 * _C32 * yz)
            _store_slope(slopes, 11, -_6 * _C33 * xz, -_6 * _C33 * yz, _3 * _C33 * (_2 * zz - xx - yy))
            _store_slope(slopes, 12, _C34 * (_4 * zz - _3 * xx - yy), -_2 * _C34 * xy, _8 * _C34 * xz)
            _store_slope(slopes, 13, _2 * _C35 * xz, -_2 * _C35 * yz, _C35 * (xx - yy))
            _store_slope(slopes, 14, _3 * _C36 * (xx - yy), -_6 * _C36 * xy, nothing)


@njit(**_INLINE)
def _sloped(by_x, by_y, by_z, slopes, k, coefficients):
    """The colour's derivatives by the direction with one more harmonic's share."""
    by_x = _shaded(by_x, slopes, k, coefficients)
    by_y = _shaded(by_y, slopes, LANES + k, coefficients)
    return by_x, by_y, _shaded(by_z, slopes, 2 * LANES + k, coefficients)


@njit(**_SETTINGS)
def forward(first, last, base, harmonics, means, position, degree, colours):
    """Writes colours [N 3] = max(0, base + sum of harmonics [N L 3] up to `degree`) in the rows first .. last."""
    count = (degree + 1) * (degree + 1) - 1
    fours = count - count % 4
    basis = np.empty(15 * LANES, np.float32)
    three, starts = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    nothing = fill(_ZERO)
    for begin in range(first, last, LANES):
        find_rows_of(3, begin, last, three)
        find_rows_of(3 * harmonics.shape[1], begin, last, starts)
        x, y, z, _ = _direction(load_three(means, three), position)
        _basis(x, y, z, degree, basis)
        colour = load_three(base, three)
        for k in range(0, fours, 4):
            a, b, c, d = _load_four(harmonics, starts, k)
            colour = _shaded(_shaded(colour, basis, k, a), basis, k + 1, b)
            colour = _shaded(_shaded(colour, basis, k + 2, c), basis, k + 3, d)
        if fours < count:  # three, of degrees 1 and 3
            a, b, c = _load_three(harmonics, starts, fours)
            colour = _shaded(_shaded(colour, basis, fours, a), basis, fours + 1, b)
            colour = _shaded(colour, basis, fours + 2, c)
        # In this order, so that what is not a number stays that.
        red, green, blue = colour
        store_three(colours, three, maximum(nothing, red), maximum(nothing, green), maximum(nothing, blue))


@njit(**_SETTINGS)
def forward_with_slopes(first, last, base, harmonics, means, position, degree, colours, by_means):
    """`forward`, and the gradients by the mean of the three sums, `by_means` [3 N 3]: all that `backward` needs of the harmonics,
    nine numbers instead of 45.
    """
    count = (degree + 1) * (degree + 1) - 1
    fours = count - count % 4
    basis, slopes = np.empty(15 * LANES, np.float32), np.empty(3 * LANES * LANES, np.float32)
    three, starts = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    nothing = fill(_ZERO)
    for begin in range(first, last, LANES):
        find_rows_of(3, begin, last, three)
        find_rows_of(3 * harmonics.shape[1], begin, last, starts)
        x, y, z, inverse = _direction(load_three(means, three), position)
        _basis(x, y, z, degree, basis)
        _slopes(x, y, z, degree, slopes)
        colour = load_three(base, three)
        slope = (nothing, nothing, nothing), (nothing, nothing, nothing), (nothing, nothing, nothing)
        for k in range(0, fours, 4):
            a, b, c, d = _load_four(harmonics, starts, k)
            colour = _shaded(_shaded(colour, basis, k, a), basis, k + 1, b)
            colour = _shaded(_shaded(colour, basis, k + 2, c), basis, k + 3, d)
            slope = _sloped(*_sloped(*slope, slopes, k, a), slopes, k + 1, b)
            slope = _sloped(*_sloped(*slope, slopes, k + 2, c), slopes, k + 3, d)
        if fours < count:
            a, b, c = _load_three(harmonics, starts, fours)
            colour = _shaded(_shaded(colour, basis, fours, a), basis, fours + 1, b)
            colour = _shaded(colour, basis, fours + 2, c)
            slope = _sloped(*_sloped(*slope, slopes, fours, a), slopes, fours + 1, b)
            slope = _sloped(*slope, slopes, fours + 2, c)
        red, green, blue = colour
        store_three(colours, three, maximum(nothing, red), maximum(nothing, green), maximum(nothing, blue))
        for k in range(3):
            gx, gy, gz = slope[0][k], slope[1][k], slope[2][k]
            # Only the part of the gradient across the direction moves it.
            along = gx * x + gy * y + gz * z
            gx, gy, gz = (gx - along * x) * inverse, (gy - along * y) * inverse, (gz - along * z) * inverse
            store_three(by_means[k], three, gx, gy, gz)


@njit(**_SETTINGS)
def backward(first, last, colours, slopes, gradient, by_base, by_means):
    """Writes the gradients of `forward`'s base and means in the rows first .. last; that of its base is that of the sum, too."""
    three = np.empty(LANES, np.int64)
    nothing = fill(_ZERO)
    for begin in range(first, last, LANES):
        find_rows_of(3, begin, last, three)
        (red, green, blue), (by_red, by_green, by_blue) = load_three(colours, three), load_three(gradient, three)
        red, green = select(red > _ZERO, by_red, nothing), select(green > _ZERO, by_green, nothing)
        blue = select(blue > _ZERO, by_blue, nothing)
        store_three(by_base, three, red, green, blue)
        a, b, c = load_three(slopes[0], three), load_three(slopes[1], three), load_three(slopes[2], three)
        store_three(
            by_means, three, red * a[0] + green * b[0] + blue * c[0],
            red * a[1] + green * b[1] + blue * c[1], red * a[2] + green * b[2] + blue * c[2],
        )  # fmt: skip


# Sixteen of 48 numbers, of which each of sixteen, or a triple, is repeated.
_thrice_a, _thrice_b, _thrice_c = (pattern([(16 * part + i) // 3 for i in range(LANES)]) for part in range(3))
_triple_a, _triple_b, _triple_c = (pattern([(16 * part + i) % 3 for i in range(LANES)]) for part in range(3))


@njit(**_INLINE)
def _write_some(begin, last, by_sum, means, position, degree, stored, room, out):
    """`write` of at most sixteen Gaussians, to the start of `out`, which must have room for 48 numbers from the last one's
    beginning.
    """
    three, basis, colours = room
    find_rows_of(3, begin, last, three)
    x, y, z, _ = _direction(load_three(means, three), position)
    _basis(x, y, z, degree, basis)
    for k in range((degree + 1) * (degree + 1) - 1, LANES):
        store(basis, k * LANES, fill(_ZERO))
    transpose(basis)
    n = min(LANES, last - begin)
    for i in range(n):
        for k in range(3):
            colours[3 * i + k] = by_sum[begin + i, k]
    for i in range(n):
        value, colour, at = load(basis, i * LANES), load(colours, 3 * i), 3 * stored * i
        # What is too much is written over by the next one.
        store(out, at, _thrice_a(value, value) * _triple_a(colour, colour))
        store(out, at + LANES, _thrice_b(value, value) * _triple_b(colour, colour))
        store(out, at + 2 * LANES, _thrice_c(value, value) * _triple_c(colour, colour))


@njit(**_INLINE)
def _room(stored):
    """Room for `_write_some`, and for what it writes."""
    room = np.empty(LANES, np.int64), np.empty(LANES**2, np.float32), np.zeros(4 * LANES, np.float32)
    return room, np.empty(3 * (stored + 1) * LANES, np.float32)


@njit(**_SETTINGS)
def write(first, last, by_sum, means, position, degree, stored, gradient):
    """Writes the gradient of the coefficients, rows first .. last of `gradient`, flat [N `stored` 3], from that of the sum
    [N 3]; coefficients above `degree` get zero.
    """
    room, some = _room(stored)
    width = 3 * stored
    for begin in range(first, last, LANES):
        end = min(begin + LANES, last)
        _write_some(begin, last, by_sum, means, position, degree, stored, room, some)
        gradient[begin * width : end * width] = some[: (end - begin) * width]


@njit(**_SETTINGS)
def step(
    first, last, by_sum, means, position, degree, stored,
    values, moments, squares, fade, fade_squares, rate, root, epsilon,
):  # fmt: skip
    """Adam's step of the coefficients in the rows first .. last, see `adam.step`; `write`'s gradient stays in the cache."""
    room, some = _room(stored)
    width = 3 * stored
    for begin in range(first, last, LANES):
        end = min(begin + LANES, last)
        _write_some(begin, last, by_sum, means, position, degree, stored, room, some)
        here = slice(begin * width, end * width)
        step_numbers(
            values[here], some, moments[here], squares[here],
            fade, fade_squares, rate, root, epsilon, (end - begin) * width,
        )  # fmt: skip
