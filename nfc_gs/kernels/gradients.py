"""What compositing gave for each splat, added up over the tiles and told in the inputs' own terms."""

import numpy as np
from numba import njit

from nfc_gs.kernels.compositing import ABS_X, ABS_Y, G1, GROUP, GU, GUU, GUV, GV, GVV, LOCAL
from nfc_gs.kernels.simd import add_four
from nfc_gs.kernels.tiles import OPACITY, ROOT_P, ROOT_Q, ROOT_R, ROW

_SETTINGS = {
    "nogil": True, "cache": True, "fastmath": {"nsz", "contract", "reassoc", "arcp"}, "error_model": "numpy"
}  # fmt: skip
_ONE, _HALF, _ZERO = np.float32(1), np.float32(0.5), np.float32(0)
# The root of the inverse covariance is scaled by the square root of this.
_SCALE = np.float32(0.5 / np.log(2))


@njit(**_SETTINGS)
def add_records(first, last, splats, records, gradients):
    """Adds the rows of `records`, of these `splats`, to the `gradients` [N _] of splats first .. last - 1, in their order.

    In the order of the tiles, that is: so a splat's sum has the same bits whoever went through which tile.
    """
    stride = gradients.shape[1]
    for entry in range(splats.size):
        splat = np.int64(splats[entry])
        if first <= splat < last:
            for column in range(0, stride, GROUP):
                add_four(gradients, splat * stride + column, records, entry * stride + column)


@njit(**_SETTINGS)
def spread_gradients(
    first, last, lists, radii, gradients, absgrad, weigh,
    grad_means2d, grad_covariances, grad_opacities, grad_values, grad_absolute, weights,
):  # fmt: skip
    """Writes the `gradients` [at least N rows, _] of splats first .. last - 1 in the inputs' own terms.

    The gradient of -|U d|²/2 by the mean is Uᵀ U d, and by the covariance (Uᵀ U d)(Uᵀ U d)ᵀ / 2; `grad_covariances`
    holds (xx, xy, yy) with xy for both corners. `grad_absolute` only if `absgrad`, `weights` [N] only if `weigh`. Zeros
    for splats that are not drawn.
    """
    scale = _ONE / _SCALE
    for i in range(first, last):
        if radii[i, 0] == 0:
            grad_means2d[i] = grad_covariances[i] = grad_values[i] = _ZERO
            grad_opacities[i] = _ZERO
            if absgrad:
                grad_absolute[i] = _ZERO
            if weigh:
                weights[i] = _ZERO
            continue
        row = gradients[i]
        p, q, r = lists.rows[i * ROW + ROOT_P], lists.rows[i * ROW + ROOT_Q], lists.rows[i * ROW + ROOT_R]
        # d is from the mean to the pixel here: a splat grows where its mean comes nearer.
        grad_means2d[i, 0] = scale * p * row[GU]
        grad_means2d[i, 1] = scale * (q * row[GU] + r * row[GV])
        square = scale * scale
        grad_covariances[i, 0] = square * _HALF * p * p * row[GUU]
        grad_covariances[i, 1] = square * p * (q * row[GUU] + r * row[GUV])
        grad_covariances[i, 2] = square * _HALF * (q * (q * row[GUU] + (r + r) * row[GUV]) + r * r * row[GVV])
        grad_opacities[i] = row[G1] / lists.rows[i * ROW + OPACITY]
        if absgrad:
            grad_absolute[i, 0] = scale * row[ABS_X]
            grad_absolute[i, 1] = scale * row[ABS_Y]
        for channel in range(grad_values.shape[1]):
            grad_values[i, channel] = row[LOCAL + channel]
        if weigh:
            weights[i] = row[LOCAL + grad_values.shape[1]]
