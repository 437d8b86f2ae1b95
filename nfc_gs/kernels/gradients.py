"""What compositing gave for each splat, added up over the tiles."""

import numpy as np
from numba import njit

from nfc_gs.kernels.compositing import ABS_X, ABS_Y, GROUP
from nfc_gs.kernels.simd import add_four
from nfc_gs.kernels.tiles import ROOT_SCALE

_SETTINGS = {
    "nogil": True, "cache": True, "fastmath": {"nsz", "contract", "reassoc", "arcp"}, "error_model": "numpy"
}  # fmt: skip
_ZERO = np.float32(0)
_UNSCALE = np.float32(1 / ROOT_SCALE**2)


@njit(**_SETTINGS)
def add_records(first, last, lists, begin, end, records, places, gradients):
    """Adds up in `gradients` [N _] what the `records` of the tiles begin .. end - 1 say of splats first .. last - 1.

    A splat's records are added in the order of its tiles, so that the sum has the same bits whoever went through which
    tile. `places` [N] is how far in the splat's span the tiles before led, for tile 0 written before it is read.
    """
    stride = gradients.shape[1]
    offset, behind = lists.starts[begin], lists.starts[end]
    for i in range(first, last):
        place = np.int64(places[i])
        if begin == 0:
            place = np.int64(lists.spans[i, 0])
            gradients[i] = _ZERO
        while place < lists.spans[i, 1] and lists.entries[place] < behind:
            record = (lists.entries[place] - offset) * stride
            for column in range(0, stride, GROUP):
                add_four(gradients, i * stride + column, records, record + column)
            place += 1
        places[i] = place


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
