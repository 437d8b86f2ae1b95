"""Which splats meet which part of the picture, nearest first.

The picture is cut into tiles of 16 x 16 pixels, a tile into blocks of 4 x 4, whose sixteen pixels are the lanes of one
SIMD value. The drawn splats are sorted by depth once; a counting sort then deals them to the tiles they touch, which
keeps their order; and within a tile a bit says which of its splats touch which block.

"Touch" is exact but for a hair's breadth: the splat is the ellipse in which its alpha reaches 1/255, and within a
strip of pixel rows an ellipse covers one interval, found from its root (see `projection`). So no pixel looks at a
splat it need not see, which is worth a factor of 1.6 to 9 over looking at all splats of a tile.
"""

import math

import numpy as np
from numba import float32, njit

from nfc_gs.kernels.scratch import write_set_bits
from nfc_gs.kernels.simd import (
    LANES,
    bits,
    ceil,
    fill,
    floor,
    fma,
    fnma,
    largest,
    load_columns,
    maximum,
    minimum,
    prefetch,
    select,
    sqrt,
    store_whole,
)

TILE = 16
BLOCK = 4
BLOCKS = (TILE // BLOCK) ** 2

# A splat's row of 16 numbers (64 bytes, one line of cache), lengths in pixels. The root is scaled so that the squares
# sum to a base-2 exponent: alpha = 2^(LOG_OPACITY - |U d|²).
MEAN_X, MEAN_Y, ROOT_P, ROOT_Q, ROOT_R, LOG_OPACITY, OPACITY = 0, 1, 2, 3, 4, 5, 6
# |U d|² where alpha is 1/255; half the ellipse's height; the y of its rightmost point; columns its middle shifts a
# row; 1 / p.
REACH, HALF_HEIGHT, RIGHTMOST, SLANT, WIDTH = 7, 8, 9, 10, 11
ROW = 16

# Widens the ellipse by more than float32 can be wrong, and less than matters to speed.
SLACK = np.float32(1.0005)
_HAIR = np.float32(1e-3)
# The root's scale to base 2, and its inverse, by which distances are measured.
ROOT_SCALE = np.float32(math.sqrt(0.5 / math.log(2)))
DISTANCE_SCALE = np.float32(1 / math.sqrt(0.5 / math.log(2)))
# Pairs of a row, and rows, that are written at once; most splats touch fewer tiles.
_AT_ONCE, _ROWS_AT_ONCE = 4, 2
# Rows in the order of depth lie anywhere in memory: they are asked for this many splats before they are needed.
AHEAD = 12
_RELAXED = {"nsz", "contract", "reassoc", "arcp"}
_SETTINGS = {"nogil": True, "cache": True, "fastmath": _RELAXED, "error_model": "numpy"}
# For what takes no memory: then Numba does not count, atomically and at every call, who uses which array.
_WITHIN = _SETTINGS | {"_nrt": False}
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_TILE, _LAST, _PER_TILE = np.float32(TILE), np.float32(TILE - 1), np.float32(1 / TILE)


@njit(**_SETTINGS)
def nearest_first(keys, radii):
    """The indices int32 of the drawn splats (radii not 0) by rising depth, equal depths by index.

    `keys` are the bits of the depths as uint32, which order as the depths do because those are positive. A radix sort,
    over only those bits in which the depths differ.
    """
    drawn = 0
    smallest, largest = np.uint32(0xFFFFFFFF), np.uint32(0)
    key = np.empty(keys.size, np.uint32)
    index = np.empty(keys.size, np.int32)
    for i in range(keys.size):
        if radii[i, 0] > 0:
            key[drawn] = keys[i]
            index[drawn] = i
            smallest, largest = min(smallest, keys[i]), max(largest, keys[i])
            drawn += 1
    key, index = key[:drawn], index[:drawn]
    if drawn < 2:
        return index
    for k in range(drawn):
        key[k] -= smallest
    width = 0
    while width < 32 and (largest - smallest) >> np.uint32(width) > 0:
        width += 1
    passes = (width + 11) // 12
    if passes == 0:
        return index
    digit = (width + passes - 1) // passes
    mask = np.uint32((1 << digit) - 1)
    place = np.empty(1 << digit, np.int64)
    other_key, other_index = np.empty_like(key), np.empty_like(index)
    for number in range(passes):
        shift = np.uint32(number * digit)
        place[:] = 0
        for k in range(drawn):
            place[(key[k] >> shift) & mask] += 1
        start = 0
        for value in range(place.size):
            count = place[value]
            place[value] = start
            start += count
        for k in range(drawn):
            value = (key[k] >> shift) & mask
            at = place[value]
            place[value] = at + 1
            other_key[at] = key[k]
            other_index[at] = index[k]
        key, other_key = other_key, key
        index, other_index = other_index, index
    return index


@njit(**_WITHIN)
def _find_columns(rows, starts, across, down, tops, bottoms, firsts, lasts):
    """The tiles that sixteen ellipses touch: rows `tops` to `bottoms`, and in the k-th of these, columns `firsts[16 k]`, ...
    to `lasts[16 k]`, ...; all are int32. An ellipse that has no pixel centre in a row has its last column before the first.
    """
    x, y, _, _ = load_columns(rows, starts, MEAN_X)
    root_r, _, _, reach = load_columns(rows, starts, ROOT_R)
    half_height, rightmost, slant, width = load_columns(rows, starts, HALF_HEIGHT)
    zero, most = fill(_ZERO), fill(float32(across - 1))
    lowest = zero - half_height
    top = maximum(floor(floor(y - half_height - _HALF) * _PER_TILE), zero)
    bottom = minimum(floor(floor(y + half_height - _HALF) * _PER_TILE), fill(float32(down - 1)))
    store_whole(tops, 0, top)
    store_whole(bottoms, 0, bottom)
    for k in range(int(largest(bottom - top)) + _ROWS_AT_ONCE):
        row = top + float32(k)
        y0 = row * _TILE + _HALF - y
        y1 = y0 + _LAST
        meets = (row <= bottom) & (y1 >= lowest) & (y0 <= half_height)
        y0, y1 = maximum(y0, lowest), minimum(y1, half_height)
        right, left = minimum(maximum(rightmost, y0), y1), minimum(maximum(zero - rightmost, y0), y1)
        right_v, left_v = root_r * right, root_r * left
        x1 = x + slant * right + width * sqrt(maximum(reach - right_v * right_v, zero))
        x0 = x + slant * left - width * sqrt(maximum(reach - left_v * left_v, zero))
        first = maximum(floor(ceil(x0 - _HALF - _HAIR) * _PER_TILE), zero)
        last = minimum(floor(floor(x1 - _HALF + _HAIR) * _PER_TILE), most)
        # To the left of the picture or to its right: as empty as any, and not too large for an integer.
        store_whole(firsts, k * LANES, minimum(first, most + _ONE))
        store_whole(lasts, k * LANES, select(meets, maximum(last, zero - _ONE), zero - _ONE))


@njit(**_SETTINGS)
def find_tiles(order, first, last, rows, counts, across, down):
    """The tiles that splats order[first], ..., order[last - 1] touch: pairs (tile, splat), both int32, in that order.

    Adds to `counts` [tiles] how many splats touch a tile.
    """
    room = (last - first) * 4 + 64
    tiles, splats = np.empty(room, np.int32), np.empty(room, np.int32)
    starts, tops, bottoms = np.empty(LANES, np.int64), np.empty(LANES, np.int32), np.empty(LANES, np.int32)
    firsts, lasts = np.empty((down + 1) * LANES, np.int32), np.empty((down + 1) * LANES, np.int32)
    found = 0
    for rank in range(first, last, LANES):
        find_rows(rows, order[:last], rank, starts)
        _find_columns(rows, starts, across, down, tops, bottoms, firsts, lasts)
        for lane in range(min(LANES, last - rank)):
            i = order[rank + lane]
            # Some rows and columns at once, whether there are so many or not, as a processor guesses wrong how many there
            # are: rows too many are empty, and pairs too many are written over.
            for begin in range(0, bottoms[lane] - tops[lane] + 1, _ROWS_AT_ONCE):
                if found + _ROWS_AT_ONCE * (across + _AT_ONCE) > room:
                    room = room * 2 + _ROWS_AT_ONCE * (across + _AT_ONCE)
                    more_tiles, more_splats = np.empty(room, np.int32), np.empty(room, np.int32)
                    more_tiles[:found], more_splats[:found] = tiles[:found], splats[:found]
                    tiles, splats = more_tiles, more_splats
                for row in range(begin, begin + _ROWS_AT_ONCE):
                    place = row * LANES + lane
                    tile, count = (tops[lane] + row) * across + firsts[place], lasts[place] - firsts[place] + 1
                    for k in range(_AT_ONCE):
                        tiles[found + k], splats[found + k] = tile + k, i
                    for k in range(_AT_ONCE, count):
                        tiles[found + k], splats[found + k] = tile + k, i
                    found += max(count, 0)
    for k in range(found):
        counts[tiles[k]] += 1
    return tiles[:found], splats[:found]


@njit(**_SETTINGS)
def lay_out(counts, starts):
    """Where each tile's list starts: fills `starts` [tiles + 1], and turns `counts` [threads tiles] into first places.

    Within a tile a thread's splats come after those of the threads before it, which had the nearer splats.
    """
    total = 0
    for tile in range(counts.shape[1]):
        starts[tile] = total
        for thread in range(counts.shape[0]):
            count = counts[thread, tile]
            counts[thread, tile] = total
            total += count
    starts[counts.shape[1]] = total


@njit(**_SETTINGS)
def deal(tiles, splats, places, lists):
    """Writes every splat to its tile's list, at the tile's next place."""
    for k in range(tiles.size):
        tile = tiles[k]
        lists[places[tile]] = splats[k]
        places[tile] += 1


@njit(**_SETTINGS)
def groups_before(starts, groups):
    """The number of groups of 16 splats in all tiles before each tile: fills `groups` [tiles + 1]."""
    total = 0
    for tile in range(starts.size - 1):
        groups[tile] = total
        total += (starts[tile + 1] - starts[tile] + LANES - 1) // LANES
    groups[starts.size - 1] = total


@njit(**_WITHIN)
def touch_blocks(rows, splats, left, top, starts, touches):
    """Which of a tile's splats touch which of its blocks.

    `splats` are their indices; `left` and `top` the tile's corner; `starts` scratch for 16 int64. Bit i of
    `touches[16 * group + block]` (uint16) is set if splat 16 * group + i touches the block.
    """
    count = splats.size
    zero, half = fill(_ZERO), fill(_HALF)
    from_left, from_top = fill(left) + half, fill(top) + half
    for group in range((count + LANES - 1) // LANES):
        first = group * LANES
        there = np.uint32(2**LANES - 1) >> np.uint32(max(first + LANES - count, 0))
        find_rows(rows, splats, first, starts)
        x, y, _, _ = load_columns(rows, starts, MEAN_X)
        root_r, _, _, reach = load_columns(rows, starts, ROOT_R)
        half_height, rightmost, slant, width = load_columns(rows, starts, HALF_HEIGHT)
        x, y, lowest = x - from_left, y - from_top, zero - half_height
        for strip in range(4):
            y0, y1 = fill(float32(4 * strip)) - y, fill(float32(4 * strip + 3)) - y
            inside = (y1 >= lowest) & (y0 <= half_height)
            y0, y1 = maximum(y0, lowest), minimum(y1, half_height)
            right = minimum(maximum(rightmost, y0), y1)
            left_y = minimum(maximum(zero - rightmost, y0), y1)
            right_v, left_v = root_r * right, root_r * left_y
            x1 = fma(width, sqrt(maximum(fnma(right_v, right_v, reach), zero)), fma(slant, right, x))
            x0 = fnma(width, sqrt(maximum(fnma(left_v, left_v, reach), zero)), fma(slant, left_y, x))
            for column in range(4):
                hit = (x1 >= fill(float32(4 * column) - _HAIR)) & (x0 <= fill(float32(4 * column + 3) + _HAIR))
                touches[group * BLOCKS + strip * 4 + column] = bits(inside & hit) & there


@njit(**_WITHIN)
def find_rows(rows, splats, first, starts):
    """Writes where the rows of splats[first], ... start to `starts` [16], the last one's again where there is none.

    Also asks for the rows of those that come next.
    """
    last = splats.size - 1
    for lane in range(LANES):
        starts[lane] = np.int64(splats[min(first + lane, last)]) * ROW
        prefetch(rows, np.int64(splats[min(first + LANES + lane, last)]) * ROW)


@njit(**_WITHIN)
def list_block(touches, groups, block, listed):
    """Writes the numbers, within the tile, of the splats that touch a block, and returns how many there are.

    `listed` (uint32) must have room for sixteen more than the splats of the tile.
    """
    count = np.int64(0)
    for group in range(groups):
        count += write_set_bits(listed, count, touches[group * BLOCKS + block], np.uint32(group * LANES))
    return count
