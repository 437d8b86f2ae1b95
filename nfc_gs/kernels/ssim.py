"""The structural similarity of two pictures and its gradient, in one pass down the rows.

Window: 11 x 11, Gaussian of sigma 1.5, separable; outside the pictures are zeros; C1 = 0.01^2, C2 = 0.03^2 for values
in [0, 1] (Wang et al. 2004, in the zero-padded variant of 3DGS). A row is blurred along itself, kept in a ring of
eleven, and blurred across the rows from there; so are the gradient's terms: no buffer is larger than the rings.
"""

import numpy as np
from numba import float32, njit

from nfc_gs.kernels.simd import LANES, load, store

RADIUS = 5
SIGMA = 1.5
C1 = 0.01**2
C2 = 0.03**2


def window() -> np.ndarray:
    """The normalized Gaussian along one axis, float64 [11]."""
    offsets = np.arange(-RADIUS, RADIUS + 1)
    gaussian = np.exp(-(offsets**2) / (2 * SIGMA**2))
    return gaussian / gaussian.sum()


_W = window().astype(np.float32)
_C1, _C2 = np.float32(C1), np.float32(C2)
_RING = 2 * RADIUS + 1
_PAD = 3 * RADIUS  # three channels are interleaved
# What is divided or summed is plain loops; LLVM vectorizes those, but none over the eleven rows of a window.
_SETTINGS = {"nogil": True, "fastmath": True, "error_model": "numpy", "cache": True}


@njit(**_SETTINGS)
def _along(line, out):
    """Blurs one padded row; `out` is as long as whole lanes need."""
    for i in range(0, out.size, LANES):
        total = _W[5] * load(line, i + 15)
        for k in range(RADIUS):
            total = total + _W[k] * (load(line, i + 3 * k) + load(line, i + 30 - 3 * k))
        store(out, i, total)


@njit(**_SETTINGS)
def _across(ring, y, out):
    """Blurs across the eleven rows around row y."""
    width = out.size
    for i in range(0, width, LANES):
        total = _W[5] * load(ring, y % _RING * width + i)
        for k in range(RADIUS):
            above, below = (y + _RING - RADIUS + k) % _RING, (y + RADIUS - k) % _RING
            total = total + _W[k] * (load(ring, above * width + i) + load(ring, below * width + i))
        store(out, i, total)


@njit(**_SETTINGS)
def _products(x, y, line_x, line_y, line_xx, line_xy, n):
    """Pads a row of each picture and of the two products that SSIM blurs: x^2 + y^2 (only the sum is needed) and xy."""
    for i in range(n):
        a, b = x[i], y[i]
        line_x[i + 15] = a
        line_y[i + 15] = b
        line_xx[i + 15] = a * a + b * b
        line_xy[i + 15] = a * b


@njit(**_SETTINGS)
def _similarity(u, v, squares, product, out, n):
    """SSIM of one row from its blurred moments; its sum in float64."""
    total = 0.0
    for i in range(n):
        uv, uu = u[i] * v[i], u[i] * u[i] + v[i] * v[i]
        a1, a2 = float32(2) * uv + _C1, float32(2) * (product[i] - uv) + _C2
        b1, b2 = uu + _C1, squares[i] - uu + _C2
        out[i] = a1 * a2 / (b1 * b2)
    for i in range(n):
        total += out[i]
    return total


@njit(**_SETTINGS)
def _slopes(u, v, squares, product, line_u, line_squares, line_product, n):
    """The derivatives of `_similarity` by u, squares and product, into padded rows."""
    for i in range(n):
        a, b = u[i], v[i]
        uv, uu = a * b, a * a + b * b
        a1, a2 = float32(2) * uv + _C1, float32(2) * (product[i] - uv) + _C2
        b1, b2 = uu + _C1, squares[i] - uu + _C2
        inverse = float32(1) / (b1 * b2)
        similarity = a1 * a2 * inverse
        by_squares = -similarity * b1 * inverse
        by_product = float32(2) * a1 * inverse
        line_squares[i + 15] = by_squares
        line_product[i + 15] = by_product
        # u also moves both covariances: squares - u^2 - v^2 and product - uv.
        line_u[i + 15] = (
            float32(2) * b * a2 * inverse
            - float32(2) * a * similarity * b2 * inverse
            - float32(2) * a * by_squares
            - b * by_product
        )


@njit(**_SETTINGS)
def _weigh(values, weights, n):
    """Multiplies the three channels of every pixel by its weight."""
    for i in range(n // 3):
        w = weights[i]
        values[3 * i] *= w
        values[3 * i + 1] *= w
        values[3 * i + 2] *= w


@njit(**_SETTINGS)
def _sum(values, n):
    total = 0.0
    for i in range(n):
        total += values[i]
    return total


@njit(**_SETTINGS)
def _collect(x, y, u, squares, product, scale, out, n):
    """One row of the gradient from the blurred slopes."""
    for i in range(n):
        out[i] = scale * (u[i] + float32(2) * x[i] * squares[i] + y[i] * product[i])


@njit(**_SETTINGS)
def rows_of_ssim(first, last, x, y, weights, scale, sums, gradient):
    """Writes the sum of SSIM of each row first .. last, and the gradient of `scale` times all sums by `x`.

    Args:
        first: first row.
        last: one behind the last row.
        x: the picture [H 3W], the channels of a pixel side by side.
        y: the picture it is compared with, [H 3W].
        weights: of the pixels, [H W]; of no rows if all count the same.
        scale: of the gradient.
        sums: float64 [H], one a row, so that their sum does not depend on the number of threads.
        gradient: [H 3W]; of no rows if none is wanted.
    """
    height, n = x.shape
    wanted, weighed = gradient.shape[0] > 0, weights.shape[0] > 0
    reach = RADIUS if wanted else 0  # rows beside our own whose windows see ours
    room = (n + LANES - 1) // LANES * LANES
    moments = np.zeros((4, _RING, room), np.float32)
    slopes = np.zeros((3, _RING, room), np.float32)
    lines = np.zeros((4, room + 2 * _PAD), np.float32)
    slope_lines = np.zeros((3, room + 2 * _PAD), np.float32)
    blurred = np.empty((4, room), np.float32)
    similarity = np.empty(n, np.float32)
    # Three rows are in work: `ahead` is blurred along itself, `here` gets its SSIM, `behind` its gradient.
    for ahead in range(first - reach - RADIUS, last + reach + RADIUS):
        if 0 <= ahead < height:
            _products(x[ahead], y[ahead], lines[0], lines[1], lines[2], lines[3], n)
            for k in range(4):
                _along(lines[k], moments[k, ahead % _RING])
        else:
            moments[:, ahead % _RING] = float32(0)
        here = ahead - RADIUS
        if here < first - reach:
            continue
        if 0 <= here < height:
            for k in range(4):
                _across(moments[k], here, blurred[k])
            if first <= here < last:
                total = _similarity(blurred[0], blurred[1], blurred[2], blurred[3], similarity, n)
                if weighed:
                    _weigh(similarity, weights[here], n)
                    total = _sum(similarity, n)
                sums[here] = total
            if wanted:
                _slopes(
                    blurred[0], blurred[1], blurred[2], blurred[3], slope_lines[0], slope_lines[1], slope_lines[2], n
                )
                for k in range(3):
                    if weighed:
                        _weigh(slope_lines[k, _PAD : _PAD + n], weights[here], n)
                    _along(slope_lines[k], slopes[k, here % _RING])
        elif wanted:
            slopes[:, here % _RING] = float32(0)
        behind = here - RADIUS
        if wanted and first <= behind < last:
            for k in range(3):
                _across(slopes[k], behind, blurred[k])
            _collect(x[behind], y[behind], blurred[0], blurred[1], blurred[2], scale, gradient[behind], n)
