"""The poses of bones whose motions are B-splines, and their gradient.

`controls` [rows M 7] are the control points of all levels, one level after the other: a translation, then what is added to
the quaternion (1, 0, 0, 0). A bone has sixteen numbers: a rotation matrix by rows (9), a translation (3) and the same
rotation as a unit quaternion wxyz (4).
"""

import numpy as np
from numba import float32, njit

_SETTINGS = {"nogil": True, "fastmath": True, "error_model": "numpy", "cache": True}


@njit(**_SETTINGS)
def _sums(controls, rows, shares, m, sums):
    """Writes the weighted sum of a bone's control points; returns its quaternion, normalized, and one over its length."""
    for k in range(7):
        total = float32(0)
        for row in range(len(rows)):
            total += shares[row] * controls[rows[row], m, k]
        sums[k] = total
    w, x, y, z = float32(1) + sums[3], sums[4], sums[5], sums[6]
    inverse = float32(1) / max(np.sqrt(w * w + x * x + y * y + z * z), float32(1e-12))
    return w * inverse, x * inverse, y * inverse, z * inverse, inverse


@njit(**_SETTINGS)
def pose(controls, rows, shares, centres, unit, bones):
    """Writes bones [M 16], each turned about its centre; of the control points' `rows` this time needs some, by `shares`."""
    sums = np.empty(7, np.float32)
    one, two = float32(1), float32(2)
    for m in range(len(bones)):
        w, x, y, z, _ = _sums(controls, rows, shares, m, sums)
        bone, centre = bones[m], centres[m]
        bone[0], bone[1], bone[2] = one - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y)
        bone[3], bone[4], bone[5] = two * (x * y + w * z), one - two * (x * x + z * z), two * (y * z - w * x)
        bone[6], bone[7], bone[8] = two * (x * z - w * y), two * (y * z + w * x), one - two * (x * x + y * y)
        for k in range(3):
            turned = bone[3 * k] * centre[0] + bone[3 * k + 1] * centre[1] + bone[3 * k + 2] * centre[2]
            bone[9 + k] = centre[k] - turned + unit * sums[k]
        bone[12], bone[13], bone[14], bone[15] = w, x, y, z


@njit(**_SETTINGS)
def pose_backward(controls, rows, shares, centres, unit, by_bones, by_controls):
    """Writes the gradient [rows M 7] of the control points; it must be zeros before."""
    sums, by_sums, g = np.empty(7, np.float32), np.empty(7, np.float32), np.empty(9, np.float32)
    two = float32(2)
    for m in range(len(by_bones)):
        w, x, y, z, inverse = _sums(controls, rows, shares, m, sums)
        given = by_bones[m]
        for k in range(3):
            by_sums[k] = unit * given[9 + k]
            for j in range(3):
                g[3 * k + j] = given[3 * k + j] - given[9 + k] * centres[m, j]
        by_w = given[12] + two * (x * (g[7] - g[5]) + y * (g[2] - g[6]) + z * (g[3] - g[1]))
        by_x = given[13] + two * (y * (g[1] + g[3]) + z * (g[2] + g[6]) + w * (g[7] - g[5]) - two * x * (g[4] + g[8]))
        by_y = given[14] + two * (x * (g[1] + g[3]) + z * (g[5] + g[7]) + w * (g[2] - g[6]) - two * y * (g[0] + g[8]))
        by_z = given[15] + two * (x * (g[2] + g[6]) + y * (g[5] + g[7]) + w * (g[3] - g[1]) - two * z * (g[0] + g[4]))
        # Through the normalization: what points along the quaternion is lost.
        along = w * by_w + x * by_x + y * by_y + z * by_z
        by_sums[3], by_sums[4] = inverse * (by_w - along * w), inverse * (by_x - along * x)
        by_sums[5], by_sums[6] = inverse * (by_y - along * y), inverse * (by_z - along * z)
        for row in range(len(rows)):
            for k in range(7):
                by_controls[rows[row], m, k] += shares[row] * by_sums[k]
