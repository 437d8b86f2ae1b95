"""Gaussians to ellipses on the screen, and their gradients back: one pass each, nothing kept in between.

A Gaussian with mean m, rotation Q and standard deviations s has covariance Q diag(s²) Qᵀ. In the camera's frame its
mean is t = R m + translation; the perspective map is replaced by its derivative J at t (EWA splatting, Zwicker et al.
2001), so on the screen it has covariance E Eᵀ + blur with the 2 x 3 matrix E = J R Q diag(s).

J is taken at a point moved to within 0.3 half-pictures of the picture's edge, as in 3DGS and gsplat: further out the
linear map blows up.

Besides the covariance (xx, xy, yy), `project` gives its root: the upper triangular U = [[p, q], [0, r]] with
inverse(covariance) = Uᵀ U, by which a Gaussian's exponent is a sum of squares, |U d|² / 2, and never a difference of
large numbers. The determinant comes from |e x f|² for the rows e, f of E, for the same reason.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import float32, njit

# No fast-math for NaN and infinity: the tests for them must survive.
_RELAXED = {"nsz", "contract", "reassoc", "arcp"}
_SETTINGS = {"nogil": True, "cache": True, "fastmath": _RELAXED, "error_model": "numpy"}
_INLINE = _SETTINGS | {"forceinline": True}
_ONE, _TWO, _HALF = np.float32(1), np.float32(2), np.float32(0.5)
# Whatever is larger on the screen (in pixels, or square pixels) is taken for infinite.
_FINITE = np.float32(1e18)
_LARGEST_RADIUS = np.float32(1e9)


class Pinhole(NamedTuple):
    """A camera as the kernels want it: float32 numbers, and arrays of them.

    `rotation` [9] (row by row) and `translation` [3] lead from the world to the camera; `low` and `high` bound x / z
    and y / z where the derivative of the perspective is taken.
    """

    rotation: tuple
    translation: tuple
    focal_x: np.float32
    focal_y: np.float32
    centre_x: np.float32
    centre_y: np.float32
    width: np.float32
    height: np.float32
    near: np.float32
    low_x: np.float32
    high_x: np.float32
    low_y: np.float32
    high_y: np.float32
    blur: np.float32
    alpha_min: np.float32


@njit(**_INLINE)
def _rotation(w, x, y, z):
    """The rotation matrix of a unit quaternion, row by row."""
    return (
        _ONE - _TWO * (y * y + z * z),
        _TWO * (x * y - w * z),
        _TWO * (x * z + w * y),
        _TWO * (x * y + w * z),
        _ONE - _TWO * (x * x + z * z),
        _TWO * (y * z - w * x),
        _TWO * (x * z - w * y),
        _TWO * (y * z + w * x),
        _ONE - _TWO * (x * x + y * y),
    )


@njit(**_INLINE)
def _seen(means, i, camera):
    """The mean in the camera's frame."""
    m0, m1, m2 = means[i, 0], means[i, 1], means[i, 2]
    r, t = camera.rotation, camera.translation
    return (
        r[0] * m0 + r[1] * m1 + r[2] * m2 + t[0],
        r[3] * m0 + r[4] * m1 + r[5] * m2 + t[1],
        r[6] * m0 + r[7] * m1 + r[8] * m2 + t[2],
    )


@njit(**_INLINE)
def _derivative(x, y, z, camera):
    """J R, the derivative of the screen position by the mean: its two rows, the point where it is taken, and 1 / z."""
    inverse = _ONE / z
    near_x = z * min(max(x * inverse, camera.low_x), camera.high_x)
    near_y = z * min(max(y * inverse, camera.low_y), camera.high_y)
    scale_x, scale_y = camera.focal_x * inverse, camera.focal_y * inverse
    slope_x, slope_y = -scale_x * near_x * inverse, -scale_y * near_y * inverse
    r = camera.rotation
    row_x = (scale_x * r[0] + slope_x * r[6], scale_x * r[1] + slope_x * r[7], scale_x * r[2] + slope_x * r[8])
    row_y = (scale_y * r[3] + slope_y * r[6], scale_y * r[4] + slope_y * r[7], scale_y * r[5] + slope_y * r[8])
    return row_x, row_y, near_x, near_y, inverse


@njit(**_INLINE)
def _times_matrix(row, m):
    """A row times a 3 x 3 matrix."""
    return (
        row[0] * m[0] + row[1] * m[3] + row[2] * m[6],
        row[0] * m[1] + row[1] * m[4] + row[2] * m[7],
        row[0] * m[2] + row[1] * m[5] + row[2] * m[8],
    )


@njit(**_SETTINGS)
def _leave_out(i, means2d, covariances, roots, depths, radii):
    """Zeros for a splat that is not drawn."""
    means2d[i, 0] = means2d[i, 1] = depths[i] = float32(0)
    covariances[i, 0] = covariances[i, 1] = covariances[i, 2] = float32(0)
    roots[i, 0] = roots[i, 1] = roots[i, 2] = float32(0)
    radii[i, 0] = radii[i, 1] = 0


@njit(**_SETTINGS)
def project(first, last, means, quats, scales, opacities, camera, means2d, covariances, roots, depths, radii):
    """Projects the Gaussians first .. last - 1; all arrays float32 but `radii`, int32.

    Reads means [N 3], quats [N 4] (wxyz, any length), scales [N 3], opacities [N]. Writes means2d [N 2], covariances
    [N 3], roots [N 3], depths [N] and radii [N 2]: the half extents of the box in which alpha reaches
    `camera.alpha_min`, rounded up. What is too near, outside the picture, too faint anywhere, or not finite gets radii
    0 and zeros everywhere.
    """
    faintest = _ONE / camera.alpha_min
    for i in range(first, last):
        x, y, z = _seen(means, i, camera)
        opacity = opacities[i]
        # Written so that NaN fails every test.
        if not (z >= camera.near and z < _FINITE and opacity >= camera.alpha_min and opacity < _FINITE):
            _leave_out(i, means2d, covariances, roots, depths, radii)
            continue
        # alpha = opacity exp(-d² / 2) falls to alpha_min at this many standard deviations.
        reach = math.sqrt(_TWO * max(math.log(opacity * faintest), float32(0)))
        w0, w1, w2, w3 = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
        length = _ONE / math.sqrt(w0 * w0 + w1 * w1 + w2 * w2 + w3 * w3)
        matrix = _rotation(w0 * length, w1 * length, w2 * length, w3 * length)
        row_x, row_y, _, _, inverse = _derivative(x, y, z, camera)
        e0, e1, e2 = _times_matrix(row_x, matrix)
        f0, f1, f2 = _times_matrix(row_y, matrix)
        s0, s1, s2 = scales[i, 0], scales[i, 1], scales[i, 2]
        e0, e1, e2, f0, f1, f2 = e0 * s0, e1 * s1, e2 * s2, f0 * s0, f1 * s1, f2 * s2
        ee, ff = e0 * e0 + e1 * e1 + e2 * e2, f0 * f0 + f1 * f1 + f2 * f2
        xx, xy, yy = ee + camera.blur, e0 * f0 + e1 * f1 + e2 * f2, ff + camera.blur
        c0, c1, c2 = e1 * f2 - e2 * f1, e2 * f0 - e0 * f2, e0 * f1 - e1 * f0
        determinant = c0 * c0 + c1 * c1 + c2 * c2 + camera.blur * (ee + ff + camera.blur)
        u = camera.focal_x * x * inverse + camera.centre_x
        v = camera.focal_y * y * inverse + camera.centre_y
        if not (abs(u) < _FINITE and abs(v) < _FINITE and xx < _FINITE and yy < _FINITE and determinant > 0):
            _leave_out(i, means2d, covariances, roots, depths, radii)
            continue
        deviation_y = math.sqrt(yy)
        half_x, half_y = reach * math.sqrt(xx), reach * deviation_y
        outside_x = u + half_x <= 0 or u - half_x >= camera.width
        if outside_x or v + half_y <= 0 or v - half_y >= camera.height:
            _leave_out(i, means2d, covariances, roots, depths, radii)
            continue
        means2d[i, 0], means2d[i, 1], depths[i] = u, v, z
        covariances[i, 0], covariances[i, 1], covariances[i, 2] = xx, xy, yy
        root_p, root_r = deviation_y / math.sqrt(determinant), _ONE / deviation_y
        roots[i, 0], roots[i, 1], roots[i, 2] = root_p, -root_p * xy * root_r * root_r, root_r
        radii[i, 0] = math.ceil(min(max(half_x, _ONE), _LARGEST_RADIUS))
        radii[i, 1] = math.ceil(min(max(half_y, _ONE), _LARGEST_RADIUS))


@njit(**_SETTINGS)
def project_backward(
    first, last, means, quats, scales, camera, radii,
    grad_means2d, grad_covariances, grad_depths, grad_means, grad_quats, grad_scales,
):  # fmt: skip
    """The gradients of means, quats and scales from those of what `project` wrote; zeros where radii are 0."""
    for i in range(first, last):
        if radii[i, 0] == 0:
            grad_means[i, 0] = grad_means[i, 1] = grad_means[i, 2] = float32(0)
            grad_quats[i, 0] = grad_quats[i, 1] = grad_quats[i, 2] = grad_quats[i, 3] = float32(0)
            grad_scales[i, 0] = grad_scales[i, 1] = grad_scales[i, 2] = float32(0)
            continue
        x, y, z = _seen(means, i, camera)
        w0, w1, w2, w3 = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
        length = _ONE / math.sqrt(w0 * w0 + w1 * w1 + w2 * w2 + w3 * w3)
        w0, w1, w2, w3 = w0 * length, w1 * length, w2 * length, w3 * length
        q = _rotation(w0, w1, w2, w3)
        row_x, row_y, near_x, near_y, inverse = _derivative(x, y, z, camera)
        e, f = _times_matrix(row_x, q), _times_matrix(row_y, q)
        s0, s1, s2 = scales[i, 0], scales[i, 1], scales[i, 2]

        # The covariance is E Eᵀ + blur with E's rows e s and f s, so E's gradient is 2 G E; xy stands for both corners.
        g_xx, g_xy, g_yy = _TWO * grad_covariances[i, 0], grad_covariances[i, 1], _TWO * grad_covariances[i, 2]
        ge0, ge1, ge2 = (
            s0 * (g_xx * e[0] + g_xy * f[0]),
            s1 * (g_xx * e[1] + g_xy * f[1]),
            s2 * (g_xx * e[2] + g_xy * f[2]),
        )
        gf0, gf1, gf2 = (
            s0 * (g_xy * e[0] + g_yy * f[0]),
            s1 * (g_xy * e[1] + g_yy * f[1]),
            s2 * (g_xy * e[2] + g_yy * f[2]),
        )
        grad_scales[i, 0] = ge0 * e[0] + gf0 * f[0]
        grad_scales[i, 1] = ge1 * e[1] + gf1 * f[1]
        grad_scales[i, 2] = ge2 * e[2] + gf2 * f[2]
        ge0, ge1, ge2, gf0, gf1, gf2 = ge0 * s0, ge1 * s1, ge2 * s2, gf0 * s0, gf1 * s1, gf2 * s2

        # The rotation's gradient, then the unit quaternion's, then (across the sphere) the quaternion's.
        r0, r1, r2 = row_x[0] * ge0 + row_y[0] * gf0, row_x[0] * ge1 + row_y[0] * gf1, row_x[0] * ge2 + row_y[0] * gf2
        r3, r4, r5 = row_x[1] * ge0 + row_y[1] * gf0, row_x[1] * ge1 + row_y[1] * gf1, row_x[1] * ge2 + row_y[1] * gf2
        r6, r7, r8 = row_x[2] * ge0 + row_y[2] * gf0, row_x[2] * ge1 + row_y[2] * gf1, row_x[2] * ge2 + row_y[2] * gf2
        h0 = _TWO * (w1 * (r7 - r5) + w2 * (r2 - r6) + w3 * (r3 - r1))
        h1 = _TWO * (-_TWO * w1 * (r4 + r8) + w2 * (r1 + r3) + w3 * (r2 + r6) + w0 * (r7 - r5))
        h2 = _TWO * (w1 * (r1 + r3) - _TWO * w2 * (r0 + r8) + w3 * (r5 + r7) + w0 * (r2 - r6))
        h3 = _TWO * (w1 * (r2 + r6) + w2 * (r5 + r7) - _TWO * w3 * (r0 + r4) + w0 * (r3 - r1))
        along = h0 * w0 + h1 * w1 + h2 * w2 + h3 * w3
        grad_quats[i, 0] = (h0 - along * w0) * length
        grad_quats[i, 1] = (h1 - along * w1) * length
        grad_quats[i, 2] = (h2 - along * w2) * length
        grad_quats[i, 3] = (h3 - along * w3) * length

        # The gradient of J: only its four non-zero entries, each a row of (the gradient of J R) times a row of R.
        a0, a1, a2 = (
            ge0 * q[0] + ge1 * q[1] + ge2 * q[2],
            ge0 * q[3] + ge1 * q[4] + ge2 * q[5],
            ge0 * q[6] + ge1 * q[7] + ge2 * q[8],
        )
        b0, b1, b2 = (
            gf0 * q[0] + gf1 * q[1] + gf2 * q[2],
            gf0 * q[3] + gf1 * q[4] + gf2 * q[5],
            gf0 * q[6] + gf1 * q[7] + gf2 * q[8],
        )
        r = camera.rotation
        g_scale_x, g_slope_x = a0 * r[0] + a1 * r[1] + a2 * r[2], a0 * r[6] + a1 * r[7] + a2 * r[8]
        g_scale_y, g_slope_y = b0 * r[3] + b1 * r[4] + b2 * r[5], b0 * r[6] + b1 * r[7] + b2 * r[8]

        square = inverse * inverse
        fx, fy = camera.focal_x, camera.focal_y
        gu, gv = grad_means2d[i, 0], grad_means2d[i, 1]
        gx, gy = fx * inverse * gu, fy * inverse * gv
        gz = grad_depths[i] - (fx * x * gu + fy * y * gv) * square
        gz += square * (
            _TWO * inverse * (fx * near_x * g_slope_x + fy * near_y * g_slope_y) - fx * g_scale_x - fy * g_scale_y
        )
        # The point of the derivative moves with the mean, or, where it is held at the edge, with its depth alone.
        g_near_x, g_near_y = -fx * square * g_slope_x, -fy * square * g_slope_y
        if camera.low_x <= x * inverse <= camera.high_x:
            gx += g_near_x
        else:
            gz += g_near_x * near_x * inverse
        if camera.low_y <= y * inverse <= camera.high_y:
            gy += g_near_y
        else:
            gz += g_near_y * near_y * inverse
        grad_means[i, 0] = r[0] * gx + r[3] * gy + r[6] * gz
        grad_means[i, 1] = r[1] * gx + r[4] * gy + r[7] * gz
        grad_means[i, 2] = r[2] * gx + r[5] * gy + r[8] * gz
