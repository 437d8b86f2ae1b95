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
from nfc_gs.kernels.scratch import copy_first_sixteen, empty_lines, weighted_sum, zero_lines
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

# Of so many splats the dot products with the incoming gradient are formed together, when there are several groups.
AT_ONCE = 4

_RELAXED = {"nsz", "contract", "reassoc", "arcp"}
_SETTINGS = {"nogil": True, "cache": True, "fastmath": _RELAXED, "error_model": "numpy"}
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
    stride = LOCAL + padded(channels, weigh)
    room = (lists.longest + LANES - 1) // LANES * LANES + LANES
    local = zero_lines(room * stride)
    listed = np.empty(room, np.uint32)
    incoming = zero_lines((stride - LOCAL) * LANES)
    if weigh:
        # Ones come in here where the splats have a channel of zeros: their sums are the weights'.
        incoming[channels * LANES : (channels + 1) * LANES] = _ONE
    by_pixel = empty_lines((stride - LOCAL) // LANES * LANES**2)
    behind = empty_lines(LANES)
    # A row more than there are splats, into which unused lanes are added.
    sums = empty_lines(room * stride)
    alphas, weights, entries = empty_lines(room * LANES), empty_lines(room * LANES), np.empty(room, np.int64)
    products, dots, absolutes = empty_lines(LANES**2), empty_lines(LANES**2), zero_lines(2 * LANES**2)
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
        localize(lists, tile, values, stride, starts, places, local)
        sums[: count_in_tile * stride] = _ZERO
        for block in range(BLOCKS):
            x, y = left + block % 4 * BLOCK, top + block // 4 * BLOCK
            if x >= lists.width or y >= lists.height:
                continue
            state = (tile * BLOCKS + block) * LANES
            if not largest(load(stops, state)) > 0:
                continue
            list_block(touches, touches.size // BLOCKS, block, stride, listed)
            # Of the block that comes next, if it is not in another row of the picture.
            next_x, next_y = x + BLOCK, y
            if block % 4 == 3 and block < BLOCKS - 1:
                next_x, next_y = left, y + BLOCK
            elif block == BLOCKS - 1:
                next_y = top
            ask_for_pixels(grad_channels, next_x, next_y, lists.width * channels, channels)
            _receive(
                lists, x, y, grad_channels, grad_alpha, background, weigh, starts, incoming, by_pixel, behind,
            )  # fmt: skip
            used = _weigh_block(listed, local, block, limits, load(stops, state), alphas, weights, entries)
            if used == 0:
                continue
            # What is not needed is None, and so not in the loop. No arrays are cut or packed up here, as each such array
            # counts who uses it, for all threads to see.
            unused = count_in_tile * stride
            if stride - LOCAL > GROUP:
                if absgrad:
                    _composite_block_backward(
                        local, stride, channels, block, limits, used, load(behind, 0), incoming, by_pixel, unused, alphas,
                        weights, entries, products, starts, sums, dots, absolutes,
                    )  # fmt: skip
                else:
                    _composite_block_backward(
                        local, stride, channels, block, limits, used, load(behind, 0), incoming, by_pixel, unused, alphas,
                        weights, entries, products, starts, sums, dots, None,
                    )  # fmt: skip
            elif absgrad:
                _composite_block_backward(
                    local, stride, channels, block, limits, used, load(behind, 0), incoming, by_pixel, unused, alphas,
                    weights, entries, products, starts, sums, None, absolutes,
                )  # fmt: skip
            else:
                _composite_block_backward(
                    local, stride, channels, block, limits, used, load(behind, 0), incoming, by_pixel, unused, alphas,
                    weights, entries, products, starts, sums, None, None,
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
def _receive(lists, x, y, grad_channels, grad_alpha, background, weigh, starts, incoming, by_pixel, behind):
    """Writes a block's gradients to `incoming` [C 16], and what comes through from behind all splats to `behind` [16].

    Also whole sixteens of channels to `by_pixel`, a 16 x 16 matrix of pixels and channels each.
    """
    channels = grad_channels.shape[2]
    squares = by_pixel.size // LANES
    if x + BLOCK <= lists.width and y + BLOCK <= lists.height:
        find_pixels(x, y, lists.width * channels, channels, starts)
        for channel in range(0, squares, LANES):
            for lane in range(LANES):
                place = channel * LANES + lane * LANES
                copy_first_sixteen(by_pixel, place, grad_channels, starts[lane] + channel, channels - channel)
                if weigh and channels - channel < LANES:
                    by_pixel[place + channels - channel] = _ONE
            transpose_to(by_pixel, channel * LANES, incoming, channel * LANES)
        # Four channels at a time; the last few may have the next pixels' behind them, but at the picture's end there are none.
        whole = channels
        if (lists.width - x - BLOCK) * channels < GROUP - 1 and y + BLOCK == lists.height:
            whole = max(channels // GROUP * GROUP, squares)
        for channel in range(squares, whole, GROUP):
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
        for channel in range(0, squares, LANES):
            transpose_to(incoming, channel * LANES, by_pixel, channel * LANES)
    total = load(behind, 0)
    for channel in range(channels):
        total = fma(load(incoming, channel * LANES), fill(background[channel]), total)
    store(behind, 0, total)


@njit(**_SETTINGS)
def _weigh_block(listed, local, block, limits, stops, alphas, weights, places):
    """The alphas and weights [splats 16] of a block's splats once more, with the forward pass's bits.

    Also where their rows start, to `places`. Splats that no pixel sees are left out; returns how many are not.
    """
    x = load(LANE_X, 0) + fill(float32(block % 4 * BLOCK))
    y = load(LANE_Y, 0) + fill(float32(block // 4 * BLOCK))
    zero = fill(_ZERO)
    alpha_max, faintest = fill(limits.alpha_max), fill(limits.log_alpha_min)
    darkest = fill(limits.transmittance_min)
    through = select(stops > zero, fill(_ONE), zero)
    used = 0
    for k in range(int(largest(stops))):
        at = np.int64(listed[np.uint64(k)])
        alpha, seen = find_alpha(local, at, x, y, alpha_max, faintest)
        weight = alpha * through
        through = fnma(alpha, through, through)
        alive = through > darkest
        alpha, weight = select(alive, alpha, zero), select(alive, weight, zero)
        store(alphas, used * LANES, alpha)
        store(weights, used * LANES, weight)
        places[used] = at
        used += bits(alive & seen) != 0
    return used


@njit(**_SETTINGS)
def _composite_block_backward(
    local, stride, channels, block, limits, used, behind, incoming, by_pixel, unused, alphas, weights, places, products,
    starts, sums, dots, absolutes,
):  # fmt: skip
    """One block: adds its splats' moments and channel sums to `sums`, rows of `stride`.

    `alphas`, `weights` and `places` are those of `used` splats; `behind` is B behind all, `incoming` v [C 16], and
    `by_pixel` the same of whole sixteens of channels, pixel by pixel. `unused` is where a spare row is; `products` and `starts`
    are scratch, and so are `dots`, which is None if there is a single group, and `absolutes`, None if nobody asks for absgrad.
    """
    x = load(LANE_X, 0) + fill(float32(block % 4 * BLOCK))
    y = load(LANE_Y, 0) + fill(float32(block // 4 * BLOCK))
    zero = fill(_ZERO)
    left, top = float32(block % 4 * BLOCK - 7.5), float32(block // 4 * BLOCK - 7.5)
    alpha_max, full = fill(limits.alpha_max), fill(_ONE)
    one, two = load(incoming, 0), load(incoming, LANES)
    three, four = load(incoming, 2 * LANES), load(incoming, 3 * LANES)
    for lane in range(LANES):
        places[used + lane] = unused
        store(weights, (used + lane) * LANES, zero)
    for first in range((used - 1) // LANES * LANES, -1, -LANES):
        count = min(used - first, LANES)
        if dots is not None:
            for some in range(0, count, AT_ONCE):
                _dot_products(places, first + some, local, channels, incoming, dots, some)
        for k in range(count, LANES):
            store(products, k * LANES, zero)
        for k in range(count - 1, -1, -1):
            at = places[np.uint64(first + k)]
            if dots is not None:
                dot = load(dots, k * LANES)
            else:
                dot = fma(broadcast(local, at + LOCAL + 1), two, broadcast(local, at + LOCAL) * one)
                rest = fma(broadcast(local, at + LOCAL + 3), four, broadcast(local, at + LOCAL + 2) * three)
                dot = dot + rest
            alpha, more = load(alphas, (first + k) * LANES), dot - behind
            # Of all this, one product waits for the splat before.
            behind = fma(full - alpha, behind, alpha * dot)
            # A clamped alpha has no gradient.
            product = select(alpha < alpha_max, load(weights, (first + k) * LANES) * more, zero)
            store(products, k * LANES, product)
            if absolutes is not None:
                root_p, root_q, root_r = broadcast(local, at + P), broadcast(local, at + Q), broadcast(local, at + R)
                u = fma(root_p, x, fma(root_q, y, broadcast(local, at + U0)))
                v = fma(root_r, y, broadcast(local, at + V0))
                store(absolutes, k * LANES, absolute(product * (root_p * u)))
                store(absolutes, LANES**2 + k * LANES, absolute(product * fma(root_q, u, root_r * v)))
        for lane in range(LANES):
            starts[lane] = places[first + lane]
        _add_moments(products, left, top, absolutes, starts, sums)
        whole = (stride - LOCAL) // LANES * LANES
        for channel in range(0, whole, LANES):
            _add_sixteen(weights, first * LANES, by_pixel, channel * LANES, LOCAL + channel, starts, sums)
        if whole < stride - LOCAL:
            pixels = transposed(weights, first * LANES)
            for channel in range(whole, stride - LOCAL, GROUP):
                a = weighted_sum(pixels, incoming, channel * LANES)
                b = weighted_sum(pixels, incoming, (channel + 1) * LANES)
                c = weighted_sum(pixels, incoming, (channel + 2) * LANES)
                d = weighted_sum(pixels, incoming, (channel + 3) * LANES)
                add_columns(sums, starts, LOCAL + channel, a, b, c, d)


@njit(**_SETTINGS)
def _add_sixteen(weights, first, by_pixel, block, column, starts, sums):
    """Adds sixteen splats' weights [splats pixels] times an incoming gradient [pixels channels] to their rows of `sums`.

    From `column` on; the two matrices begin at `first` and `block`. Here the lanes are sixteen channels, and four splats have
    their turn at once.
    """
    for splat in range(0, LANES, AT_ONCE):
        a, b, c, d = fill(_ZERO), fill(_ZERO), fill(_ZERO), fill(_ZERO)
        at = first + splat * LANES
        for pixel in range(LANES):
            value = load(by_pixel, block + pixel * LANES)
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
def _dot_products(places, first, local, channels, incoming, dots, place):
    """<c, v> at 16 pixels for AT_ONCE splats, from number `first` on, to `dots` from number `place` on."""
    at_a, at_b, at_c, at_d = places[first], places[first + 1], places[first + 2], places[first + 3]
    a, b, c, d = fill(_ZERO), fill(_ZERO), fill(_ZERO), fill(_ZERO)
    for channel in range(channels):
        value, column = load(incoming, channel * LANES), LOCAL + channel
        a, b = fma(broadcast(local, at_a + column), value, a), fma(broadcast(local, at_b + column), value, b)
        c, d = fma(broadcast(local, at_c + column), value, c), fma(broadcast(local, at_d + column), value, d)
    store(dots, place * LANES, a)
    store(dots, (place + 1) * LANES, b)
    store(dots, (place + 2) * LANES, c)
    store(dots, (place + 3) * LANES, d)


@njit(**_SETTINGS)
def _column_sum(matrix, first):
    """The sum of 16 rows of a matrix [_ 16], from row `first` on."""
    total = load(matrix, first * LANES)
    for row in range(first + 1, first + LANES):
        total = total + load(matrix, row * LANES)
    return total


@njit(**_SETTINGS)
def _row_moments(a, b, c, d):
    """The moments 1, x and x² of four pixels in a row."""
    x = fma(fill(float32(3)), d, fma(fill(float32(2)), c, b))
    xx = fma(fill(float32(9)), d, fma(fill(float32(4)), c, b))
    return a + b + (c + d), x, xx


@njit(**_SETTINGS)
def _add_moments(products, left, top, absolutes, starts, sums):
    """Adds the moments of 16 splats' products [splats pixels] about the tile's middle to their rows of `sums`.

    `left` and `top` are the block's first pixel, from the tile's middle; `absolutes` as in `_composite_block_backward`.
    """
    pixels = transposed(products, 0)
    # About the block's first pixel: by rows, then over the rows.
    s0, x0, xx0 = _row_moments(pixels[0], pixels[1], pixels[2], pixels[3])
    s1, x1, xx1 = _row_moments(pixels[4], pixels[5], pixels[6], pixels[7])
    s2, x2, xx2 = _row_moments(pixels[8], pixels[9], pixels[10], pixels[11])
    s3, x3, xx3 = _row_moments(pixels[12], pixels[13], pixels[14], pixels[15])
    s, sy, syy = _row_moments(s0, s1, s2, s3)
    sx, sxy, _ = _row_moments(x0, x1, x2, x3)
    sxx = xx0 + xx1 + (xx2 + xx3)
    # Moved by the first pixel's place from the tile's middle.
    by_x, by_y = fill(left), fill(top)
    to_x, to_y = fma(by_x, s, sx), fma(by_y, s, sy)
    sxx = fma(by_x, sx + to_x, sxx)
    syy = fma(by_y, sy + to_y, syy)
    sxy = sxy + fma(by_x, sy, fma(by_y, sx, by_x * by_y * s))
    add_columns(sums, starts, S1, s, to_x, to_y, sxx)
    if absolutes is not None:
        transpose_to(absolutes, 0, absolutes, 0)
        transpose_to(absolutes, LANES**2, absolutes, LANES**2)
        add_columns(sums, starts, SXY, sxy, syy, _column_sum(absolutes, 0), _column_sum(absolutes, LANES))
    else:
        add_columns(sums, starts, SXY, sxy, syy, fill(_ZERO), fill(_ZERO))


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
                ahead = np.int64(splats[min(k + LANES, splats.size - 1)]) * stride
                for column in range(0, stride, LANES):
                    prefetch(gradients, ahead + column)
                prefetch(gradients, ahead + stride - 1)
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
            whole = (stride - LOCAL) // LANES * LANES + LOCAL
            for column in range(LOCAL, whole, LANES):
                _add_to(gradients, places[lane] + column, load(sums, starts[lane] + column))
            for column in range(whole, stride, GROUP):
                add_four(gradients, places[lane] + column, sums, starts[lane] + column)
