"""Splats composited front to back, a block of 4 x 4 pixels at a time; its gradients are in `compositing_backward`.

At a pixel d pixels from a splat's middle its alpha is min(2^(log2 o - |U d|²), ALPHA_MAX), taken for 0 below ALPHA_MIN
(the root U of the inverse covariance is scaled to base 2, see `tiles`). The splats' weights are w_k = alpha_k T_k with
the transmittance T_k = prod_{j<k} (1 - alpha_j); the pixel stops before the splat that would bring T down to
TRANSMITTANCE_MIN. The picture is sum_k w_k c_k + T c_background.

Channels come in groups of four; the last group is filled up with zeros. Nothing is compiled for a new number of
channels.
"""

from typing import NamedTuple

import numpy as np
from numba import float32, njit

from nfc_gs.kernels.scratch import copy_first_four, copy_first_sixteen, empty_lines, zero_lines
from nfc_gs.kernels.simd import (
    LANES,
    bits,
    broadcast,
    exp2,
    fill,
    fma,
    fnma,
    load,
    load_columns,
    minimum,
    prefetch,
    select,
    store,
    store_columns,
)
from nfc_gs.kernels.threads import take
from nfc_gs.kernels.tiles import (
    AHEAD,
    BLOCK,
    BLOCKS,
    MEAN_X,
    ROOT_R,
    TILE,
    find_rows,
    list_block,
    touch_blocks,
)

GROUP = 4
# A splat's shape as one tile sees it: |U d|² = (U0 + P x + Q y)² + (V0 + R y)² with x, y from the tile's middle. Its channels
# lie elsewhere, so that what only the shapes are needed for finds all of them in the nearest cache.
U0, V0, P, Q, R, E0 = 0, 1, 2, 3, 4, 5
LOCAL = 8
# A splat's gradient within one tile: moments of q, sums of |d loss / d mean|; that of its channels lies elsewhere, too.
S1, SX, SY, SXX, SXY, SYY, ABS_X, ABS_Y = 0, 1, 2, 3, 4, 5, 6, 7
# A splat's gradient over all tiles: sums of q times u, v, u², u v, v², 1, then |d mean|, then its channels.
GU, GV, GUU, GUV, GVV, G1 = 0, 1, 2, 3, 4, 5
# Weights are kept for so many splats before they meet the channels: few enough for the nearest cache.
_BATCH = 64

_RELAXED = {"nsz", "contract", "reassoc", "arcp"}
_SETTINGS = {"nogil": True, "cache": True, "fastmath": _RELAXED, "error_model": "numpy"}
# For what takes no memory: then Numba does not count, atomically and at every call, who uses which array.
_WITHIN = _SETTINGS | {"_nrt": False}
_ZERO, _ONE = np.float32(0), np.float32(1)
_ALL = np.uint32(2**LANES - 1)
# Where in a block its lanes lie, from the middle of a tile to that of its first block's first pixel.
LANE_X = np.tile(np.arange(BLOCK, dtype=np.float32), BLOCK) - np.float32(TILE / 2 - 0.5)
LANE_Y = np.repeat(np.arange(BLOCK, dtype=np.float32), BLOCK) - np.float32(TILE / 2 - 0.5)


class Limits(NamedTuple):
    """Where compositing cuts off, as float32: see `core.rendering`; `log_alpha_min` to base 2."""

    log_alpha_min: np.float32
    alpha_max: np.float32
    transmittance_min: np.float32


class Lists(NamedTuple):
    """The splats of each tile, nearest first (see `tiles`), and the picture they are for."""

    rows: np.ndarray
    starts: np.ndarray
    groups: np.ndarray
    splats: np.ndarray
    touches: np.ndarray
    width: int
    height: int
    across: int
    longest: int


@njit(**_WITHIN)
def localize(lists, tile, values, width, starts, places, local, colours):
    """Writes the shapes of a tile's splats to `local`, and their channels, filled up to `width`, to `colours`.

    `starts` and `places` are scratch [16].
    """
    channels = values.shape[1]
    middle_x = fill(float32(tile % lists.across * TILE + TILE // 2))
    middle_y = fill(float32(tile // lists.across * TILE + TILE // 2))
    splats = lists.splats[lists.starts[tile] : lists.starts[tile + 1]]
    last = splats.size - 1
    zero = fill(_ZERO)
    for first in range(0, splats.size, LANES):
        # Sixteen at a time, so that zeros come behind the channels, and into the rows that follow, which are written later.
        for k in range(first, min(first + LANES, splats.size)):
            ahead = np.int64(splats[min(k + AHEAD, last)]) * channels
            prefetch(values, ahead)
            prefetch(values, ahead + channels - 1)
            source, place = np.int64(splats[k]) * channels, k * width
            if channels <= GROUP:
                copy_first_four(colours, place, values, source, channels)
            else:
                for channel in range(0, channels, LANES):
                    copy_first_sixteen(colours, place + channel, values, source + channel, channels - channel)
        find_rows(lists.rows, splats, first, starts)
        for lane in range(LANES):
            places[lane] = (first + lane) * LOCAL
        mean_x, mean_y, p, q = load_columns(lists.rows, starts, MEAN_X)
        r, log_opacity, _, _ = load_columns(lists.rows, starts, ROOT_R)
        x, y = middle_x - mean_x, middle_y - mean_y
        store_columns(local, places, U0, fma(p, x, q * y), r * y, p, q)
        store_columns(local, places, R, r, log_opacity, zero, zero)


@njit(**_WITHIN)
def _inside(lists, tile, block):
    """Ones in the lanes of a block that lie in the picture, zeros in the others."""
    x = lists.width - (tile % lists.across * TILE + block % 4 * BLOCK)
    y = lists.height - (tile // lists.across * TILE + block // 4 * BLOCK)
    one, zero = fill(_ONE), fill(_ZERO)
    right = fill(float32(x) - float32(TILE / 2))
    bottom = fill(float32(y) - float32(TILE / 2))
    return select(right > load(LANE_X, 0), select(bottom > load(LANE_Y, 0), one, zero), zero)


@njit(**_WITHIN)
def find_pixels(x, y, pitch, channels, starts):
    """Writes where the pixels of the block at x, y start in a picture whose rows are `pitch` numbers long."""
    for lane in range(LANES):
        starts[lane] = (y + lane // BLOCK) * pitch + (x + lane % BLOCK) * channels


@njit(**_WITHIN)
def ask_for_pixels(picture, x, y, pitch, channels):
    """Asks for the lines of memory that the pixels of the block at x, y lie in; any x, y."""
    for row in range(BLOCK):
        first = (y + row) * pitch + x * channels
        for number in range(0, BLOCK * channels, LANES):
            prefetch(picture, first + number)
        prefetch(picture, first + BLOCK * channels - 1)


@njit(**_SETTINGS)
def composite(
    queues, number, lists, values, background, limits, transmittances, stops, channels_out, alpha_out
):  # fmt: skip
    """Draws the tiles that thread `number` takes from `queues`: writes channels_out [H W C] and alpha_out [H W].

    Also writes what `composite_backward` needs: which splats touch which block (`lists.touches`), and for each of the
    tiles' 256 pixels, block by block, the transmittance left, and of how many splats of its block the last was at most seen,
    0 outside of the picture.
    """
    channels = values.shape[1]
    groups = (channels + GROUP - 1) // GROUP
    width = groups * GROUP
    room = (lists.longest + LANES - 1) // LANES * LANES + LANES
    whole = channels // GROUP * GROUP
    local, colours = zero_lines(room * LOCAL), zero_lines(room * width + LANES)
    listed = np.empty(room, np.uint32)
    starts, places = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    weights = empty_lines(_BATCH * LANES)
    sums = empty_lines(width * LANES)
    tile = take(queues, number)
    while tile >= 0:
        begin, end = lists.starts[tile], lists.starts[tile + 1]
        left, top = tile % lists.across * TILE, tile // lists.across * TILE
        touches = lists.touches[lists.groups[tile] * BLOCKS : lists.groups[tile + 1] * BLOCKS]
        touch_blocks(lists.rows, lists.splats[begin:end], float32(left), float32(top), starts, touches)
        localize(lists, tile, values, width, starts, places, local, colours)
        for block in range(BLOCKS):
            x, y = left + block % 4 * BLOCK, top + block // 4 * BLOCK
            if x >= lists.width or y >= lists.height:
                continue
            ask_for_pixels(channels_out, x, y, lists.width * channels, channels)
            count = list_block(touches, touches.size // BLOCKS, block, listed)
            state = (tile * BLOCKS + block) * LANES
            inside = _inside(lists, tile, block)
            if channels < GROUP:
                _composite_group(
                    listed, count, local, colours, block, limits, inside, None, sums, transmittances, stops, state
                )  # fmt: skip
            elif channels == GROUP:
                _composite_group(
                    listed, count, local, colours, block, limits, inside, True, sums, transmittances, stops, state
                )  # fmt: skip
            else:
                _composite_block(
                    listed, count, local, colours, width, block, limits, inside, weights, sums, transmittances, stops,
                    state,
                )  # fmt: skip
            left_over = load(transmittances, state)
            for channel in range(channels):
                sum = load(sums, channel * LANES)
                store(sums, channel * LANES, fma(left_over, fill(background[channel]), sum))
            if x + BLOCK <= lists.width and y + BLOCK <= lists.height:
                find_pixels(x, y, lists.width * channels, channels, starts)
                for channel in range(0, whole, GROUP):
                    a, b = load(sums, channel * LANES), load(sums, (channel + 1) * LANES)
                    c, d = load(sums, (channel + 2) * LANES), load(sums, (channel + 3) * LANES)
                    store_columns(channels_out, starts, channel, a, b, c, d)
                for lane in range(LANES):
                    row, column = y + lane // BLOCK, x + lane % BLOCK
                    alpha_out[row, column] = _ONE - transmittances[state + lane]
                    for channel in range(whole, channels):
                        channels_out[row, column, channel] = sums[channel * LANES + lane]
            else:
                for lane in range(LANES):
                    row, column = y + lane // BLOCK, x + lane % BLOCK
                    if row < lists.height and column < lists.width:
                        alpha_out[row, column] = _ONE - transmittances[state + lane]
                        for channel in range(channels):
                            channels_out[row, column, channel] = sums[channel * LANES + lane]
        tile = take(queues, number)


@njit(**_WITHIN)
def find_alpha(local, at, x, y, alpha_max, faintest):
    """A splat's alpha at the pixels x, y, and where it is not 0."""
    u = fma(broadcast(local, at + P), x, fma(broadcast(local, at + Q), y, broadcast(local, at + U0)))
    v = fma(broadcast(local, at + R), y, broadcast(local, at + V0))
    exponent = fnma(u, u, fnma(v, v, broadcast(local, at + E0)))
    seen = exponent >= faintest
    return select(seen, minimum(exp2(exponent), alpha_max), fill(_ZERO)), seen


@njit(**_WITHIN)
def _composite_group(listed, count, local, colours, block, limits, inside, fourth, sums, transmittances, stops, state):
    """`_composite_block` of a single group of channels, whose sums stay in registers; `fourth` is None if there is none."""
    x = load(LANE_X, 0) + fill(float32(block % 4 * BLOCK))
    y = load(LANE_Y, 0) + fill(float32(block // 4 * BLOCK))
    zero = fill(_ZERO)
    alpha_max, faintest = fill(limits.alpha_max), fill(limits.log_alpha_min)
    darkest = fill(limits.transmittance_min)
    through, remaining = inside, inside
    a, b, c, d = zero, zero, zero, zero
    looked = count
    for k in range(count):
        number = np.int64(listed[np.uint64(k)])
        at, colour = number * LOCAL, number * GROUP
        alpha, _ = find_alpha(local, at, x, y, alpha_max, faintest)
        weight = alpha * through
        # What is left falls on in pixels that have stopped, and so they stay stopped.
        through = fnma(alpha, through, through)
        alive = through > darkest
        weight = select(alive, weight, zero)
        remaining = select(alive, through, remaining)
        a = fma(weight, broadcast(colours, colour), a)
        b = fma(weight, broadcast(colours, colour + 1), b)
        c = fma(weight, broadcast(colours, colour + 2), c)
        if fourth is not None:
            d = fma(weight, broadcast(colours, colour + 3), d)
        if bits(alive) == 0:
            looked = k
            break
    store(sums, 0, a)
    store(sums, LANES, b)
    store(sums, 2 * LANES, c)
    store(sums, 3 * LANES, d)
    store(transmittances, state, remaining)
    store(stops, state, inside * fill(float32(looked)))


@njit(**_WITHIN)
def _composite_block(
    listed, count, local, colours, width, block, limits, inside, weights, sums, transmittances, stops, state
):  # fmt: skip
    """One block: writes the weighted channels to `sums` [C 16], and transmittances and stops [state : state + 16].

    `inside` is the transmittance at the start: 1 in the picture, and 0, thus stopped, outside.
    """
    x = load(LANE_X, 0) + fill(float32(block % 4 * BLOCK))
    y = load(LANE_Y, 0) + fill(float32(block // 4 * BLOCK))
    zero = fill(_ZERO)
    alpha_max, faintest = fill(limits.alpha_max), fill(limits.log_alpha_min)
    darkest = fill(limits.transmittance_min)
    through, remaining = inside, inside
    sums[:] = _ZERO
    begin, looked = 0, count
    while begin < looked:
        used = 0
        for k in range(begin, min(begin + _BATCH, looked)):
            at = np.int64(listed[np.uint64(k)]) * LOCAL
            alpha, _ = find_alpha(local, at, x, y, alpha_max, faintest)
            weight = alpha * through
            # What is left falls on in pixels that have stopped, and so they stay stopped.
            through = fnma(alpha, through, through)
            alive = through > darkest
            if bits(alive) == 0:
                looked = k
                break
            store(weights, used * LANES, select(alive, weight, zero))
            remaining = select(alive, through, remaining)
            used += 1
        group = 0
        while group + GROUP < width:
            _add_two_groups(listed, begin, used, colours, width, weights, group, sums)
            group += 2 * GROUP
        if group < width:
            _add_group(listed, begin, used, colours, width, weights, group, sums)
        begin += used
    store(transmittances, state, remaining)
    store(stops, state, inside * fill(float32(looked)))


@njit(**_WITHIN)
def _add_group(listed, begin, used, colours, width, weights, group, sums):
    """Adds to `sums` four weighted channels, from `group` on, of the splats from `begin` on."""
    a, b = load(sums, group * LANES), load(sums, (group + 1) * LANES)
    c, d = load(sums, (group + 2) * LANES), load(sums, (group + 3) * LANES)
    for k in range(used):
        weight = load(weights, k * LANES)
        at = np.int64(listed[np.uint64(begin + k)]) * width + group
        a, b = fma(weight, broadcast(colours, at), a), fma(weight, broadcast(colours, at + 1), b)
        c, d = fma(weight, broadcast(colours, at + 2), c), fma(weight, broadcast(colours, at + 3), d)
    store(sums, group * LANES, a)
    store(sums, (group + 1) * LANES, b)
    store(sums, (group + 2) * LANES, c)
    store(sums, (group + 3) * LANES, d)


@njit(**_WITHIN)
def _add_two_groups(listed, begin, used, colours, width, weights, group, sums):
    """The same for eight channels, with half the weights to read."""
    a, b = load(sums, group * LANES), load(sums, (group + 1) * LANES)
    c, d = load(sums, (group + 2) * LANES), load(sums, (group + 3) * LANES)
    e, f = load(sums, (group + 4) * LANES), load(sums, (group + 5) * LANES)
    g, h = load(sums, (group + 6) * LANES), load(sums, (group + 7) * LANES)
    for k in range(used):
        weight = load(weights, k * LANES)
        at = np.int64(listed[np.uint64(begin + k)]) * width + group
        a, b = fma(weight, broadcast(colours, at), a), fma(weight, broadcast(colours, at + 1), b)
        c, d = fma(weight, broadcast(colours, at + 2), c), fma(weight, broadcast(colours, at + 3), d)
        e, f = fma(weight, broadcast(colours, at + 4), e), fma(weight, broadcast(colours, at + 5), f)
        g, h = fma(weight, broadcast(colours, at + 6), g), fma(weight, broadcast(colours, at + 7), h)
    store(sums, group * LANES, a)
    store(sums, (group + 1) * LANES, b)
    store(sums, (group + 2) * LANES, c)
    store(sums, (group + 3) * LANES, d)
    store(sums, (group + 4) * LANES, e)
    store(sums, (group + 5) * LANES, f)
    store(sums, (group + 6) * LANES, g)
    store(sums, (group + 7) * LANES, h)
