"""Splats composited front to back, and the gradients of it, a block of 4 x 4 pixels at a time.

At a pixel d pixels from a splat's middle its alpha is min(2^(log2 o - |U d|²), ALPHA_MAX), taken for 0 below ALPHA_MIN
(the root U of the inverse covariance is scaled to base 2, see `tiles`). The splats' weights are w_k = alpha_k T_k with
the transmittance T_k = prod_{j<k} (1 - alpha_j); the pixel stops before the splat that would bring T down to
TRANSMITTANCE_MIN. The picture is sum_k w_k c_k + T c_background.

Backwards, from the last splat to the first, T_k = T_{k+1} / (1 - alpha_k), and with g_k = <c_k, v> for the incoming
gradient v and the one number S_k = sum_{j>k} w_j g_j + T (<c_background, v> - v_alpha):

    d loss / d alpha_k = T_k g_k - S_k / (1 - alpha_k),        d loss / d c_k = w_k v.

A splat's geometry meets the loss only through q = alpha d loss / d alpha at each pixel, of which the six moments (1,
x, y, x², x y, y²) over the pixels suffice. Sixteen splats at a time are transposed, so that lanes are splats and sums
are free.

Channels come in groups of four; the last group is filled up with zeros. Nothing is compiled for a new number of
channels.
"""

from typing import NamedTuple

import numpy as np
from numba import float32, njit

from nfc_gs.kernels.simd import (
    LANES,
    absolute,
    add_columns,
    add_four,
    bits,
    broadcast,
    copy_four,
    exp2,
    fill,
    fma,
    fnma,
    largest,
    load,
    load_columns,
    minimum,
    prefetch,
    select,
    smallest,
    store,
    store_columns,
    transpose,
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
# A splat as one tile sees it: |U d|² = (U0 + P x + Q y)² + (V0 + R y)² with x, y from the tile's middle; then its
# channels.
U0, V0, P, Q, R, E0 = 0, 1, 2, 3, 4, 5
LOCAL = 8
# A splat's gradient within one tile: moments of q, sums of |d loss / d mean|, then its channels.
S1, SX, SY, SXX, SXY, SYY, ABS_X, ABS_Y = 0, 1, 2, 3, 4, 5, 6, 7
# A splat's gradient over all tiles: sums of q times u, v, u², u v, v², 1, then |d mean|, then its channels.
GU, GV, GUU, GUV, GVV, G1 = 0, 1, 2, 3, 4, 5
# Weights are kept for so many splats before they meet the channels: few enough for the nearest cache.
_BATCH = 64
# Of so many splats the dot products with the incoming gradient are formed together, when there are several groups.
AT_ONCE = 4

_RELAXED = {"nsz", "contract", "reassoc", "arcp"}
_SETTINGS = {"nogil": True, "cache": True, "fastmath": _RELAXED, "error_model": "numpy"}
_ZERO, _ONE = np.float32(0), np.float32(1)
_ALL = np.uint32(2**LANES - 1)
# Where in a block its lanes lie, from the middle of a tile to that of its first block's first pixel.
_LANE_X = np.tile(np.arange(BLOCK, dtype=np.float32), BLOCK) - np.float32(TILE / 2 - 0.5)
_LANE_Y = np.repeat(np.arange(BLOCK, dtype=np.float32), BLOCK) - np.float32(TILE / 2 - 0.5)


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


@njit(**_SETTINGS)
def _localize(lists, tile, values, stride, starts, places, local):
    """Writes the rows of a tile's splats, with their channels, to `local`; `starts` and `places` are scratch [16]."""
    channels = values.shape[1]
    whole = channels // GROUP * GROUP
    middle_x = fill(float32(tile % lists.across * TILE + TILE // 2))
    middle_y = fill(float32(tile // lists.across * TILE + TILE // 2))
    splats = lists.splats[lists.starts[tile] : lists.starts[tile + 1]]
    zero = fill(_ZERO)
    for first in range(0, splats.size, LANES):
        find_rows(lists.rows, splats, first, starts)
        for lane in range(LANES):
            places[lane] = (first + lane) * stride
        mean_x, mean_y, p, q = load_columns(lists.rows, starts, MEAN_X)
        r, log_opacity, _, _ = load_columns(lists.rows, starts, ROOT_R)
        x, y = middle_x - mean_x, middle_y - mean_y
        store_columns(local, places, U0, fma(p, x, q * y), r * y, p, q)
        store_columns(local, places, R, r, log_opacity, zero, zero)
        for k in range(first, min(first + LANES, splats.size)):
            prefetch(values, np.int64(splats[min(k + AHEAD, splats.size - 1)]) * channels)
            source, place = np.int64(splats[k]) * channels, k * stride + LOCAL
            for channel in range(0, whole, GROUP):
                copy_four(local, place + channel, values, source + channel)
            for channel in range(whole, channels):
                local[place + channel] = values[splats[k], channel]


@njit(**_SETTINGS)
def _inside(lists, tile, block):
    """Ones in the lanes of a block that lie in the picture, zeros in the others."""
    x = lists.width - (tile % lists.across * TILE + block % 4 * BLOCK)
    y = lists.height - (tile // lists.across * TILE + block // 4 * BLOCK)
    one, zero = fill(_ONE), fill(_ZERO)
    right = fill(float32(x) - float32(TILE / 2))
    bottom = fill(float32(y) - float32(TILE / 2))
    return select(right > load(_LANE_X, 0), select(bottom > load(_LANE_Y, 0), one, zero), zero)


@njit(**_SETTINGS)
def _find_pixels(x, y, pitch, channels, starts):
    """Writes where the pixels of the block at x, y start in a picture whose rows are `pitch` numbers long."""
    for lane in range(LANES):
        starts[lane] = (y + lane // BLOCK) * pitch + (x + lane % BLOCK) * channels


@njit(**_SETTINGS)
def composite(
    queues, number, lists, values, background, limits, transmittances, stops, channels_out, alpha_out
):  # fmt: skip
    """Draws the tiles that thread `number` takes from `queues`: writes channels_out [H W C] and alpha_out [H W].

    Also writes what `composite_backward` needs: which splats touch which block (`lists.touches`), and for each of the
    tiles' 256 pixels, block by block, the transmittance left and the number of splats of its block that it looked at.
    """
    channels = values.shape[1]
    groups = (channels + GROUP - 1) // GROUP
    stride = LOCAL + groups * GROUP
    room = (lists.longest + LANES - 1) // LANES * LANES + LANES
    whole = channels // GROUP * GROUP
    local = np.zeros(room * stride, np.float32)
    listed = np.empty(room, np.uint32)
    starts, places = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    weights = np.empty(_BATCH * LANES, np.float32)
    sums = np.empty(groups * GROUP * LANES, np.float32)
    tile = take(queues, number)
    while tile >= 0:
        begin, end = lists.starts[tile], lists.starts[tile + 1]
        left, top = tile % lists.across * TILE, tile // lists.across * TILE
        touches = lists.touches[lists.groups[tile] * BLOCKS : lists.groups[tile + 1] * BLOCKS]
        touch_blocks(lists.rows, lists.splats[begin:end], float32(left), float32(top), starts, touches)
        _localize(lists, tile, values, stride, starts, places, local)
        for block in range(BLOCKS):
            x, y = left + block % 4 * BLOCK, top + block // 4 * BLOCK
            if x >= lists.width or y >= lists.height:
                continue
            count = list_block(touches, touches.size // BLOCKS, block, stride, listed)
            sums[:] = _ZERO
            state = (tile * BLOCKS + block) * LANES
            _composite_block(
                listed[:count], local, stride, block, limits, _inside(lists, tile, block), weights, sums,
                transmittances, stops, state,
            )  # fmt: skip
            left_over = load(transmittances, state)
            for channel in range(channels):
                sum = load(sums, channel * LANES)
                store(sums, channel * LANES, fma(left_over, fill(background[channel]), sum))
            if x + BLOCK <= lists.width and y + BLOCK <= lists.height:
                _find_pixels(x, y, lists.width * channels, channels, starts)
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


@njit(**_SETTINGS)
def _composite_block(listed, local, stride, block, limits, through, weights, sums, transmittances, stops, state):
    """One block: adds the weighted channels to `sums` [C 16]; writes transmittances and stops [state : state + 16].

    `through` is the transmittance at the start: 1 in the picture, and 0, thus stopped, outside.
    """
    x = load(_LANE_X, 0) + fill(float32(block % 4 * BLOCK))
    y = load(_LANE_Y, 0) + fill(float32(block // 4 * BLOCK))
    zero = fill(_ZERO)
    alpha_max, faintest = fill(limits.alpha_max), fill(limits.log_alpha_min)
    darkest = fill(limits.transmittance_min)
    remaining, seen = through, zero
    living = bits(through > darkest)
    begin = 0
    while begin < listed.size and living != 0:
        used = 0
        for k in range(begin, min(begin + _BATCH, listed.size)):
            at = np.int64(listed[np.uint64(k)])
            u = fma(broadcast(local, at + P), x, fma(broadcast(local, at + Q), y, broadcast(local, at + U0)))
            v = fma(broadcast(local, at + R), y, broadcast(local, at + V0))
            exponent = fnma(u, u, fnma(v, v, broadcast(local, at + E0)))
            alpha = select(exponent >= faintest, minimum(exp2(exponent), alpha_max), zero)
            weight = alpha * through
            after = through - weight
            alive = after > darkest
            store(weights, used * LANES, select(alive, weight, zero))
            used += 1
            now = bits(alive)
            if now != living:
                # Rare: some pixels stop here, before this splat. `through` falls on and so they stay stopped.
                was_alive = through > darkest
                remaining = select(was_alive, select(alive, remaining, through), remaining)
                seen = select(was_alive, select(alive, seen, fill(float32(k))), seen)
                living = now
                if living == 0:
                    break
            through = after
        for group in range(0, stride - LOCAL, GROUP):
            a, b = load(sums, group * LANES), load(sums, (group + 1) * LANES)
            c, d = load(sums, (group + 2) * LANES), load(sums, (group + 3) * LANES)
            for k in range(used):
                weight = load(weights, k * LANES)
                at = np.int64(listed[np.uint64(begin + k)]) + LOCAL + group
                a, b = fma(weight, broadcast(local, at), a), fma(weight, broadcast(local, at + 1), b)
                c, d = fma(weight, broadcast(local, at + 2), c), fma(weight, broadcast(local, at + 3), d)
            store(sums, group * LANES, a)
            store(sums, (group + 1) * LANES, b)
            store(sums, (group + 2) * LANES, c)
            store(sums, (group + 3) * LANES, d)
        begin += used
    if living != 0:
        alive = through > darkest
        remaining = select(alive, through, remaining)
        seen = select(alive, fill(float32(listed.size)), seen)
    store(transmittances, state, remaining)
    store(stops, state, seen)


@njit(**_SETTINGS)
def composite_backward(
    queues, number, begin, lists, values, background, limits, transmittances, stops, grad_channels, grad_alpha, absgrad,
    weigh, by_splat, spare, gradients,
):  # fmt: skip
    """Writes the splats' gradients, in the tiles that thread `number` takes from `queues`, to `gradients`.

    A row of `gradients` is a splat's in all these tiles, if `by_splat` (no other thread may then write to it); or else its
    row is that of the lists' entry, counted from the first of tile `begin`, and holds the gradient in one tile, for
    `gradients.add_records` to add up. Row `spare` is scratch, of this thread alone. See GU, ... for the columns of a row, which is
    LOCAL + `padded(C, weigh)` long; ABS_X and ABS_Y only if `absgrad`, and if `weigh` the sum of a splat's weights where
    channel C would be. `transmittances` and `stops` are from `composite`.
    """
    channels = values.shape[1]
    stride = LOCAL + padded(channels, weigh)
    room = (lists.longest + LANES - 1) // LANES * LANES + LANES
    local = np.zeros(room * stride, np.float32)
    listed = np.empty(room, np.uint32)
    incoming = np.zeros((stride - LOCAL) * LANES, np.float32)
    if weigh:
        # Ones come in here where the splats have a channel of zeros: their sums are the weights'.
        incoming[channels * LANES : (channels + 1) * LANES] = _ONE
    by_pixel = np.empty((stride - LOCAL) // LANES * LANES**2, np.float32)
    behind = np.empty(LANES, np.float32)
    # A row more than there are splats, into which unused lanes are added.
    sums = np.empty(room * stride, np.float32)
    batch = np.zeros((4, LANES * LANES), np.float32)
    dots = np.empty(AT_ONCE * LANES, np.float32)
    starts, places = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    if by_splat:
        gradients[:] = _ZERO
    while True:
        tile = take(queues, number)
        if tile < 0:
            break
        count_in_tile = lists.starts[tile + 1] - lists.starts[tile]
        if count_in_tile == 0:
            continue
        left, top = tile % lists.across * TILE, tile // lists.across * TILE
        touches = lists.touches[lists.groups[tile] * BLOCKS : lists.groups[tile + 1] * BLOCKS]
        _localize(lists, tile, values, stride, starts, places, local)
        sums[: count_in_tile * stride] = _ZERO
        for block in range(BLOCKS):
            x, y = left + block % 4 * BLOCK, top + block // 4 * BLOCK
            if x >= lists.width or y >= lists.height:
                continue
            state = (tile * BLOCKS + block) * LANES
            if not largest(load(stops, state)) > 0:
                continue
            list_block(touches, touches.size // BLOCKS, block, stride, listed)
            _receive(lists, x, y, grad_channels, grad_alpha, background, channels, starts, incoming, behind)
            for channel in range(0, by_pixel.size, LANES**2):
                square = by_pixel[channel : channel + LANES**2]
                square[:] = incoming[channel : channel + LANES**2]
                transpose(square)
            _composite_block_backward(
                listed, local, stride, block, limits, load(transmittances, state), load(stops, state),
                load(transmittances, state) * load(behind, 0), incoming, by_pixel, absgrad,
                count_in_tile * stride,
                batch, dots, starts, sums,
            )  # fmt: skip
        entry = np.int64(-1)
        if not by_splat:
            entry = lists.starts[tile] - lists.starts[begin]
            gradients[entry : entry + count_in_tile] = _ZERO
        _gather_moments(lists, tile, stride, local, sums, starts, places, entry, spare, gradients)


@njit(**_SETTINGS)
def padded(channels, weigh):
    """How many channels the backward pass works with: whole groups, at least one, with room for the weights."""
    return max(channels + weigh + GROUP - 1, GROUP) // GROUP * GROUP


@njit(**_SETTINGS)
def _receive(lists, x, y, grad_channels, grad_alpha, background, channels, starts, incoming, behind):
    """Writes a block's gradients to `incoming` [C 16], and what comes through from behind all splats to `behind` [16]."""
    if x + BLOCK <= lists.width and y + BLOCK <= lists.height:
        # Four channels at a time; the last few may have the next pixel's behind them, but the picture's last pixel not.
        whole = channels
        if x + BLOCK == lists.width and y + BLOCK == lists.height:
            whole = channels // GROUP * GROUP
        _find_pixels(x, y, lists.width * channels, channels, starts)
        for channel in range(0, whole, GROUP):
            a, b, c, d = load_columns(grad_channels, starts, channel)
            store(incoming, channel * LANES, a)
            if channel + 1 < channels:
                store(incoming, (channel + 1) * LANES, b)
            if channel + 2 < channels:
                store(incoming, (channel + 2) * LANES, c)
            if channel + 3 < channels:
                store(incoming, (channel + 3) * LANES, d)
        for lane in range(LANES):
            row, column = y + lane // BLOCK, x + lane % BLOCK
            behind[lane] = -grad_alpha[row, column]
            for channel in range(whole, channels):
                incoming[channel * LANES + lane] = grad_channels[row, column, channel]
    else:
        for lane in range(LANES):
            row, column = y + lane // BLOCK, x + lane % BLOCK
            inside = row < lists.height and column < lists.width
            behind[lane] = -grad_alpha[row, column] if inside else _ZERO
            for channel in range(channels):
                incoming[channel * LANES + lane] = grad_channels[row, column, channel] if inside else _ZERO
    total = load(behind, 0)
    for channel in range(channels):
        total = fma(load(incoming, channel * LANES), fill(background[channel]), total)
    store(behind, 0, total)


@njit(**_SETTINGS)
def _composite_block_backward(
    listed, local, stride, block, limits, through, stops, behind, incoming, by_pixel, absgrad, unused, batch, dots,
    starts, sums,
):  # fmt: skip
    """One block: adds its splats' moments and channel sums to `sums`, rows of `stride`.

    `unused` is where a spare row is; `batch`, `dots` and `starts` are scratch.

    `through` is the transmittance behind all, `behind` S behind all, `incoming` v [C 16], and `by_pixel` the same of whole
    sixteens of channels, pixel by pixel.
    """
    x = load(_LANE_X, 0) + fill(float32(block % 4 * BLOCK))
    y = load(_LANE_Y, 0) + fill(float32(block // 4 * BLOCK))
    zero, one = fill(_ZERO), fill(_ONE)
    left, top = float32(block % 4 * BLOCK - 7.5), float32(block // 4 * BLOCK - 7.5)
    alpha_max, faintest = fill(limits.alpha_max), fill(limits.log_alpha_min)
    products, weights, absolute_x, absolute_y = batch[0], batch[1], batch[2], batch[3]
    k = int(largest(stops)) - 1
    fewest, never = int(smallest(stops)), fill(float32(np.inf))
    many, ready = stride - LOCAL > GROUP, 0
    while k >= 0:
        used = 0
        while k >= 0 and used < LANES:
            at = np.int64(listed[np.uint64(k)])
            root_p, root_q, root_r = broadcast(local, at + P), broadcast(local, at + Q), broadcast(local, at + R)
            u = fma(root_p, x, fma(root_q, y, broadcast(local, at + U0)))
            v = fma(root_r, y, broadcast(local, at + V0))
            exponent = fnma(u, u, fnma(v, v, broadcast(local, at + E0)))
            threshold = faintest
            if k >= fewest:
                threshold = select(stops > fill(float32(k)), faintest, never)
            mask = exponent >= threshold
            raw = select(mask, exp2(exponent), zero)
            alpha = minimum(raw, alpha_max)
            inverse = one / (one - alpha)
            through = through * inverse
            if many:
                if ready == 0:
                    _dot_products(listed, k, local, stride, incoming, dots)
                    ready = AT_ONCE
                ready -= 1
                dot = load(dots, ready * LANES)
            else:
                dot = fma(
                    broadcast(local, at + LOCAL + 1), load(incoming, LANES),
                    broadcast(local, at + LOCAL) * load(incoming, 0),
                )  # fmt: skip
                rest = fma(
                    broadcast(local, at + LOCAL + 3), load(incoming, 3 * LANES),
                    broadcast(local, at + LOCAL + 2) * load(incoming, 2 * LANES),
                )  # fmt: skip
                dot = dot + rest
            weight = alpha * through
            by_alpha = fnma(behind, inverse, through * dot)
            behind = fma(weight, dot, behind)
            product = select(raw <= alpha_max, raw * by_alpha, zero)
            store(products, used * LANES, product)
            store(weights, used * LANES, weight)
            if absgrad:
                store(absolute_x, used * LANES, absolute(product * (root_p * u)))
                store(absolute_y, used * LANES, absolute(product * fma(root_q, u, root_r * v)))
            starts[used] = at
            used += bits(mask) != 0
            k -= 1
        if used > 0:
            for lane in range(used, LANES):
                starts[lane] = unused
            _add_moments(products, left, top, absgrad, absolute_x, absolute_y, starts, sums)
            whole = (stride - LOCAL) // LANES * LANES
            for channel in range(0, whole, LANES):
                _add_sixteen(weights, by_pixel[channel * LANES :], LOCAL + channel, starts, sums)
            if whole < stride - LOCAL:
                transpose(weights)
            for group in range(whole, stride - LOCAL, GROUP):
                a, b, c, d = zero, zero, zero, zero
                for pixel in range(LANES):
                    weight = load(weights, pixel * LANES)
                    at = group * LANES + pixel
                    a, b = fma(weight, broadcast(incoming, at), a), fma(weight, broadcast(incoming, at + LANES), b)
                    c, d = (
                        fma(weight, broadcast(incoming, at + 2 * LANES), c),
                        fma(weight, broadcast(incoming, at + 3 * LANES), d),
                    )
                add_columns(sums, starts, LOCAL + group, a, b, c, d)


@njit(**_SETTINGS)
def _add_sixteen(weights, by_pixel, column, starts, sums):
    """Adds sixteen splats' weights [splats pixels] times an incoming gradient [pixels channels] to their rows of `sums`.

    From `column` on; here the lanes are sixteen channels, and four splats have their turn at once.
    """
    for splat in range(0, LANES, AT_ONCE):
        a, b, c, d = fill(_ZERO), fill(_ZERO), fill(_ZERO), fill(_ZERO)
        at = splat * LANES
        for pixel in range(LANES):
            value = load(by_pixel, pixel * LANES)
            a = fma(broadcast(weights, at + pixel), value, a)
            b = fma(broadcast(weights, at + LANES + pixel), value, b)
            c = fma(broadcast(weights, at + 2 * LANES + pixel), value, c)
            d = fma(broadcast(weights, at + 3 * LANES + pixel), value, d)
        _add_to(sums, starts[splat] + column, a)
        _add_to(sums, starts[splat + 1] + column, b)
        _add_to(sums, starts[splat + 2] + column, c)
        _add_to(sums, starts[splat + 3] + column, d)


@njit(**_SETTINGS)
def _add_to(array, index, lanes):
    """`array[index : index + 16] += lanes`."""
    store(array, index, load(array, index) + lanes)


@njit(**_SETTINGS)
def _dot_products(listed, k, local, stride, incoming, dots):
    """<c, v> at 16 pixels for the splats k, k - 1, ... of a block; splat k - i comes at AT_ONCE - 1 - i."""
    at_a, at_b = np.int64(listed[np.uint64(k)]), np.int64(listed[np.uint64(max(k - 1, 0))])
    at_c, at_d = np.int64(listed[np.uint64(max(k - 2, 0))]), np.int64(listed[np.uint64(max(k - 3, 0))])
    a, b, c, d = fill(_ZERO), fill(_ZERO), fill(_ZERO), fill(_ZERO)
    for channel in range(stride - LOCAL):
        value, column = load(incoming, channel * LANES), LOCAL + channel
        a, b = fma(broadcast(local, at_a + column), value, a), fma(broadcast(local, at_b + column), value, b)
        c, d = fma(broadcast(local, at_c + column), value, c), fma(broadcast(local, at_d + column), value, d)
    store(dots, 3 * LANES, a)
    store(dots, 2 * LANES, b)
    store(dots, LANES, c)
    store(dots, 0, d)


@njit(**_SETTINGS)
def _column_sum(matrix):
    """The sum of the 16 rows of a matrix [256]."""
    total = load(matrix, 0)
    for row in range(1, LANES):
        total = total + load(matrix, row * LANES)
    return total


@njit(**_SETTINGS)
def _add_moments(products, left, top, absgrad, absolute_x, absolute_y, starts, sums):
    """Adds the moments of 16 splats' products [splats pixels] about the tile's middle to their rows of `sums`.

    `left` and `top` are the block's first pixel, from the tile's middle.
    """
    transpose(products)
    zero = fill(_ZERO)
    two, three = fill(float32(2)), fill(float32(3))
    four, nine = fill(float32(4)), fill(float32(9))
    # About the block's first pixel: by rows, then over the rows.
    s, sx, sy, sxx, sxy, syy = zero, zero, zero, zero, zero, zero
    for row in range(BLOCK):
        a, b = load(products, row * 64), load(products, row * 64 + 16)
        c, d = load(products, row * 64 + 32), load(products, row * 64 + 48)
        row_s = a + b + (c + d)
        row_x = fma(three, d, fma(two, c, b))
        row_xx = fma(nine, d, fma(four, c, b))
        factor = fill(float32(row))
        s, sx, sxx = s + row_s, sx + row_x, sxx + row_xx
        if row > 0:
            sy, sxy = fma(factor, row_s, sy), fma(factor, row_x, sxy)
            syy = fma(fill(float32(row * row)), row_s, syy)
    # Moved by the first pixel's place from the tile's middle.
    by_x, by_y = fill(left), fill(top)
    to_x, to_y = fma(by_x, s, sx), fma(by_y, s, sy)
    sxx = fma(by_x, sx + to_x, sxx)
    syy = fma(by_y, sy + to_y, syy)
    sxy = sxy + fma(by_x, sy, fma(by_y, sx, by_x * by_y * s))
    add_columns(sums, starts, S1, s, to_x, to_y, sxx)
    if absgrad:
        transpose(absolute_x)
        transpose(absolute_y)
        add_columns(sums, starts, SXY, sxy, syy, _column_sum(absolute_x), _column_sum(absolute_y))
    else:
        add_columns(sums, starts, SXY, sxy, syy, zero, zero)


@njit(**_SETTINGS)
def _gather_moments(lists, tile, stride, local, sums, starts, places, entry, spare, gradients):
    """Adds a tile's `sums` to its splats' `gradients`, the moments of place made into moments of u and v.

    To the splats' rows, or, if `entry` is not negative, to the rows from there on.
    """
    splats = lists.splats[lists.starts[tile] : lists.starts[tile + 1]]
    for first in range(0, splats.size, LANES):
        for lane in range(LANES):
            k = first + lane
            starts[lane] = k * stride
            if k >= splats.size:
                places[lane] = spare * stride
            elif entry >= 0:
                places[lane] = (entry + k) * stride
            else:
                places[lane] = np.int64(splats[k]) * stride
                prefetch(gradients, np.int64(splats[min(k + LANES, splats.size - 1)]) * stride)
        u0, v0, p, q = load_columns(local, starts, U0)
        r, _, _, _ = load_columns(local, starts, R)
        s, sx, sy, sxx = load_columns(sums, starts, S1)
        sxy, syy, absolute_x, absolute_y = load_columns(sums, starts, SXY)
        su, sv = fma(u0, s, fma(p, sx, q * sy)), fma(v0, s, r * sy)
        sux, suy = fma(u0, sx, fma(p, sxx, q * sxy)), fma(u0, sy, fma(p, sxy, q * syy))
        suu, suv = fma(u0, su, fma(p, sux, q * suy)), fma(v0, su, r * suy)
        svv = fma(v0, sv, r * fma(v0, sy, r * syy))
        add_columns(gradients, places, GU, su, sv, suu, suv)
        add_columns(gradients, places, GVV, svv, s, absolute_x, absolute_y)
        for lane in range(min(LANES, splats.size - first)):
            for column in range(LOCAL, stride, GROUP):
                add_four(gradients, places[lane] + column, sums, starts[lane] + column)
