"""View-dependent colour from spherical harmonics of degree 1 to 3, forward and backward, one pass over the Gaussians.

The constants, signs and order are those of 3DGS (Kerbl et al. 2023): real harmonics with the Condon-Shortley phase,
within a degree from m = -l to m = l. Sixteen Gaussians at a time, a lane each: see `simd`.
"""

import numpy as np
from numba import njit

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


@njit(**_INLINE)
def _pulled(pull, k, colour, coefficients):
    """Writes the gradient of one harmonic."""
    red, green, blue = colour
    x, y, z = coefficients
    store(pull, k * LANES, red * x + green * y + blue * z)


@njit(**_INLINE)
def _by_direction(x, y, z, degree, pull):
    """The gradient of the unit vectors from those of the harmonics [15 16]."""
    gx, gy, gz = -_C1 * load(pull, 2 * LANES), -_C1 * load(pull, 0), _C1 * load(pull, LANES)
    if degree > 1:
        xx, yy, zz = x * x, y * y, z * z
        p0, p1, p2 = _C20 * load(pull, 3 * LANES), _C21 * load(pull, 4 * LANES), _2 * _C22 * load(pull, 5 * LANES)
        p3, p4 = _C23 * load(pull, 6 * LANES), _2 * _C24 * load(pull, 7 * LANES)
        gx = gx + p0 * y - p2 * x + p3 * z + p4 * x
        gy = gy + p0 * x + p1 * z - p2 * y - p4 * y
        gz = gz + p1 * y + _2 * p2 * z + p3 * x
        if degree > 2:
            q0, q1, q2 = _C30 * load(pull, 8 * LANES), _C31 * load(pull, 9 * LANES), _C32 * load(pull, 10 * LANES)
            q3, q4, q5 = _C33 * load(pull, 11 * LANES), _C34 * load(pull, 12 * LANES), _C35 * load(pull, 13 * LANES)
            q6 = _C36 * load(pull, 14 * LANES)
            gx = gx + _6 * q0 * x * y + q1 * y * z - _2 * q2 * x * y - _6 * q3 * x * z
            gx = gx + q4 * (_4 * zz - _3 * xx - yy) + _2 * q5 * x * z + _3 * q6 * (xx - yy)
            gy = gy + _3 * q0 * (xx - yy) + q1 * x * z + q2 * (_4 * zz - xx - _3 * yy) - _6 * q3 * y * z
            gy = gy - _2 * q4 * x * y - _2 * q5 * y * z - _6 * q6 * x * y
            gz = gz + q1 * x * y + _8 * q2 * y * z + _3 * q3 * (_2 * zz - xx - yy) + _8 * q4 * x * z + q5 * (xx - yy)
    return gx, gy, gz


@njit(**_SETTINGS)
def backward(
    first, last, harmonics, means, position, degree, colours, gradient, by_base, by_harmonics, by_means
):  # fmt: skip
    """Writes the gradients of `forward`'s inputs in the rows first .. last; coefficients above `degree` get zero."""
    count, stored = (degree + 1) * (degree + 1) - 1, harmonics.shape[1]
    fours = count - count % 4
    basis, pull = np.zeros(LANES**2, np.float32), np.empty(15 * LANES, np.float32)  # pull is d loss / d basis
    three, starts = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    incoming = np.empty(3 * LANES, np.float32)
    nothing = fill(_ZERO)
    for begin in range(first, last, LANES):
        find_rows_of(3, begin, last, three)
        find_rows_of(3 * stored, begin, last, starts)
        (red, green, blue), (by_red, by_green, by_blue) = load_three(colours, three), load_three(gradient, three)
        red, green = select(red > _ZERO, by_red, nothing), select(green > _ZERO, by_green, nothing)
        colour = red, green, select(blue > _ZERO, by_blue, nothing)
        store_three(by_base, three, colour[0], colour[1], colour[2])
        x, y, z, inverse = _direction(load_three(means, three), position)
        _basis(x, y, z, degree, basis)
        # All that is read of other rows first: what was just written would hold it up.
        for k in range(0, fours, 4):
            a, b, c, d = _load_four(harmonics, starts, k)
            _pulled(pull, k, colour, a)
            _pulled(pull, k + 1, colour, b)
            _pulled(pull, k + 2, colour, c)
            _pulled(pull, k + 3, colour, d)
        if fours < count:
            a, b, c = _load_three(harmonics, starts, fours)
            _pulled(pull, fours, colour, a)
            _pulled(pull, fours + 1, colour, b)
            _pulled(pull, fours + 2, colour, c)
        gx, gy, gz = _by_direction(x, y, z, degree, pull)
        # Only the part of the gradient across the direction moves it.
        along = gx * x + gy * y + gz * z
        store_three(by_means, three, (gx - along * x) * inverse, (gy - along * y) * inverse, (gz - along * z) * inverse)
        for lane, lanes in enumerate(colour):
            store(incoming, lane * LANES, lanes)
        transpose(basis)
        for lane in range(min(LANES, last - begin)):
            red, green, blue = incoming[lane], incoming[LANES + lane], incoming[2 * LANES + lane]
            row = by_harmonics[begin + lane]
            for k in range(count):
                value = basis[lane * LANES + k]
                row[k, 0], row[k, 1], row[k, 2] = value * red, value * green, value * blue
            row[count:] = _ZERO
