"""Moves Gaussians by blended rigid motions: softmax, choice of the largest weights, blending and moving in one pass.

A bone m has sixteen numbers: a rotation matrix by rows (9), a translation (3) and the same rotation as a unit quaternion
wxyz (4). A Gaussian's weights w are the softmax of its largest `keep` logits. Its blend is B = sum of w_m times bone m;
its mean moves to B_matrix x + B_translation (linear blend skinning), its quaternion becomes B_quaternion times q.
"""

import numpy as np
from numba import float32, int32, njit

NUMBERS = 16

_LOG2E = np.float32(np.log2(np.e))
_LOWEST = np.float32(-125)  # 2^-125 is the smallest weight, before division, that is still a normal float
# 2^f for |f| <= 1/2, relative error 8e-8 (fitted for the smallest largest relative error); constant term first.
_E0, _E1, _E2, _E3, _E4, _E5 = (
    np.float32(c) for c in (1.000000072, 0.6931469671, 0.2402211972, 0.05550713275, 0.009675541331, 0.001327647152)
)
_SETTINGS = {"nogil": True, "fastmath": True, "error_model": "numpy", "cache": True}


@njit(**_SETTINGS)
def _choose(logits, i, keep, chosen, heights):
    """The columns of the `keep` largest logits of row i, largest first; of equal ones the first column wins."""
    count = logits.shape[1]
    for rank in range(keep):
        heights[rank] = -np.inf
        chosen[i, rank] = 0
    # Not -inf, which fast-math may not compare: the first `keep` columns fill the ranks in order.
    filled = 0
    for m in range(count):
        height = logits[i, m]
        if filled == keep and not height > heights[keep - 1]:
            continue
        rank = filled if filled < keep else keep - 1
        filled = min(filled + 1, keep)
        while rank > 0 and height > heights[rank - 1]:
            heights[rank] = heights[rank - 1]
            chosen[i, rank] = chosen[i, rank - 1]
            rank -= 1
        heights[rank] = height
        chosen[i, rank] = m


@njit(**_SETTINGS)
def _soften(heights, count, weights, i, whole, power):
    """Writes the softmax of `heights[:count]` to row i of `weights`; loops that LLVM can vectorize."""
    largest = heights[0]
    for m in range(1, count):
        largest = max(largest, heights[m])
    for m in range(count):
        x = max((heights[m] - largest) * _LOG2E, _LOWEST)
        rounded = np.rint(x)
        f = x - rounded
        power[m] = _E0 + f * (_E1 + f * (_E2 + f * (_E3 + f * (_E4 + f * _E5))))
        whole[m] = (int32(rounded) + int32(127)) << int32(23)
    scale = whole.view(np.float32)
    total = float32(0)
    for m in range(count):
        power[m] *= scale[m]
        total += power[m]
    for m in range(count):
        weights[i, m] = power[m] / total


@njit(**_SETTINGS)
def _blend(weights, chosen, bones, i, blend):
    """The weighted sum of row i's bones."""
    for k in range(NUMBERS):
        blend[k] = float32(0)
    if chosen.shape[0] == 0:
        for m in range(bones.shape[0]):
            w = weights[i, m]
            for k in range(NUMBERS):
                blend[k] += w * bones[m, k]
    else:
        for rank in range(chosen.shape[1]):
            w, m = weights[i, rank], chosen[i, rank]
            for k in range(NUMBERS):
                blend[k] += w * bones[m, k]


@njit(**_SETTINGS)
def forward(first, last, logits, bones, means, quats, chosen, weights, moved_means, moved_quats):
    """Writes the moved means [N 3] and quaternions [N 4] of the rows first .. last.

    `weights` [N keep] is filled for the backward pass, and `chosen` [N keep] with the bones they belong to; where all
    bones are kept, `chosen` has no rows and weight m is bone m's.
    """
    count = weights.shape[1]
    heights, power = np.empty(count, np.float32), np.empty(count, np.float32)
    whole, blend = np.empty(count, np.int32), np.empty(NUMBERS, np.float32)
    for i in range(first, last):
        if chosen.shape[0] == 0:
            for m in range(count):
                heights[m] = logits[i, m]
        else:
            _choose(logits, i, count, chosen, heights)
        _soften(heights, count, weights, i, whole, power)
        _blend(weights, chosen, bones, i, blend)
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
def backward(
    first,
    last,
    bones,
    means,
    quats,
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

    `by_logits` [N M] must be zeros where bones are left out; `by_bones` [M 16] belongs to the calling thread alone.
    """
    count = weights.shape[1]
    pulls = np.empty(count, np.float32)
    blend, pull = np.empty(NUMBERS, np.float32), np.empty(NUMBERS, np.float32)
    for i in range(first, last):
        _blend(weights, chosen, bones, i, blend)
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

        mean = float32(0)
        for rank in range(count):
            m = rank if chosen.shape[0] == 0 else chosen[i, rank]
            w, along = weights[i, rank], float32(0)
            for k in range(NUMBERS):
                along += pull[k] * bones[m, k]
                by_bones[m, k] += w * pull[k]
            pulls[rank] = along
            mean += w * along
        for rank in range(count):
            m = rank if chosen.shape[0] == 0 else chosen[i, rank]
            by_logits[i, m] = weights[i, rank] * (pulls[rank] - mean)
