"""The structural similarity of two pictures and its gradient, in one pass down the rows.

Window: 11 x 11, Gaussian of sigma 1.5, separable; outside the pictures are zeros; C1 = 0.01^2, C2 = 0.03^2 for values
in [0, 1] (Wang et al. 2004, in the zero-padded variant of 3DGS). A row is blurred along itself, kept in a ring of
sixteen, and blurred across the rows from there, four rows at a time, which read fourteen rows of the ring instead of 44;
so are the gradient's terms: no buffer is larger than the rings. Where the fours begin is the same for any share of the rows,
so that a row has the same bits whoever computes it.
"""

import numpy as np
from numba import float32, njit

from nfc_gs.kernels.patterns import pattern
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
_W0, _W1, _W2, _W3, _W4, _W5 = _W[: RADIUS + 1]
_C1, _C2 = np.float32(C1), np.float32(C2)
_ROWS = 4  # that are blurred across at once
_READ = _ROWS + 2 * RADIUS  # rows that they read
_RING = 16  # at least so many, and a power of two
_PAD = LANES  # of a row on both sides: more than five pixels of three channels
# What is divided or summed is plain loops; LLVM vectorizes those, but none over the eleven rows of a window.
_SETTINGS = {"nogil": True, "fastmath": True, "error_model": "numpy", "cache": True}
_INLINE = _SETTINGS | {"forceinline": True}


@njit(**_INLINE)
def _blurred(a):
    """The weighted sum of eleven vectors."""
    total = _W5 * a[5] + _W4 * (a[4] + a[6]) + _W3 * (a[3] + a[7])
    return total + _W2 * (a[2] + a[8]) + _W1 * (a[1] + a[9]) + _W0 * (a[0] + a[10])


_four, _ten = pattern(range(4, 4 + LANES)), pattern(range(10, 10 + LANES))
_six, _twelve = pattern(range(6, 6 + LANES)), pattern(range(12, 12 + LANES))


@njit(**_SETTINGS)
def _along(line, out):
    """Blurs one padded row; `out` is as long as whole lanes need.

    Half of what lies between the lanes' places is read, half is put together of what was: a processor does both at once.
    """
    a, b = load(line, 0), load(line, LANES)
    for i in range(0, out.size, LANES):
        c = load(line, i + 2 * LANES)
        before = load(line, i + 1), _four(a, b), load(line, i + 7), _ten(a, b), load(line, i + 13)
        after = load(line, i + 19), _six(b, c), load(line, i + 25), _twelve(b, c), load(line, i + 31)
        store(out, i, _blurred((*before, b, *after)))
        a, b = b, c


@njit(**_INLINE)
def _load_rows(ring, starts, i):
    """The vectors at i of fourteen rows."""
    a = load(ring, starts[0] + i), load(ring, starts[1] + i), load(ring, starts[2] + i), load(ring, starts[3] + i)
    b = load(ring, starts[4] + i), load(ring, starts[5] + i), load(ring, starts[6] + i), load(ring, starts[7] + i)
    c = load(ring, starts[8] + i), load(ring, starts[9] + i), load(ring, starts[10] + i), load(ring, starts[11] + i)
    return *a, *b, *c, load(ring, starts[12] + i), load(ring, starts[13] + i)


@njit(**_SETTINGS)
def _across(ring, y, out):
    """Blurs across the eleven rows around each of the rows y .. y + 3, into the rows of `out`."""
    width = out.shape[1]
    starts = np.empty(_READ, np.int64)
    for k in range(_READ):
        starts[k] = (y - RADIUS + k) % _RING * width
    for i in range(0, width, LANES):
        a = _load_rows(ring, starts, i)
        store(out, i, _blurred(a[0:11]))
        store(out, width + i, _blurred(a[1:12]))
        store(out, 2 * width + i, _blurred(a[2:13]))
        store(out, 3 * width + i, _blurred(a[3:14]))


@njit(**_SETTINGS)
def _products(x, y, line_x, line_y, line_xx, line_xy, n):
    """Pads a row of each picture and of the two products that SSIM blurs: x^2 + y^2 (only the sum is needed) and xy."""
    for i in range(n):
        a, b = x[i], y[i]
        line_x[_PAD + i] = a
        line_y[_PAD + i] = b
        line_xx[_PAD + i] = a * a + b * b
        line_xy[_PAD + i] = a * b


@njit(**_SETTINGS)
def _similarity(u, v, squares, product, out, n):
    """SSIM of one row from its blurred moments."""
    for i in range(n):
        uv, uu = u[i] * v[i], u[i] * u[i] + v[i] * v[i]
        a1, a2 = float32(2) * uv + _C1, float32(2) * (product[i] - uv) + _C2
        b1, b2 = uu + _C1, squares[i] - uu + _C2
        out[i] = a1 * a2 / (b1 * b2)


@njit(**_SETTINGS)
def _slopes(u, v, squares, product, out, line_u, line_squares, line_product, n):
    """`_similarity`, and its derivatives by u, squares and product, into padded rows."""
    for i in range(n):
        a, b = u[i], v[i]
        uv, uu = a * b, a * a + b * b
        a1, a2 = float32(2) * uv + _C1, float32(2) * (product[i] - uv) + _C2
        b1, b2 = uu + _C1, squares[i] - uu + _C2
        inverse = float32(1) / (b1 * b2)
        similarity = a1 * a2 * inverse
        by_squares = -similarity * b1 * inverse
        by_product = float32(2) * a1 * inverse
        out[i] = similarity
        line_squares[_PAD + i] = by_squares
        line_product[_PAD + i] = by_product
        # u also moves both covariances: squares - u^2 - v^2 and product - uv.
        line_u[_PAD + i] = (
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
    """Adds one row of the gradient, from the blurred slopes."""
    for i in range(n):
        out[i] += scale * (u[i] + float32(2) * x[i] * squares[i] + y[i] * product[i])


@njit(**_SETTINGS)
def rows_of_ssim(first, last, x, y, weights, scale, sums, fresh, gradient):
    """Writes the sum of SSIM of each row first .. last, and adds the gradient of `scale` times all sums by `x`.

    Args:
        first: first row.
        last: one behind the last row.
        x: the picture [H 3W], the channels of a pixel side by side.
        y: the picture it is compared with, [H 3W].
        weights: of the pixels, [H W]; of no rows if all count the same.
        scale: of the gradient.
        sums: float64 [H], one a row, so that their sum does not depend on the number of threads.
        fresh: whether the gradient is first cleared.
        gradient: [H 3W]; of no rows if none is wanted.
    """
    if fresh:
        gradient[first:last] = float32(0)
    height, n = x.shape
    wanted, weighed = gradient.shape[0] > 0, weights.shape[0] > 0
    reach = RADIUS if wanted else 0  # rows beside our own whose windows see ours
    room = (n + LANES - 1) // LANES * LANES
    moments = np.zeros((4, _RING, room), np.float32)
    slopes = np.zeros((3, _RING, room), np.float32)
    lines = np.zeros((4, room + 2 * _PAD), np.float32)
    slope_lines = np.zeros((3, room + 2 * _PAD), np.float32)
    blurred = np.empty((4, _ROWS, room), np.float32)
    similarity = np.empty(n, np.float32)
    # Three times four rows are in work: those from `ahead` on are blurred along themselves, those from `here` on get their
    # SSIM, those from `behind` on their gradient.
    for ahead in range((first - reach - RADIUS) // _ROWS * _ROWS, last + reach + RADIUS, _ROWS):
        for row in range(ahead, ahead + _ROWS):
            if 0 <= row < height:
                _products(x[row], y[row], lines[0], lines[1], lines[2], lines[3], n)
                for k in range(4):
                    _along(lines[k], moments[k, row % _RING])
            else:
                moments[:, row % _RING] = float32(0)
        here = ahead - RADIUS
        for k in range(4):
            _across(moments[k], here, blurred[k])
        for row in range(here, here + _ROWS):
            u, v, squares, product = (
                blurred[0, row - here], blurred[1, row - here], blurred[2, row - here], blurred[3, row - here]
            )  # fmt: skip
            if not 0 <= row < height:
                if wanted:
                    slopes[:, row % _RING] = float32(0)
                continue
            if wanted:
                _slopes(u, v, squares, product, similarity, slope_lines[0], slope_lines[1], slope_lines[2], n)
                for k in range(3):
                    if weighed:
                        _weigh(slope_lines[k, _PAD : _PAD + n], weights[row], n)
                    _along(slope_lines[k], slopes[k, row % _RING])
            elif first <= row < last:
                _similarity(u, v, squares, product, similarity, n)
            if first <= row < last:
                if weighed:
                    _weigh(similarity, weights[row], n)
                sums[row] = _sum(similarity, n)
        behind = here - RADIUS
        if wanted and behind + _ROWS > first:
            for k in range(3):
                _across(slopes[k], behind, blurred[k])
            for row in range(max(behind, first), min(behind + _ROWS, last)):
                at = row - behind
                _collect(x[row], y[row], blurred[0, at], blurred[1, at], blurred[2, at], scale, gradient[row], n)
