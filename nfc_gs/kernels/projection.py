"""Gaussians to ellipses on the screen, and their gradients back: one pass each, nothing kept in between.

A Gaussian with mean m, rotation Q and standard deviations s has covariance Q diag(s²) Qᵀ. In the camera's frame its
mean is t = R m + translation; the perspective map is replaced by its derivative J at t (EWA splatting, Zwicker et al.
2001), so on the screen it has covariance E Eᵀ + blur with the 2 x 3 matrix E = J R Q diag(s).

J is taken at a point moved to within 0.3 half-pictures of the picture's edge, as in 3DGS and gsplat: further out the
linear map blows up.

Of the inverse covariance (xx, xy, yy) a Gaussian has the root: the upper triangular U = [[p, q], [0, r]] with
inverse(covariance) = Uᵀ U, by which its exponent is a sum of squares, |U d|² / 2, and never a difference of large
numbers. The determinant comes from |e x f|² for the rows e, f of E, for the same reason.

Sixteen Gaussians at a time, a lane each: see `simd`.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from nfc_gs.kernels.compositing import GU, GVV
from nfc_gs.kernels.simd import (
    LANES,
    absolute,
    ceil,
    fill,
    find_rows_of,
    gather,
    load_columns,
    load_three,
    log2,
    maximum,
    minimum,
    scatter,
    select,
    sqrt,
    store_columns,
    store_three,
)
from nfc_gs.kernels.tiles import (
    DISTANCE_SCALE,
    HALF_HEIGHT,
    MEAN_X,
    ROOT_R,
    ROOT_SCALE,
    ROW,
    SLACK,
)

# No fast-math for NaN and infinity: the tests for them must survive.
_RELAXED = {"nsz", "contract", "reassoc", "arcp"}
_SETTINGS = {"nogil": True, "cache": True, "fastmath": _RELAXED, "error_model": "numpy"}
_INLINE = _SETTINGS | {"forceinline": True}
_ZERO, _ONE, _TWO, _HALF = np.float32(0), np.float32(1), np.float32(2), np.float32(0.5)
# Whatever is larger on the screen (in pixels, or square pixels) is taken for infinite.
_FINITE = np.float32(1e18)
_LARGEST_RADIUS = np.float32(1e9)
# Added to the reach so that rounding never takes a pixel from a splat.
_MARGIN = np.float32(1e-4)
# What takes the scale of the root, or of its square, away from gradients.
_UNSCALE = np.float32(1 / ROOT_SCALE**2)
_SQUARE = np.float32(1 / ROOT_SCALE**4)


class Pinhole(NamedTuple):
    """A camera as the kernels want it: float32 numbers, and arrays of them.

    `rotation` [9] (row by row) and `translation` [3] lead from the world to the camera; `low` and `high` bound x / z
    and y / z where the derivative of the perspective is taken; `log_alpha_min` is to base 2.
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
    log_alpha_min: np.float32


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
def _seen(mean, camera):
    """The mean in the camera's frame."""
    m0, m1, m2 = mean
    r, t = camera.rotation, camera.translation
    return (
        r[0] * m0 + r[1] * m1 + r[2] * m2 + t[0],
        r[3] * m0 + r[4] * m1 + r[5] * m2 + t[1],
        r[6] * m0 + r[7] * m1 + r[8] * m2 + t[2],
    )


@njit(**_INLINE)
def _within(x, low, high):
    """`x`, or the bound that it is beyond."""
    return minimum(maximum(x, fill(low)), fill(high))


@njit(**_INLINE)
def _derivative(x, y, z, camera):
    """J R, the derivative of the screen position by the mean: its two rows, the point where it is taken, and 1 / z."""
    inverse = _ONE / z
    near_x = z * _within(x * inverse, camera.low_x, camera.high_x)
    near_y = z * _within(y * inverse, camera.low_y, camera.high_y)
    scale_x, scale_y = camera.focal_x * inverse, camera.focal_y * inverse
    slope_x, slope_y = _ZERO - scale_x * near_x * inverse, _ZERO - scale_y * near_y * inverse
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


@njit(**_INLINE)
def _unit(quat):
    """The quaternion made one of length 1, and what it was multiplied by."""
    w, x, y, z = quat
    factor = _ONE / sqrt(w * w + x * x + y * y + z * z)
    return (w * factor, x * factor, y * factor, z * factor), factor


@njit(**_SETTINGS)
def project(first, last, means, quats, scales, opacities, camera, means2d, depths, radii, rows):
    """Projects the Gaussians first .. last - 1; all arrays float32 but `radii`, int32.

    Reads means [N 3], quats [N 4] (wxyz, any length), scales [N 3], opacities [N]. Writes means2d [N 2], depths [N], radii
    [N 2], the half extents of the box in which alpha reaches `camera.alpha_min`, rounded up, and the rows [N 16] that
    `tiles` describes. What is too near, outside the picture, too faint anywhere, or not finite gets radii 0, zeros, and a
    row of no meaning.
    """
    starts = np.empty((5, LANES), np.int64)
    one, two, three, four, row = starts[0], starts[1], starts[2], starts[3], starts[4]
    nothing = fill(_ZERO)
    for begin in range(first, last, LANES):
        find_rows_of(1, begin, last, one)
        find_rows_of(2, begin, last, two)
        find_rows_of(3, begin, last, three)
        find_rows_of(4, begin, last, four)
        find_rows_of(ROW, begin, last, row)
        x, y, z = _seen(load_three(means, three), camera)
        opacity = gather(opacities, one, 0)
        quat, _ = _unit(load_columns(quats, four, 0))
        matrix = _rotation(quat[0], quat[1], quat[2], quat[3])
        row_x, row_y, _, _, inverse = _derivative(x, y, z, camera)
        e0, e1, e2 = _times_matrix(row_x, matrix)
        f0, f1, f2 = _times_matrix(row_y, matrix)
        s0, s1, s2 = load_three(scales, three)
        e0, e1, e2, f0, f1, f2 = e0 * s0, e1 * s1, e2 * s2, f0 * s0, f1 * s1, f2 * s2
        ee, ff = e0 * e0 + e1 * e1 + e2 * e2, f0 * f0 + f1 * f1 + f2 * f2
        xx, xy, yy = ee + camera.blur, e0 * f0 + e1 * f1 + e2 * f2, ff + camera.blur
        c0, c1, c2 = e1 * f2 - e2 * f1, e2 * f0 - e0 * f2, e0 * f1 - e1 * f0
        determinant = c0 * c0 + c1 * c1 + c2 * c2 + camera.blur * (ee + ff + camera.blur)
        u = camera.focal_x * x * inverse + camera.centre_x
        v = camera.focal_y * y * inverse + camera.centre_y

        # alpha = 2^(log2 opacity - |U d|²), with the root scaled to base 2, is alpha_min where |U d|² is the reach.
        log_opacity = log2(opacity)
        reach = log_opacity - camera.log_alpha_min
        deviation_x, deviation_y = sqrt(xx), sqrt(yy)
        distance = sqrt(maximum(reach, nothing)) * DISTANCE_SCALE
        half_x, half_y = distance * deviation_x, distance * deviation_y
        # Written so that NaN fails every test.
        drawn = (z >= camera.near) & (z < _FINITE) & (opacity >= camera.alpha_min) & (opacity < _FINITE)
        drawn = drawn & (absolute(u) < _FINITE) & (absolute(v) < _FINITE) & (xx < _FINITE) & (yy < _FINITE)
        drawn = drawn & (determinant > _ZERO) & (u + half_x > _ZERO) & (u - half_x < camera.width)
        drawn = drawn & (v + half_y > _ZERO) & (v - half_y < camera.height)
        scatter(means2d, two, 0, select(drawn, u, nothing))
        scatter(means2d, two, 1, select(drawn, v, nothing))
        scatter(depths, one, 0, select(drawn, z, nothing))
        extent_x, extent_y = _within(half_x, _ONE, _LARGEST_RADIUS), _within(half_y, _ONE, _LARGEST_RADIUS)
        scatter(radii, two, 0, select(drawn, ceil(extent_x), nothing))
        scatter(radii, two, 1, select(drawn, ceil(extent_y), nothing))

        root_p, root_r = deviation_y / sqrt(determinant), _ONE / deviation_y
        slant = xy * root_r * root_r
        reach = (reach + _MARGIN) * SLACK
        distance = sqrt(maximum(reach, nothing)) * DISTANCE_SCALE
        scaled = root_p * ROOT_SCALE
        store_columns(rows, row, MEAN_X, u, v, scaled, nothing - scaled * slant)
        store_columns(rows, row, ROOT_R, root_r * ROOT_SCALE, log_opacity, opacity, reach)
        width = DISTANCE_SCALE / root_p
        store_columns(rows, row, HALF_HEIGHT, distance * deviation_y, distance * xy / deviation_x, slant, width)


@njit(**_INLINE)
def _store_drawn(array, starts, drawn, numbers):
    """Writes three numbers a Gaussian; zeros where it is not drawn."""
    x, y, z = numbers
    nothing = fill(_ZERO)
    store_three(array, starts, select(drawn, x, nothing), select(drawn, y, nothing), select(drawn, z, nothing))


@njit(**_SETTINGS)
def project_backward(
    first, last, means, quats, scales, camera, radii, rows, gradients, depth,
    grad_means2d, grad_opacities, grad_means, grad_quats, grad_scales,
):  # fmt: skip
    """What compositing gave for the Gaussians first .. last - 1, told in terms of what `project` reads; zeros where radii
    are 0.

    Reads `gradients` [at least N rows, _], whose columns are GU, ... and, if it is not negative, `depth`, that of the
    depths. The gradient of -|U d|²/2 by the mean on the screen is Uᵀ U d, and by the covariance (Uᵀ U d)(Uᵀ U d)ᵀ / 2.
    """
    starts = np.empty((6, LANES), np.int64)
    one, two, three, four, row, sums = starts[0], starts[1], starts[2], starts[3], starts[4], starts[5]
    nothing = fill(_ZERO)
    for begin in range(first, last, LANES):
        find_rows_of(1, begin, last, one)
        find_rows_of(2, begin, last, two)
        find_rows_of(3, begin, last, three)
        find_rows_of(4, begin, last, four)
        find_rows_of(ROW, begin, last, row)
        find_rows_of(gradients.shape[1], begin, last, sums)
        drawn = gather(radii, two, 0) > _ZERO
        x, y, z = _seen(load_three(means, three), camera)
        (w0, w1, w2, w3), length = _unit(load_columns(quats, four, 0))
        q = _rotation(w0, w1, w2, w3)
        row_x, row_y, near_x, near_y, inverse = _derivative(x, y, z, camera)
        e, f = _times_matrix(row_x, q), _times_matrix(row_y, q)
        s0, s1, s2 = load_three(scales, three)

        # From the moments of u and v, in which the root is scaled.
        _, _, root_p, root_q = load_columns(rows, row, MEAN_X)
        root_r, _, opacity, _ = load_columns(rows, row, ROOT_R)
        by_u, by_v, by_uu, by_uv = load_columns(gradients, sums, GU)
        by_vv, by_opacity, _, _ = load_columns(gradients, sums, GVV)
        # d is from the mean to the pixel here: a splat grows where its mean comes nearer.
        gu, gv = _UNSCALE * root_p * by_u, _UNSCALE * (root_q * by_u + root_r * by_v)
        scatter(grad_means2d, two, 0, select(drawn, gu, nothing))
        scatter(grad_means2d, two, 1, select(drawn, gv, nothing))
        scatter(grad_opacities, one, 0, select(drawn, by_opacity / opacity, nothing))
        # Of both corners of the covariance, and twice those of its diagonal.
        g_xx = _SQUARE * root_p * root_p * by_uu
        g_xy = _SQUARE * root_p * (root_q * by_uu + root_r * by_uv)
        g_yy = _SQUARE * (root_q * (root_q * by_uu + _TWO * root_r * by_uv) + root_r * root_r * by_vv)

        # The covariance is E Eᵀ + blur with E's rows e s and f s, so E's gradient is 2 G E.
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
        by_scales = ge0 * e[0] + gf0 * f[0], ge1 * e[1] + gf1 * f[1], ge2 * e[2] + gf2 * f[2]
        _store_drawn(grad_scales, three, drawn, by_scales)
        ge0, ge1, ge2, gf0, gf1, gf2 = ge0 * s0, ge1 * s1, ge2 * s2, gf0 * s0, gf1 * s1, gf2 * s2

        # The rotation's gradient, then the unit quaternion's, then (across the sphere) the quaternion's.
        r0, r1, r2 = row_x[0] * ge0 + row_y[0] * gf0, row_x[0] * ge1 + row_y[0] * gf1, row_x[0] * ge2 + row_y[0] * gf2
        r3, r4, r5 = row_x[1] * ge0 + row_y[1] * gf0, row_x[1] * ge1 + row_y[1] * gf1, row_x[1] * ge2 + row_y[1] * gf2
        r6, r7, r8 = row_x[2] * ge0 + row_y[2] * gf0, row_x[2] * ge1 + row_y[2] * gf1, row_x[2] * ge2 + row_y[2] * gf2
        h0 = _TWO * (w1 * (r7 - r5) + w2 * (r2 - r6) + w3 * (r3 - r1))
        h1 = _TWO * (w2 * (r1 + r3) - _TWO * w1 * (r4 + r8) + w3 * (r2 + r6) + w0 * (r7 - r5))
        h2 = _TWO * (w1 * (r1 + r3) - _TWO * w2 * (r0 + r8) + w3 * (r5 + r7) + w0 * (r2 - r6))
        h3 = _TWO * (w1 * (r2 + r6) + w2 * (r5 + r7) - _TWO * w3 * (r0 + r4) + w0 * (r3 - r1))
        along = h0 * w0 + h1 * w1 + h2 * w2 + h3 * w3
        store_columns(
            grad_quats, four, 0,
            select(drawn, (h0 - along * w0) * length, nothing), select(drawn, (h1 - along * w1) * length, nothing),
            select(drawn, (h2 - along * w2) * length, nothing), select(drawn, (h3 - along * w3) * length, nothing),
        )  # fmt: skip

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
        gx, gy = fx * inverse * gu, fy * inverse * gv
        bend = _TWO * inverse * (fx * near_x * g_slope_x + fy * near_y * g_slope_y) - fx * g_scale_x - fy * g_scale_y
        gz = square * (bend - fx * x * gu - fy * y * gv)
        if depth >= 0:
            gz = gz + gather(gradients, sums, depth)
        # The point of the derivative moves with the mean, or, where it is held at the edge, with its depth alone.
        g_near_x, g_near_y = _ZERO - fx * square * g_slope_x, _ZERO - fy * square * g_slope_y
        free_x = (x * inverse >= camera.low_x) & (x * inverse <= camera.high_x)
        free_y = (y * inverse >= camera.low_y) & (y * inverse <= camera.high_y)
        gx, gy = gx + select(free_x, g_near_x, nothing), gy + select(free_y, g_near_y, nothing)
        gz = (
            gz
            + select(free_x, nothing, g_near_x * near_x * inverse)
            + select(free_y, nothing, g_near_y * near_y * inverse)
        )
        _store_drawn(grad_means, three, drawn, _times_matrix((gx, gy, gz), r))
