"""Moves Gaussians by blended rigid motions: softmax, choice of the largest weights, blending and moving in one pass.

A bone m has sixteen numbers: a rotation matrix by rows (9), a translation (3) and the same rotation as a unit quaternion
wxyz (4). A Gaussian's weights w are the softmax of its largest `keep` logits. Its blend is B = sum of w_m times bone m;
its mean moves to B_matrix x + B_translation (linear blend skinning), its quaternion becomes B_quaternion times q.

Rows of weights are as long as whole vectors of `LANES` numbers (`padded`); what is beyond the kept bones has no meaning.
"""

import numpy as np
from numba import float32, njit
from numba.cpython.unsafe.numbers import trailing_zeros

from nfc_gs.kernels.simd import (
    LANES,
    add,
    at_least,
    below,
    bits,
    broadcast,
    exp2,
    fill,
    fma,
    largest,
    load,
    maximum,
    multiply,
    select,
    store,
    subtract,
)

# The numbers of a bone: just one vector.
NUMBERS = LANES

_LOG2E = np.float32(np.log2(np.e))
_LOWEST = np.float32(-126)  # exp2 takes no less; 2^-126 next to a sum of at least one is nothing
_NOTHING = np.float32(-3e38)
_SETTINGS = {"nogil": True, "fastmath": True, "error_model": "numpy", "cache": True}


def padded(count: int) -> int:
    """The length of a row that holds `count` numbers in whole vectors."""
    return -(-count // LANES) * LANES


@njit(**_SETTINGS)
def _choose(logits, i, keep, chosen, heights, row):
    """The columns of the `keep` largest logits of row i; of equal ones the first columns win."""
    for m in range(logits.shape[1]):
        row[m] = logits[i, m]
    # The last of the `keep` largest different heights: each the largest of those below the one before.
    nothing = fill(_NOTHING)
    bar = float32(0)
    for rank in range(keep):
        top = nothing
        for m in range(0, len(row), LANES):
            lanes = load(row, m)
            top = maximum(top, lanes if rank == 0 else select(below(lanes, fill(bar)), lanes, nothing))
        bar = largest(top)
    found = 0
    for m in range(0, len(row), LANES):
        mask = bits(at_least(load(row, m), fill(bar)))
        while mask:
            if found == keep:
                _choose_slowly(i, keep, chosen, heights, row)
                return
            column = m + trailing_zeros(mask)
            mask &= mask - np.uint32(1)
            heights[found] = row[column]
            chosen[i, found] = column
            found += 1


@njit(**_SETTINGS)
def _choose_slowly(i, keep, chosen, heights, row):
    """The same where some logits are equal; `row` is used up."""
    for rank in range(keep):
        column = 0
        for m in range(1, len(row)):
            if row[m] > row[column]:
                column = m
        heights[rank] = row[column]
        chosen[i, rank] = column
        row[column] = _NOTHING


@njit(**_SETTINGS)
def _total(lanes, scratch):
    """The sum of the sixteen numbers of a vector."""
    store(scratch, 0, lanes)
    total = float32(0)
    for k in range(LANES):
        total += scratch[k]
    return total


@njit(**_SETTINGS)
def _soften(heights, weights, start, scratch):
    """Writes the softmax of `heights` to `weights[start:]`."""
    length = len(heights)
    top = fill(_NOTHING)
    for m in range(0, length, LANES):
        top = maximum(top, load(heights, m))
    highest, log2e, lowest = fill(largest(top)), fill(_LOG2E), fill(_LOWEST)
    sums = fill(float32(0))
    for m in range(0, length, LANES):
        power = exp2(maximum(multiply(subtract(load(heights, m), highest), log2e), lowest))
        store(weights, start + m, power)
        sums = add(sums, power)
    inverse = fill(float32(1) / _total(sums, scratch))
    for m in range(0, length, LANES):
        store(weights, start + m, multiply(load(weights, start + m), inverse))


@njit(**_SETTINGS)
def _blend(weights, start, keep, chosen, bones, i, blend):
    """Writes the weighted sum of row i's bones."""
    total = fill(float32(0))
    if len(chosen) == 0:
        for m in range(keep):
            total = fma(broadcast(weights, start + m), load(bones, NUMBERS * m), total)
    else:
        for rank in range(keep):
            total = fma(broadcast(weights, start + rank), load(bones, NUMBERS * chosen[i, rank]), total)
    store(blend, 0, total)


@njit(**_SETTINGS)
def forward(first, last, logits, bones, means, quats, keep, chosen, weights, moved_means, moved_quats):
    """Writes the moved means [N 3] and quaternions [N 4] of the rows first .. last.

    `weights` [N padded(keep)] is filled for the backward pass, and `chosen` [N keep] with the bones they belong to; where
    all bones are kept, `chosen` has no rows and weight m is bone m's.
    """
    length = weights.shape[1]
    heights = np.full(length, _NOTHING)
    row = np.full(-(-logits.shape[1] // LANES) * LANES, _NOTHING)
    scratch, blend = np.empty(LANES, np.float32), np.empty(NUMBERS, np.float32)
    for i in range(first, last):
        if len(chosen) == 0:
            for m in range(keep):
                heights[m] = logits[i, m]
        else:
            _choose(logits, i, keep, chosen, heights, row)
        _soften(heights, weights, i * length, scratch)
        _blend(weights, i * length, keep, chosen, bones, i, blend)
        x, y, z = means[i, 0], means[i, 1], means[i, 2]
        for k in range(3):
            moved_means[i, k] = blend[3 * k] * x + blend[3 * k + 1] * y + blend[3 * k + 2] * z + blend[9 + k]
        aw, ax, ay, az = blend[12], blend[13], blend[14], blend[15]
        bw, bx, by, bz = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
        moved_quats[i, 0] = aw * bw - ax * bx - ay * by - az * bz
        moved_quats[i, 1] = aw * bx + ax * bw + ay * bz - az * by
        moved_quats[i, 2] = aw * by - ax * bz + ay * bw + az * bx
        moved_quats[i, 3] = aw * bz + ax * by - ay * bx + az * bw


@njit(**_SETTINGS)
def _pull(blend, means, quats, by_moved_means, by_moved_quats, i, pull, by_means, by_quats):
    """Writes row i's gradients of the blend (`pull`), the mean and the quaternion."""
    gx, gy, gz = by_moved_means[i, 0], by_moved_means[i, 1], by_moved_means[i, 2]
    for j in range(3):
        pull[j], pull[3 + j], pull[6 + j] = gx * means[i, j], gy * means[i, j], gz * means[i, j]
        by_means[i, j] = blend[j] * gx + blend[3 + j] * gy + blend[6 + j] * gz
    pull[9], pull[10], pull[11] = gx, gy, gz
    gw, gi, gj, gk = by_moved_quats[i, 0], by_moved_quats[i, 1], by_moved_quats[i, 2], by_moved_quats[i, 3]
    aw, ax, ay, az = blend[12], blend[13], blend[14], blend[15]
    bw, bx, by, bz = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
    pull[12] = gw * bw + gi * bx + gj * by + gk * bz
    pull[13] = -gw * bx + gi * bw - gj * bz + gk * by
    pull[14] = -gw * by + gi * bz + gj * bw - gk * bx
    pull[15] = -gw * bz - gi * by + gj * bx + gk * bw
    by_quats[i, 0] = gw * aw + gi * ax + gj * ay + gk * az
    by_quats[i, 1] = -gw * ax + gi * aw + gj * az - gk * ay
    by_quats[i, 2] = -gw * ay - gi * az + gj * aw + gk * ax
    by_quats[i, 3] = -gw * az + gi * ay - gj * ax + gk * aw


@njit(**_SETTINGS)
def backward(
    first,
    last,
    bones,
    columns,
    means,
    quats,
    keep,
    chosen,
    weights,
    by_moved_means,
    by_moved_quats,
    by_logits,
    by_bones,
    by_means,
    by_quats,
):
    """Writes the gradients of logits, means and quaternions in the rows first .. last, and adds that of the bones.

    `columns` [16 padded(M)] are the bones transposed. `by_logits` [N M] must be zeros where bones are left out;
    `by_bones` [M 16] belongs to the calling thread alone.
    """
    length, tall = weights.shape[1], columns.shape[1]
    pulls, scratch = np.empty(length, np.float32), np.empty(LANES, np.float32)
    blend, pull = np.empty(NUMBERS, np.float32), np.empty(NUMBERS, np.float32)
    for i in range(first, last):
        start = i * length
        _blend(weights, start, keep, chosen, bones, i, blend)
        _pull(blend, means, quats, by_moved_means, by_moved_quats, i, pull, by_means, by_quats)
        whole = load(pull, 0)
        if len(chosen) == 0:
            # d loss / d weight of sixteen bones at a time.
            along = fill(float32(0))
            for m in range(0, length, LANES):
                lanes = fill(float32(0))
                for k in range(NUMBERS):
                    lanes = fma(broadcast(pull, k), load(columns, k * tall + m), lanes)
                store(pulls, m, lanes)
                along = fma(load(weights, start + m), lanes, along)
            mean = _total(along, scratch)
            for m in range(keep):
                by_logits[i, m] = weights[i, m] * (pulls[m] - mean)
            for m in range(keep):
                place = NUMBERS * m
                store(by_bones, place, fma(broadcast(weights, start + m), whole, load(by_bones, place)))
        else:
            mean = float32(0)
            for rank in range(keep):
                place = NUMBERS * chosen[i, rank]
                pulls[rank] = _total(multiply(whole, load(bones, place)), scratch)
                mean += weights[i, rank] * pulls[rank]
                store(by_bones, place, fma(broadcast(weights, start + rank), whole, load(by_bones, place)))
            for rank in range(keep):
                by_logits[i, chosen[i, rank]] = weights[i, rank] * (pulls[rank] - mean)
