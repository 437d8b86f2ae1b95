"""What compositing gave for each splat, added up over the tiles."""

import numpy as np
from numba import njit

from nfc_gs.kernels.compositing import ABS_X, ABS_Y, GROUP
from nfc_gs.kernels.simd import add_four, prefetch
from nfc_gs.kernels.tiles import AHEAD, ROOT_SCALE

_SETTINGS = {
    "nogil": True, "cache": True, "fastmath": {"nsz", "contract", "reassoc", "arcp"}, "error_model": "numpy"
}  # fmt: skip
_UNSCALE = np.float32(1 / ROOT_SCALE**2)


@njit(**_SETTINGS)
def add_records(first, last, splats, records, gradients):
    """Adds the rows of `records`, of these `splats`, to the `gradients` [N _] of splats first .. last - 1, in their order.

    In the order of the tiles, that is: so a splat's sum has the same bits whoever went through which tile.
    """
    stride = gradients.shape[1]
    # Those of our own are found first, without a branch that a processor would guess wrong half the time.
    mine, count = np.empty(splats.size + 1, np.int32), 0
    for entry in range(splats.size):
        mine[count] = entry
        count += int(first <= splats[entry]) & int(splats[entry] < last)
    for k in range(count):
        entry = np.int64(mine[k])
        prefetch(gradients, np.int64(splats[mine[min(k + AHEAD, count - 1)]]) * stride)
        for column in range(0, stride, GROUP):
            add_four(gradients, np.int64(splats[entry]) * stride + column, records, entry * stride + column)


@njit(**_SETTINGS)
def copy_columns(first, last, gradients, column, array):
    """Copies what of the rows first .. last - 1 of `gradients` is from `column` on to all columns of `array` [N C]."""
    for i in range(first, last):
        for k in range(array.shape[1]):
            array[i, k] = gradients[i, column + k]


@njit(**_SETTINGS)
def copy_absolute(first, last, gradients, absolute):
    """Writes the sums of |d loss / d mean| [N 2] of splats first .. last - 1."""
    for i in range(first, last):
        absolute[i, 0] = _UNSCALE * gradients[i, ABS_X]
        absolute[i, 1] = _UNSCALE * gradients[i, ABS_Y]
