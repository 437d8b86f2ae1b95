"""The gradients of compositing, a block of 4 x 4 pixels at a time.

With g_k = <c_k, v> for the incoming gradient v, and B_k, what g is on average behind splat k, taken from the last splat to
the first:

    B = <c_background, v> - v_alpha behind all,        B_{k-1} = alpha_k g_k + (1 - alpha_k) B_k,
    d loss / d alpha_k = T_k (g_k - B_k),        d loss / d c_k = w_k v

(notation as in `compositing`). A splat's geometry meets the loss only through q = alpha d loss / d alpha at each pixel, of
which the six moments (1, x, y, x², x y, y²) over the pixels suffice. Sixteen splats at a time are transposed, so that
lanes are splats and sums are free.

A block is gone through twice. From the front the alphas and weights are found as in the forward pass, which takes as many
exponentials as to go from the back at once, and no division T_k = T_{k+1} / (1 - alpha_k); from the back B, and with it the
gradients. Either loop has so little in it that all of it stays in registers.
"""

from typing import NamedTuple

import numpy as np
from numba import float32, njit

from nfc_gs.kernels.compositing import (
    GROUP,
    GU,
    GVV,
    LANE_X,
    LANE_Y,
    LOCAL,
    S1,
    SXY,
    U0,
    V0,
    P,
    Q,
    R,
    ask_for_pixels,
    find_alpha,
    find_pixels,
    localize,
)
from nfc_gs.kernels.products import AT_ONCE, add_both_products, add_eight_products, add_sixteen_products
from nfc_gs.kernels.scratch import copy_first_eight, copy_first_sixteen, empty_lines, weighted_sum, zero_lines
from nfc_gs.kernels.simd import (
    LANES,
    absolute,
    add_columns,
    add_four,
    bits,
    broadcast,
    fill,
    fma,
    fnma,
    largest,
    load,
    load_columns,
    prefetch,
    select,
    store,
    transpose_to,
    transposed,
)
from nfc_gs.kernels.threads import take
from nfc_gs.kernels.tiles import BLOCK, BLOCKS, TILE, list_block

EIGHT = 2 * GROUP
# Where pixels begin in a matrix of pixels and eight channels.
_EIGHTS = np.arange(LANES) * EIGHT

_RELAXED = {"nsz", "contract", "reassoc", "arcp"}
_SETTINGS = {"nogil": True, "cache": True, "fastmath": _RELAXED, "error_model": "numpy"}
# For what takes no memory: then Numba does not count, atomically and at every call, who uses which array.
_WITHIN = _SETTINGS | {"_nrt": False}
_ZERO, _ONE = np.float32(0), np.float32(1)


@njit(**_SETTINGS)
def composite_backward(
    queues, number, begin, lists, values, background, limits, stops, grad_channels, grad_alpha, absgrad,
    weigh, by_splat, spare, gradients,
):  # fmt: skip
    """Writes the splats' gradients, in the tiles that thread `number` takes from `queues`, to `gradients`.

    A row of `gradients` is a splat's in all these tiles, if `by_splat` (no other thread may then write to it); or else its
    row is that of the lists' entry, counted from the first of tile `begin`, and holds the gradient in one tile, for
    `gradients.add_records` to add up. Row `spare` is scratch, of this thread alone. See GU, ... for the columns of a row, which is
    LOCAL + `padded(C, weigh)` long; ABS_X and ABS_Y only if `absgrad`, and if `weigh` the sum of a splat's weights where
    channel C would be. `stops` are from `composite`.
    """
    channels = values.shape[1]
    width = padded(channels, weigh)
    room = (lists.longest + LANES - 1) // LANES * LANES + LANES
    memory = _Memory(
        local=zero_lines(room * LOCAL),
        colours=zero_lines(room * width + LANES),
        listed=np.empty(room, np.uint32),
        incoming=zero_lines(width * LANES),
        by_pixel=empty_lines(width * LANES),
        behind=empty_lines(LANES),
        alphas=empty_lines(room * LANES),
        weights=empty_lines(room * LANES),
        numbers=np.empty(room, np.int64),
        absolutes=zero_lines(2 * LANES**2),
        moments=empty_lines(room * LOCAL),
        sums=empty_lines(room * width),
        starts=np.empty(LANES, np.int64),
        places=np.empty(LANES, np.int64),
    )
    if weigh:
        # Ones come in here where the splats have a channel of zeros: their sums are the weights'.
        memory.incoming[channels * LANES : (channels + 1) * LANES] = _ONE
    if by_splat:
        gradients[:] = _ZERO
    while True:
        tile = take(queues, number)
        if tile < 0:
            break
        if lists.starts[tile + 1] > lists.starts[tile]:
            entry = np.int64(-1) if by_splat else lists.starts[tile] - lists.starts[begin]
            _composite_tile_backward(
                lists, tile, values, width, background, limits, stops, grad_channels, grad_alpha, absgrad, weigh, entry,
                spare, gradients, memory,
            )  # fmt: skip


class _Memory(NamedTuple):
    """What a thread works with: `local` to `absolutes` are a tile's or a block's, see the functions that write them.

    `moments` [_ LOCAL] and `sums` [_ width] have a row more than there are splats, into which unused lanes are added.
    """

    local: np.ndarray
    colours: np.ndarray
    listed: np.ndarray
    incoming: np.ndarray
    by_pixel: np.ndarray
    behind: np.ndarray
    alphas: np.ndarray
    weights: np.ndarray
    numbers: np.ndarray
    absolutes: np.ndarray
    moments: np.ndarray
    sums: np.ndarray
    starts: np.ndarray
    places: np.ndarray


@njit(**_WITHIN)
def _composite_tile_backward(
    lists, tile, values, width, background, limits, stops, grad_channels, grad_alpha, absgrad, weigh, entry, spare,
    gradients, memory,
):  # fmt: skip
    """One tile, which has splats: writes to their rows of `gradients`, or, if `entry` is not negative, to those from there on."""
    local, colours, moments, sums = memory.local, memory.colours, memory.moments, memory.sums
    alphas, weights, numbers = memory.alphas, memory.weights, memory.numbers
    channels = values.shape[1]
    count = lists.starts[tile + 1] - lists.starts[tile]
    left, top = tile % lists.across * TILE, tile // lists.across * TILE
    first_group = lists.groups[tile]
    touches = lists.touches[first_group * BLOCKS : lists.groups[tile + 1] * BLOCKS]
    localize(lists, tile, values, width, memory.starts, memory.places, local, colours)
    moments[: count * LOCAL] = _ZERO
    sums[: count * width] = _ZERO
    # The row of unused lanes.
    colours[count * width : (count + 1) * width] = _ZERO
    for block in range(BLOCKS):
        x, y = left + block % 4 * BLOCK, top + block // 4 * BLOCK
        if x >= lists.width or y >= lists.height:
            continue
        state = (tile * BLOCKS + block) * LANES
        if not largest(load(stops, state)) > 0:
            continue
        list_block(touches, touches.size // BLOCKS, block, memory.listed)
        # Of the block that comes next, if it is not in another row of the picture.
        next_x, next_y = x + BLOCK, y
        if block % 4 == 3 and block < BLOCKS - 1:
            next_x, next_y = left, y + BLOCK
        elif block == BLOCKS - 1:
            next_y = top
        ask_for_pixels(grad_channels, next_x, next_y, lists.width * channels, channels)
        _receive(
            lists, x, y, grad_channels, grad_alpha, background, weigh, memory.starts, memory.incoming, memory.by_pixel,
            memory.behind,
        )  # fmt: skip
        used = _weigh_block(memory.listed, local, block, limits, load(stops, state), alphas, weights, numbers, count)
        if used == 0:
            continue
        _find_products(
            colours, width, channels, limits, used, load(memory.behind, 0), memory.incoming, alphas, weights, numbers
        )
        _add_moments(alphas, block, used, numbers, memory.starts, moments)
        if absgrad:
            _add_absolutes(alphas, block, used, numbers, local, memory.absolutes, memory.starts, moments)
        if width >= EIGHT:
            _add_colours(weights, used, numbers, memory.by_pixel, width, sums)
        if width % EIGHT > 0:
            _add_last_colours(weights, used, numbers, memory.incoming, width, memory.starts, sums)
    if entry >= 0:
        gradients[entry : entry + count] = _ZERO
    _gather_moments(lists, tile, width, local, moments, sums, memory.starts, memory.places, entry, spare, gradients)


@njit(**_SETTINGS)
def padded(channels, weigh):
    """How many channels the backward pass works with: whole groups, at least one, with room for the weights."""
    return max(channels + weigh + GROUP - 1, GROUP) // GROUP * GROUP


@njit(**_WITHIN)
def _receive(lists, x, y, grad_channels, grad_alpha, background, weigh, starts, incoming, by_pixel, behind):
    """Writes a block's gradients to `incoming` [C 16], and what comes through from behind all splats to `behind` [16].

    Also to `by_pixel`: of every sixteen channels, and of eight of the rest, a matrix of pixels and these channels.
    """
    channels, width = grad_channels.shape[2], incoming.size // LANES
    sixteens, eights = width // LANES * LANES, width // EIGHT * EIGHT
    pitch = lists.width * channels
    find_pixels(x, y, pitch, channels, starts)
    # Where there are numbers behind the last pixel's to be read, though not to be used.
    if x + BLOCK <= lists.width and y + BLOCK <= lists.height and starts[LANES - 1] + width <= pitch * lists.height:
        for channel in range(0, sixteens, LANES):
            block, some = channel * LANES, channels - channel
            for lane in range(LANES):
                copy_first_sixteen(by_pixel, block + lane * LANES, grad_channels, starts[lane] + channel, some)
                if weigh and some < LANES:
                    by_pixel[block + lane * LANES + some] = _ONE
            transpose_to(by_pixel, block, incoming, block)
        if sixteens < eights:
            block, some = sixteens * LANES, channels - sixteens
            for lane in range(LANES):
                copy_first_eight(by_pixel, block + lane * EIGHT, grad_channels, starts[lane] + sixteens, some)
                if weigh and some < EIGHT:
                    by_pixel[block + lane * EIGHT + some] = _ONE
            for group in range(0, EIGHT, GROUP):
                a, b, c, d = load_columns(by_pixel, _EIGHTS, block + group)
                _store_four(incoming, block + group * LANES, a, b, c, d, GROUP)
        if eights < channels:
            # The last few may have the next pixel's behind them.
            a, b, c, d = load_columns(grad_channels, starts, eights)
            _store_four(incoming, eights * LANES, a, b, c, d, channels - eights)
        for lane in range(LANES):
            behind[lane] = -grad_alpha[y + lane // BLOCK, x + lane % BLOCK]
    else:
        for lane in range(LANES):
            row, column = y + lane // BLOCK, x + lane % BLOCK
            inside = row < lists.height and column < lists.width
            behind[lane] = -grad_alpha[row, column] if inside else _ZERO
            for channel in range(channels):
                incoming[channel * LANES + lane] = grad_channels[row, column, channel] if inside else _ZERO
            for channel in range(eights):
                first = channel // LANES * LANES
                by_pixel[first * LANES + lane * min(eights - first, LANES) + channel - first] = incoming[
                    channel * LANES + lane
                ]
    total = load(behind, 0)
    for channel in range(channels):
        total = fma(load(incoming, channel * LANES), fill(background[channel]), total)
    store(behind, 0, total)


@njit(**_WITHIN)
def _store_four(array, index, a, b, c, d, count):
    """Stores the first `count` of four values, one behind the other."""
    store(array, index, a)
    if count > 1:
        store(array, index + LANES, b)
    if count > 2:
        store(array, index + 2 * LANES, c)
    if count > 3:
        store(array, index + 3 * LANES, d)


@njit(**_WITHIN)
def _weigh_block(listed, local, block, limits, stops, alphas, weights, numbers, unused):
    """The alphas and weights [splats 16] of a block's splats once more, with the forward pass's bits.

    Also their numbers within the tile, to `numbers`. Splats that no pixel sees are left out; returns how many are not. Behind
    them stand sixteen splats `unused` that no pixel sees.
    """
    x = load(LANE_X, 0) + fill(float32(block % 4 * BLOCK))
    y = load(LANE_Y, 0) + fill(float32(block // 4 * BLOCK))
    zero = fill(_ZERO)
    alpha_max, faintest = fill(limits.alpha_max), fill(limits.log_alpha_min)
    darkest = fill(limits.transmittance_min)
    through = select(stops > zero, fill(_ONE), zero)
    used = 0
    for k in range(int(largest(stops))):
        number = np.int64(listed[np.uint64(k)])
        alpha, seen = find_alpha(local, number * LOCAL, x, y, alpha_max, faintest)
        weight = alpha * through
        through = fnma(alpha, through, through)
        alive = through > darkest
        alpha, weight = select(alive, alpha, zero), select(alive, weight, zero)
        store(alphas, used * LANES, alpha)
        store(weights, used * LANES, weight)
        numbers[used] = number
        used += bits(alive & seen) != 0
    for lane in range(used, used + LANES):
        store(alphas, lane * LANES, zero)
        store(weights, lane * LANES, zero)
        numbers[lane] = unused
    return used


@njit(**_WITHIN)
def _find_products(colours, width, channels, limits, used, behind, incoming, alphas, weights, numbers):
    """Turns the alphas of a block's splats into alpha d loss / d alpha, from the last splat to the first.

    `behind` is B behind all, `incoming` v [C 16].
    """
    alpha_max = fill(limits.alpha_max)
    for first in range((used - 1) // AT_ONCE * AT_ONCE, -1, -AT_ONCE):
        at_a, at_b = numbers[first] * width, numbers[first + 1] * width
        at_c, at_d = numbers[first + 2] * width, numbers[first + 3] * width
        # <c, v> of four splats.
        a, b, c, d = fill(_ZERO), fill(_ZERO), fill(_ZERO), fill(_ZERO)
        for channel in range(channels):
            value = load(incoming, channel * LANES)
            a, b = fma(broadcast(colours, at_a + channel), value, a), fma(broadcast(colours, at_b + channel), value, b)
            c, d = fma(broadcast(colours, at_c + channel), value, c), fma(broadcast(colours, at_d + channel), value, d)
        behind = _find_product(alphas, weights, (first + 3) * LANES, d, behind, alpha_max)
        behind = _find_product(alphas, weights, (first + 2) * LANES, c, behind, alpha_max)
        behind = _find_product(alphas, weights, (first + 1) * LANES, b, behind, alpha_max)
        behind = _find_product(alphas, weights, first * LANES, a, behind, alpha_max)


@njit(**_WITHIN)
def _find_product(alphas, weights, place, dot, behind, alpha_max):
    """One splat's, from `place` on; returns B before it."""
    alpha = load(alphas, place)
    # A clamped alpha has no gradient.
    product = select(alpha < alpha_max, load(weights, place) * (dot - behind), fill(_ZERO))
    store(alphas, place, product)
    # Of all this, one product waits for the splat before.
    return fma(fill(_ONE) - alpha, behind, alpha * dot)


@njit(**_WITHIN)
def _add_colours(weights, used, numbers, by_pixel, width, sums):
    """Adds the splats' weights times the incoming gradient to `sums`: of every sixteen channels, and of eight of the rest."""
    for first in range(0, used, AT_ONCE):
        rows = (
            numbers[first] * width,
            numbers[first + 1] * width,
            numbers[first + 2] * width,
            numbers[first + 3] * width,
        )
        at, channel = first * LANES, 0
        while width - channel >= 2 * LANES:
            add_sixteen_products(weights, at, by_pixel, channel * LANES, sums, rows, channel)
            channel += LANES
        if width - channel >= LANES + EIGHT:
            add_both_products(weights, at, by_pixel, channel * LANES, sums, rows, channel)
        elif width - channel >= LANES:
            add_sixteen_products(weights, at, by_pixel, channel * LANES, sums, rows, channel)
        elif width - channel >= EIGHT:
            add_eight_products(weights, at, by_pixel, channel * LANES, sums, rows, channel)


@njit(**_WITHIN)
def _add_last_colours(weights, used, numbers, incoming, width, starts, sums):
    """The same of the last four channels, with sixteen splats as lanes."""
    channel = width - GROUP
    for first in range(0, used, LANES):
        for lane in range(LANES):
            starts[lane] = numbers[first + lane] * width
        pixels = transposed(weights, first * LANES)
        a = weighted_sum(pixels, incoming, channel * LANES)
        b = weighted_sum(pixels, incoming, (channel + 1) * LANES)
        c = weighted_sum(pixels, incoming, (channel + 2) * LANES)
        d = weighted_sum(pixels, incoming, (channel + 3) * LANES)
        add_columns(sums, starts, channel, a, b, c, d)


@njit(**_WITHIN)
def _add_absolutes(products, block, used, numbers, local, absolutes, starts, moments):
    """Adds sums over a block's pixels of |d loss / d mean| along x and y to `moments`; `absolutes` is scratch."""
    x = load(LANE_X, 0) + fill(float32(block % 4 * BLOCK))
    y = load(LANE_Y, 0) + fill(float32(block // 4 * BLOCK))
    zero = fill(_ZERO)
    for first in range(0, used, LANES):
        for k in range(LANES):
            at = numbers[first + k] * LOCAL
            starts[k] = at
            product = load(products, (first + k) * LANES)
            root_p, root_q, root_r = broadcast(local, at + P), broadcast(local, at + Q), broadcast(local, at + R)
            u = fma(root_p, x, fma(root_q, y, broadcast(local, at + U0)))
            v = fma(root_r, y, broadcast(local, at + V0))
            store(absolutes, k * LANES, absolute(product * (root_p * u)))
            store(absolutes, LANES**2 + k * LANES, absolute(product * fma(root_q, u, root_r * v)))
        transpose_to(absolutes, 0, absolutes, 0)
        transpose_to(absolutes, LANES**2, absolutes, LANES**2)
        add_columns(moments, starts, SXY, zero, zero, _column_sum(absolutes, 0), _column_sum(absolutes, LANES))


@njit(**_WITHIN)
def _add_to(array, index, lanes):
    """`array[index : index + 16] += lanes`."""
    store(array, index, load(array, index) + lanes)


@njit(**_WITHIN)
def _column_sum(matrix, first):
    """The sum of 16 rows of a matrix [_ 16], from row `first` on."""
    total = load(matrix, first * LANES)
    for row in range(first + 1, first + LANES):
        total = total + load(matrix, row * LANES)
    return total


@njit(**_WITHIN)
def _row_moments(a, b, c, d):
    """The moments 1, x and x² of four pixels in a row."""
    x = fma(fill(float32(3)), d, fma(fill(float32(2)), c, b))
    xx = fma(fill(float32(9)), d, fma(fill(float32(4)), c, b))
    return a + b + (c + d), x, xx


@njit(**_WITHIN)
def _add_moments(products, block, used, numbers, starts, moments):
    """Adds the moments of a block's products [splats pixels] about the tile's middle to their splats' rows of `moments`."""
    # The block's first pixel, from the tile's middle.
    left, top = fill(float32(block % 4 * BLOCK - 7.5)), fill(float32(block // 4 * BLOCK - 7.5))
    for first in range(0, used, LANES):
        for lane in range(LANES):
            starts[lane] = numbers[first + lane] * LOCAL
        pixels = transposed(products, first * LANES)
        # About the block's first pixel: by rows, then over the rows.
        s0, x0, xx0 = _row_moments(pixels[0], pixels[1], pixels[2], pixels[3])
        s1, x1, xx1 = _row_moments(pixels[4], pixels[5], pixels[6], pixels[7])
        s2, x2, xx2 = _row_moments(pixels[8], pixels[9], pixels[10], pixels[11])
        s3, x3, xx3 = _row_moments(pixels[12], pixels[13], pixels[14], pixels[15])
        s, sy, syy = _row_moments(s0, s1, s2, s3)
        sx, sxy, _ = _row_moments(x0, x1, x2, x3)
        sxx = xx0 + xx1 + (xx2 + xx3)
        # Moved by the first pixel's place from the tile's middle.
        to_x, to_y = fma(left, s, sx), fma(top, s, sy)
        sxx = fma(left, sx + to_x, sxx)
        syy = fma(top, sy + to_y, syy)
        sxy = sxy + fma(left, sy, fma(top, sx, left * top * s))
        add_columns(moments, starts, S1, s, to_x, to_y, sxx)
        add_columns(moments, starts, SXY, sxy, syy, fill(_ZERO), fill(_ZERO))


@njit(**_WITHIN)
def _gather_moments(lists, tile, width, local, moments, sums, starts, places, entry, spare, gradients):
    """Adds a tile's `moments` and `sums` to its splats' `gradients`, the moments of place made into moments of u and v.

    To the splats' rows, or, if `entry` is not negative, to the rows from there on.
    """
    stride = LOCAL + width
    splats = lists.splats[lists.starts[tile] : lists.starts[tile + 1]]
    for first in range(0, splats.size, LANES):
        for lane in range(LANES):
            k = first + lane
            starts[lane] = k * LOCAL
            if k >= splats.size:
                places[lane] = spare * stride
            elif entry >= 0:
                places[lane] = (entry + k) * stride
            else:
                places[lane] = np.int64(splats[k]) * stride
                ahead = np.int64(splats[min(k + LANES, splats.size - 1)]) * stride
                for column in range(0, stride, LANES):
                    prefetch(gradients, ahead + column)
                prefetch(gradients, ahead + stride - 1)
        u0, v0, p, q = load_columns(local, starts, U0)
        r, _, _, _ = load_columns(local, starts, R)
        s, sx, sy, sxx = load_columns(moments, starts, S1)
        sxy, syy, absolute_x, absolute_y = load_columns(moments, starts, SXY)
        su, sv = fma(u0, s, fma(p, sx, q * sy)), fma(v0, s, r * sy)
        sux, suy = fma(u0, sx, fma(p, sxx, q * sxy)), fma(u0, sy, fma(p, sxy, q * syy))
        suu, suv = fma(u0, su, fma(p, sux, q * suy)), fma(v0, su, r * suy)
        svv = fma(v0, sv, r * fma(v0, sy, r * syy))
        add_columns(gradients, places, GU, su, sv, suu, suv)
        add_columns(gradients, places, GVV, svv, s, absolute_x, absolute_y)
        for lane in range(min(LANES, splats.size - first)):
            place, source = places[lane] + LOCAL, (first + lane) * width
            for column in range(0, width // LANES * LANES, LANES):
                _add_to(gradients, place + column, load(sums, source + column))
            for column in range(width // LANES * LANES, width, GROUP):
                add_four(gradients, place + column, sums, source + column)
