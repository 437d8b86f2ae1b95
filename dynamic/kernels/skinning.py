"""Moves Gaussians by blended rigid motions: softmax, choice of the largest weights, blending and moving in one pass.

A bone m has sixteen numbers: a rotation matrix by rows (9), a translation (3) and the same rotation as a unit quaternion
wxyz (4). A Gaussian's weights w are the softmax of its largest `keep` logits. Its blend is B = sum of w_m times bone m;
its mean moves to B_matrix x + B_translation (linear blend skinning), its quaternion becomes B_quaternion times q.

Sixteen Gaussians, a block, are moved at a time, one in each lane. `weights` [blocks tall 16] and `blends` [blocks 16 16]
pass from `forward` to `backward`; bones are padded with zeros to [tall 16], and the weights of what is no bone are next
to nothing.
"""

import numpy as np
from numba import float32, njit

from nfc_gs.kernels.simd import (
    LANES,
    broadcast,
    exp2,
    fill,
    fma,
    fnma,
    load,
    maximum,
    minimum,
    select,
    store,
    transpose,
)

# The numbers of a bone: just one vector.
NUMBERS = LANES

_LOG2E = np.float32(np.log2(np.e))
_LOWEST = np.float32(-126)  # exp2 takes no less; 2^-126 next to a sum of at least one is nothing
_NOTHING = np.float32(-3e38)
_SETTINGS = {"nogil": True, "fastmath": True, "error_model": "numpy", "cache": True}


def padded(count: int) -> int:
    """The next multiple of `LANES`."""
    return -(-count // LANES) * LANES


@njit(**_SETTINGS)
def _columns(rows, start, columns):
    """Writes the 16 rows from `start` on as columns [tall 16]; of a last block's missing rows the last row is repeated."""
    last, width = len(rows) - 1, rows.shape[1]
    for first in range(0, width, LANES):
        block = columns[LANES * first : LANES * (first + LANES)]
        for lane in range(LANES):
            row = min(start + lane, last)
            if first + LANES <= width:
                store(block, LANES * lane, load(rows, row * width + first))
            else:
                store(block, LANES * lane, fill(_NOTHING))
                for k in range(first, width):
                    block[LANES * lane + k - first] = rows[row, k]
        transpose(block)


@njit(**_SETTINGS)
def _rows(columns, start, rows):
    """Writes columns [tall 16] as the 16 rows from `start` on, or as many as there are; `columns` are used up."""
    count, width = min(len(rows) - start, LANES), rows.shape[1]
    for first in range(0, width, LANES):
        block = columns[LANES * first : LANES * (first + LANES)]
        transpose(block)
        for lane in range(count):
            row = start + lane
            if first + LANES <= width:
                store(rows, row * width + first, load(block, LANES * lane))
            else:
                for k in range(first, width):
                    rows[row, k] = block[LANES * lane + k - first]


@njit(**_SETTINGS)
def _few_columns(rows, start, columns):
    """`_columns` for rows of a few numbers."""
    width = rows.shape[1]
    some = rows.reshape(-1)[start * width : (start + LANES) * width]
    if len(some) == LANES * width:
        for k in range(width):
            for lane in range(LANES):
                columns[LANES * k + lane] = some[width * lane + k]
    else:
        for lane in range(LANES):
            row = min(width * lane, len(some) - width)
            for k in range(width):
                columns[LANES * k + lane] = some[row + k]


@njit(**_SETTINGS)
def _few_rows(columns, start, rows):
    """`_rows` for rows of a few numbers."""
    width = rows.shape[1]
    some = rows.reshape(-1)[start * width : (start + LANES) * width]
    for k in range(width):
        for lane in range(len(some) // width):
            some[width * lane + k] = columns[LANES * k + lane]


@njit(**_SETTINGS)
def _largest(heights, count, keep, rest, tops):
    """Writes the `keep` largest of each lane's `count` heights, sorted, and perhaps some more; `rest` is scratch.

    Each height sinks below those that are not smaller: past four at a time, which stay in registers.
    """
    for rank in range(0, keep, 4):
        source = rest if rank > 0 else heights
        a = b = c = d = fill(_NOTHING)
        for place in range(0, LANES * count, LANES):
            sinking = load(source, place)
            a, sinking = maximum(a, sinking), minimum(a, sinking)
            b, sinking = maximum(b, sinking), minimum(b, sinking)
            c, sinking = maximum(c, sinking), minimum(c, sinking)
            d, sinking = maximum(d, sinking), minimum(d, sinking)
            store(rest, place, sinking)
        store(tops, LANES * rank, a)
        store(tops, LANES * (rank + 1), b)
        store(tops, LANES * (rank + 2), c)
        store(tops, LANES * (rank + 3), d)


@njit(**_SETTINGS)
def _soften(heights, count, keep, rest, tops, weights, start):
    """Writes to `weights[start:]` each lane's softmax of its `keep` largest heights; of equal ones the first are kept."""
    log2e, lowest, nothing, one = fill(_LOG2E), fill(_LOWEST), fill(float32(0)), fill(float32(1))
    _largest(heights, count, keep if keep < count else 1, rest, tops)
    highest, total = load(tops, 0), nothing
    tall = len(heights)
    if keep == count:
        for place in range(0, tall, LANES):
            power = exp2(maximum((load(heights, place) - highest) * log2e, lowest))
            store(weights, start + place, power)
            total = total + power
    else:
        bar = load(tops, LANES * (keep - 1))
        # How many of those as high as the bar are kept.
        room = nothing
        for rank in range(keep):
            room = room + select(bar >= load(tops, LANES * rank), one, nothing)
        for place in range(0, tall, LANES):
            height = load(heights, place)
            power = exp2(maximum((height - highest) * log2e, lowest))
            equal = (height >= bar) & (bar >= height)
            power = select(height > bar, power, select(equal & (room > nothing), power, nothing))
            room = room - select(equal, one, nothing)
            store(weights, start + place, power)
            total = total + power
    inverse = one / total
    for place in range(start, start + tall, LANES):
        store(weights, place, load(weights, place) * inverse)


@njit(**_SETTINGS)
def _blend(weights, start, tall, bones, blends, to):
    """Writes to `blends[to:]` the weighted sums of the bones' numbers, four numbers at a time."""
    for k in range(0, NUMBERS, 4):
        a = b = c = d = fill(float32(0))
        for m in range(tall):
            weight = load(weights, start + LANES * m)
            a = fma(weight, broadcast(bones, NUMBERS * m + k), a)
            b = fma(weight, broadcast(bones, NUMBERS * m + k + 1), b)
            c = fma(weight, broadcast(bones, NUMBERS * m + k + 2), c)
            d = fma(weight, broadcast(bones, NUMBERS * m + k + 3), d)
        store(blends, to + LANES * k, a)
        store(blends, to + LANES * (k + 1), b)
        store(blends, to + LANES * (k + 2), c)
        store(blends, to + LANES * (k + 3), d)


@njit(**_SETTINGS)
def _move(blends, start, means, quats):
    """Moves sixteen means and quaternions, given as columns, in place."""
    x, y, z = load(means, 0), load(means, LANES), load(means, 2 * LANES)
    for k in range(3):
        row = start + 3 * LANES * k
        moved = fma(load(blends, row), x, load(blends, start + LANES * (9 + k)))
        moved = fma(load(blends, row + 2 * LANES), z, fma(load(blends, row + LANES), y, moved))
        store(means, LANES * k, moved)
    q = start + 12 * LANES
    aw, ax, ay, az = load(blends, q), load(blends, q + LANES), load(blends, q + 2 * LANES), load(blends, q + 3 * LANES)
    bw, bx, by, bz = load(quats, 0), load(quats, LANES), load(quats, 2 * LANES), load(quats, 3 * LANES)
    store(quats, 0, fnma(az, bz, fnma(ay, by, fnma(ax, bx, aw * bw))))
    store(quats, LANES, fnma(az, by, fma(ay, bz, fma(ax, bw, aw * bx))))
    store(quats, 2 * LANES, fma(az, bx, fma(ay, bw, fnma(ax, bz, aw * by))))
    store(quats, 3 * LANES, fma(az, bw, fnma(ay, bx, fma(ax, by, aw * bz))))


@njit(**_SETTINGS)
def forward(first, last, logits, bones, means, quats, keep, weights, blends, moved_means, moved_quats):
    """Writes the moved means [N 3] and quaternions [N 4] of the blocks first .. last, and their weights and blends."""
    count, tall = logits.shape[1], len(bones)
    heights, rest = np.empty(LANES * tall, np.float32), np.empty(LANES * tall, np.float32)
    tops = np.empty(LANES * (keep + 3), np.float32)
    some_means, some_quats = np.empty(3 * LANES, np.float32), np.empty(4 * LANES, np.float32)
    for block in range(first, last):
        _columns(logits, LANES * block, heights)
        _soften(heights, count, keep, rest, tops, weights, LANES * tall * block)
        _blend(weights, LANES * tall * block, tall, bones, blends, LANES * NUMBERS * block)
        _few_columns(means, LANES * block, some_means)
        _few_columns(quats, LANES * block, some_quats)
        _move(blends, LANES * NUMBERS * block, some_means, some_quats)
        _few_rows(some_means, LANES * block, moved_means)
        _few_rows(some_quats, LANES * block, moved_quats)


@njit(**_SETTINGS)
def _pull(blends, start, means, quats, by_means, by_quats, pulls):
    """Writes the gradients of sixteen blends; those of the moved means and quaternions become those of the unmoved."""
    gx, gy, gz = load(by_means, 0), load(by_means, LANES), load(by_means, 2 * LANES)
    for j in range(3):
        mean, column = load(means, LANES * j), start + LANES * j
        store(pulls, LANES * j, gx * mean)
        store(pulls, LANES * (3 + j), gy * mean)
        store(pulls, LANES * (6 + j), gz * mean)
        by_mean = fma(load(blends, column + 3 * LANES), gy, load(blends, column) * gx)
        store(by_means, LANES * j, fma(load(blends, column + 6 * LANES), gz, by_mean))
    store(pulls, 9 * LANES, gx)
    store(pulls, 10 * LANES, gy)
    store(pulls, 11 * LANES, gz)
    q = start + 12 * LANES
    aw, ax, ay, az = load(blends, q), load(blends, q + LANES), load(blends, q + 2 * LANES), load(blends, q + 3 * LANES)
    bw, bx, by, bz = load(quats, 0), load(quats, LANES), load(quats, 2 * LANES), load(quats, 3 * LANES)
    gw, gi, gj, gk = load(by_quats, 0), load(by_quats, LANES), load(by_quats, 2 * LANES), load(by_quats, 3 * LANES)
    store(pulls, 12 * LANES, fma(gk, bz, fma(gj, by, fma(gi, bx, gw * bw))))
    store(pulls, 13 * LANES, fma(gk, by, fnma(gj, bz, fnma(gw, bx, gi * bw))))
    store(pulls, 14 * LANES, fnma(gk, bx, fma(gj, bw, fnma(gw, by, gi * bz))))
    store(pulls, 15 * LANES, fma(gk, bw, fma(gj, bx, fnma(gw, bz, fnma(gi, by, fill(float32(0)))))))
    store(by_quats, 0, fma(gk, az, fma(gj, ay, fma(gi, ax, gw * aw))))
    store(by_quats, LANES, fnma(gk, ay, fma(gj, az, fnma(gw, ax, gi * aw))))
    store(by_quats, 2 * LANES, fma(gk, ax, fnma(gi, az, fnma(gw, ay, gj * aw))))
    store(by_quats, 3 * LANES, fnma(gj, ax, fma(gi, ay, fnma(gw, az, gk * aw))))


@njit(**_SETTINGS)
def _by_heights(weights, start, tall, bones, pulls, by_heights):
    """Writes the gradients of sixteen Gaussians' logits: through the blend, four bones at a time, then the softmax."""
    along = fill(float32(0))
    for m in range(0, tall, 4):
        a = b = c = d = fill(float32(0))
        for k in range(NUMBERS):
            pull, place = load(pulls, LANES * k), NUMBERS * m + k
            a = fma(pull, broadcast(bones, place), a)
            b = fma(pull, broadcast(bones, place + NUMBERS), b)
            c = fma(pull, broadcast(bones, place + 2 * NUMBERS), c)
            d = fma(pull, broadcast(bones, place + 3 * NUMBERS), d)
        at = start + LANES * m
        along = fma(load(weights, at + LANES), b, fma(load(weights, at), a, along))
        along = fma(load(weights, at + 3 * LANES), d, fma(load(weights, at + 2 * LANES), c, along))
        store(by_heights, LANES * m, a)
        store(by_heights, LANES * (m + 1), b)
        store(by_heights, LANES * (m + 2), c)
        store(by_heights, LANES * (m + 3), d)
    for place in range(0, LANES * tall, LANES):
        by_height = load(weights, start + place) * (load(by_heights, place) - along)
        store(by_heights, place, by_height)


@njit(**_SETTINGS)
def _by_bones(weights, start, tall, pulls, by_bones):
    """Adds sixteen Gaussians' gradients of the bones, four bones at a time; here `pulls` lie in rows."""
    for m in range(0, tall, 4):
        place, at = NUMBERS * m, start + LANES * m
        a, b = load(by_bones, place), load(by_bones, place + NUMBERS)
        c, d = load(by_bones, place + 2 * NUMBERS), load(by_bones, place + 3 * NUMBERS)
        for lane in range(LANES):
            pull = load(pulls, NUMBERS * lane)
            a = fma(pull, broadcast(weights, at + lane), a)
            b = fma(pull, broadcast(weights, at + LANES + lane), b)
            c = fma(pull, broadcast(weights, at + 2 * LANES + lane), c)
            d = fma(pull, broadcast(weights, at + 3 * LANES + lane), d)
        store(by_bones, place, a)
        store(by_bones, place + NUMBERS, b)
        store(by_bones, place + 2 * NUMBERS, c)
        store(by_bones, place + 3 * NUMBERS, d)


@njit(**_SETTINGS)
def backward(
    first,
    last,
    bones,
    means,
    quats,
    weights,
    blends,
    by_moved_means,
    by_moved_quats,
    by_logits,
    by_bones,
    by_means,
    by_quats,
):
    """Writes the gradients of logits, means and quaternions in the stretches first .. last, and adds those of the bones.

    A stretch of blocks has a sum of its own in `by_bones` [stretches tall 16], so what is added up in which order does not
    depend on the threads.
    """
    tall, blocks, stretches = len(bones), len(weights), len(by_bones)
    by_heights, pulls = np.empty(LANES * tall, np.float32), np.empty(LANES * NUMBERS, np.float32)
    some_means, some_quats = np.empty(3 * LANES, np.float32), np.empty(4 * LANES, np.float32)
    by_some_means, by_some_quats = np.empty(3 * LANES, np.float32), np.empty(4 * LANES, np.float32)
    stretch = first
    for block in range(blocks * first // stretches, blocks * last // stretches):
        while block >= blocks * (stretch + 1) // stretches:
            stretch += 1
        row, start = LANES * block, LANES * tall * block
        _few_columns(means, row, some_means)
        _few_columns(quats, row, some_quats)
        _few_columns(by_moved_means, row, by_some_means)
        _few_columns(by_moved_quats, row, by_some_quats)
        for lane in range(len(means) - row, LANES):
            # A last block's missing Gaussians pull at no bone.
            for k in range(3):
                by_some_means[LANES * k + lane] = float32(0)
            for k in range(4):
                by_some_quats[LANES * k + lane] = float32(0)
        _pull(blends, LANES * NUMBERS * block, some_means, some_quats, by_some_means, by_some_quats, pulls)
        _few_rows(by_some_means, row, by_means)
        _few_rows(by_some_quats, row, by_quats)
        _by_heights(weights, start, tall, bones, pulls, by_heights)
        _rows(by_heights, row, by_logits)
        transpose(pulls)
        _by_bones(weights, start, tall, pulls, by_bones[stretch])
