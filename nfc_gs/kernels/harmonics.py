"""View-dependent colour from spherical harmonics of degree 1 to 3, forward and backward, one pass over the Gaussians.

The constants, signs and order are those of 3DGS (Kerbl et al. 2023): real harmonics with the Condon-Shortley phase,
within a degree from m = -l to m = l.
"""

import math

import numpy as np
from numba import float32, njit

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
_SETTINGS = {"nogil": True, "fastmath": True, "error_model": "numpy", "cache": True}


@njit(**_SETTINGS)
def _direction(means, position, i):
    """The unit vector from the camera to Gaussian i and the inverse distance; zeros where they coincide."""
    x = means[i, 0] - position[0]
    y = means[i, 1] - position[1]
    z = means[i, 2] - position[2]
    square = x * x + y * y + z * z
    inverse = float32(0)
    if square > 0:
        inverse = float32(1) / math.sqrt(square)
    return x * inverse, y * inverse, z * inverse, inverse


@njit(**_SETTINGS)
def _basis(x, y, z, degree, basis):
    """Fills `basis` with the harmonics of degree 1 to `degree` at the unit vector (x, y, z)."""
    basis[0] = -_C1 * y
    basis[1] = _C1 * z
    basis[2] = -_C1 * x
    if degree > 1:
        xx, yy, zz = x * x, y * y, z * z
        basis[3] = _C20 * x * y
        basis[4] = _C21 * y * z
        basis[5] = _C22 * (_2 * zz - xx - yy)
        basis[6] = _C23 * x * z
        basis[7] = _C24 * (xx - yy)
        if degree > 2:
            basis[8] = _C30 * y * (_3 * xx - yy)
            basis[9] = _C31 * x * y * z
            basis[10] = _C32 * y * (_4 * zz - xx - yy)
            basis[11] = _C33 * z * (_2 * zz - _3 * xx - _3 * yy)
            basis[12] = _C34 * x * (_4 * zz - xx - yy)
            basis[13] = _C35 * z * (xx - yy)
            basis[14] = _C36 * x * (xx - _3 * yy)


@njit(**_SETTINGS)
def forward(first, last, base, harmonics, means, position, degree, colours):
    """Writes colours [N 3] = max(0, base + sum of harmonics [N L 3] up to `degree`) in the rows first .. last."""
    count = (degree + 1) * (degree + 1) - 1
    basis = np.empty(15, np.float32)
    for i in range(first, last):
        x, y, z, _ = _direction(means, position, i)
        _basis(x, y, z, degree, basis)
        red, green, blue = base[i, 0], base[i, 1], base[i, 2]
        for k in range(count):
            red += basis[k] * harmonics[i, k, 0]
            green += basis[k] * harmonics[i, k, 1]
            blue += basis[k] * harmonics[i, k, 2]
        colours[i, 0] = max(red, float32(0))
        colours[i, 1] = max(green, float32(0))
        colours[i, 2] = max(blue, float32(0))


@njit(**_SETTINGS)
def backward(
    first,
    last,
    harmonics,
    means,
    position,
    degree,
    colours,
    gradient,
    by_base,
    by_harmonics,
    by_means,
):
    """Writes the gradients of `forward`'s inputs in the rows first .. last; coefficients above `degree` get zero."""
    count = (degree + 1) * (degree + 1) - 1
    stored = harmonics.shape[1]
    basis = np.empty(15, np.float32)
    pull = np.empty(15, np.float32)  # d loss / d basis
    zero = float32(0)
    for i in range(first, last):
        red = gradient[i, 0] if colours[i, 0] > 0 else zero
        green = gradient[i, 1] if colours[i, 1] > 0 else zero
        blue = gradient[i, 2] if colours[i, 2] > 0 else zero
        by_base[i, 0], by_base[i, 1], by_base[i, 2] = red, green, blue
        if red == 0 and green == 0 and blue == 0:  # not drawn: most Gaussians, in most views
            for k in range(stored):
                for c in range(3):
                    by_harmonics[i, k, c] = zero
            for c in range(3):
                by_means[i, c] = zero
            continue
        x, y, z, inverse = _direction(means, position, i)
        _basis(x, y, z, degree, basis)
        for k in range(count):
            by_harmonics[i, k, 0] = basis[k] * red
            by_harmonics[i, k, 1] = basis[k] * green
            by_harmonics[i, k, 2] = basis[k] * blue
            pull[k] = red * harmonics[i, k, 0] + green * harmonics[i, k, 1] + blue * harmonics[i, k, 2]
        for k in range(count, stored):
            for c in range(3):
                by_harmonics[i, k, c] = zero
        gx = -_C1 * pull[2]
        gy = -_C1 * pull[0]
        gz = _C1 * pull[1]
        if degree > 1:
            xx, yy, zz = x * x, y * y, z * z
            p0, p1, p2, p3, p4 = (
                _C20 * pull[3],
                _C21 * pull[4],
                _2 * _C22 * pull[5],
                _C23 * pull[6],
                _2 * _C24 * pull[7],
            )
            gx += p0 * y - p2 * x + p3 * z + p4 * x
            gy += p0 * x + p1 * z - p2 * y - p4 * y
            gz += p1 * y + _2 * p2 * z + p3 * x
            if degree > 2:
                q0, q1, q2, q3 = _C30 * pull[8], _C31 * pull[9], _C32 * pull[10], _C33 * pull[11]
                q4, q5, q6 = _C34 * pull[12], _C35 * pull[13], _C36 * pull[14]
                gx += _6 * q0 * x * y + q1 * y * z - _2 * q2 * x * y - _6 * q3 * x * z
                gx += q4 * (_4 * zz - _3 * xx - yy) + _2 * q5 * x * z + _3 * q6 * (xx - yy)
                gy += _3 * q0 * (xx - yy) + q1 * x * z + q2 * (_4 * zz - xx - _3 * yy) - _6 * q3 * y * z
                gy += -_2 * q4 * x * y - _2 * q5 * y * z - _6 * q6 * x * y
                gz += q1 * x * y + _8 * q2 * y * z + _3 * q3 * (_2 * zz - xx - yy) + _8 * q4 * x * z + q5 * (xx - yy)
        # Only the part of the gradient across the direction moves it.
        along = gx * x + gy * y + gz * z
        by_means[i, 0] = (gx - along * x) * inverse
        by_means[i, 1] = (gy - along * y) * inverse
        by_means[i, 2] = (gz - along * z) * inverse
