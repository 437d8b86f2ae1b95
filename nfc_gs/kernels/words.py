"""What words of logits mean, where decoding is a weighted sum of their sigmoids; and the gradient."""

import numpy as np
from numba import float32, njit

from nfc_gs.kernels.adam import step_numbers
from nfc_gs.kernels.simd import (
    LANES,
    exp2,
    fill,
    find_rows_of,
    fma,
    gather,
    load_columns,
    scatter,
    select,
    store_columns,
)

# Bits that are loaded and stored at once, for 16 words.
GROUP = 4
_CHUNK = 64  # words whose gradient is made at a time
_MINUS_LOG2E = np.float32(-np.log2(np.e))
# exp2 takes no more; the sigmoid is then 1e-38, or one but for that.
_FARTHEST = np.float32(126)
# NaN stays what it is, so that a training that has gone astray is seen.
_SETTINGS = {"nogil": True, "fastmath": {"nsz", "contract", "reassoc", "arcp"}, "error_model": "numpy", "cache": True}


@njit(**_SETTINGS)
def _sigmoid(logits):
    """Sixteen sigmoids."""
    exponent = logits * fill(_MINUS_LOG2E)
    exponent = select(exponent > fill(_FARTHEST), fill(_FARTHEST), exponent)
    exponent = select(exponent < fill(-_FARTHEST), fill(-_FARTHEST), exponent)
    return fill(float32(1)) / (fill(float32(1)) + exp2(exponent))


@njit(**_SETTINGS)
def expectations(first, last, logits, weights, values):
    """Writes the values [N] of words first .. last, 16 at a time, a lane each.

    Args:
        first: first word.
        last: one behind the last word.
        logits: [N K], flat.
        weights: of a word's bits, [K].
        values: [N].
    """
    width = weights.size
    grouped = width // GROUP * GROUP
    starts, places = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    for word in range(first, last, LANES):
        find_rows_of(width, word, last, starts)
        find_rows_of(1, word, last, places)
        total = fill(float32(0))
        for bit in range(0, grouped, GROUP):
            a, b, c, d = load_columns(logits, starts, bit)
            total = fma(fill(weights[bit]), _sigmoid(a), fma(fill(weights[bit + 1]), _sigmoid(b), total))
            total = fma(fill(weights[bit + 2]), _sigmoid(c), fma(fill(weights[bit + 3]), _sigmoid(d), total))
        for bit in range(grouped, width):
            total = fma(fill(weights[bit]), _sigmoid(gather(logits, starts, bit)), total)
        scatter(values, places, 0, total)


@njit(**_SETTINGS)
def one_bit(first, last, logits, width, bit, chances):
    """Writes the sigmoids [N] of one bit of words first .. last; `logits` are [N K], flat, with K the width."""
    starts, places = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    for word in range(first, last, LANES):
        find_rows_of(width, word, last, starts)
        find_rows_of(1, word, last, places)
        scatter(chances, places, 0, _sigmoid(gather(logits, starts, bit)))


@njit(**_SETTINGS)
def _slope(logits, pull, weight, push, marked):
    """Sixteen slopes of one bit: of its share of the value, and of itself if it is marked."""
    chance = _sigmoid(logits)
    return (pull * weight + push * marked) * (chance * (fill(float32(1)) - chance))


@njit(**_SETTINGS)
def _write_some(word, last, by_values, weights, by_chances, marks, logits, starts, out):
    """`write` of at most sixteen words, to the start of `out`."""
    width = weights.size
    grouped = width // GROUP * GROUP
    find_rows_of(1, word, last, starts[0])
    pull, push = fill(float32(0)), fill(float32(0))
    if by_values.size > 0:
        pull = gather(by_values, starts[0], 0)
    if by_chances.size > 0:
        push = gather(by_chances, starts[0], 0)
    find_rows_of(width, word, last, starts[0])
    find_rows_of(width, 0, min(LANES, last - word), starts[1])
    for bit in range(0, grouped, GROUP):
        a, b, c, d = load_columns(logits, starts[0], bit)
        a = _slope(a, pull, weights[bit], push, marks[bit])
        b = _slope(b, pull, weights[bit + 1], push, marks[bit + 1])
        c = _slope(c, pull, weights[bit + 2], push, marks[bit + 2])
        d = _slope(d, pull, weights[bit + 3], push, marks[bit + 3])
        store_columns(out, starts[1], bit, a, b, c, d)
    for bit in range(grouped, width):
        lanes = _slope(gather(logits, starts[0], bit), pull, weights[bit], push, marks[bit])
        scatter(out, starts[1], bit, lanes)


@njit(**_SETTINGS)
def write(first, last, by_values, weights, by_chances, marks, together, logits, gradient):
    """Writes the gradient of the logits in the rows first .. last, `together` words each; both flat, [N K].

    Args:
        first: first row.
        last: one behind the last row.
        by_values: the gradient of the words' values [N], or of none if they have no part in it.
        weights: of a word's bits, [K].
        by_chances: that of the sigmoids [N] of one bit, or of none.
        marks: one for that bit, zero for the others, [K].
        together: how many words a row has.
        logits: of the words.
        gradient: what is written.
    """
    width, starts = weights.size, np.empty((2, LANES), np.int64)
    for word in range(first * together, last * together, LANES):
        out = gradient[word * width :]
        _write_some(word, last * together, by_values, weights, by_chances, marks, logits, starts, out)


@njit(**_SETTINGS)
def step(
    first, last, by_values, weights, by_chances, marks, together,
    logits, moments, squares, fade, fade_squares, rate, root, epsilon,
):  # fmt: skip
    """Adam's step of the logits in the rows first .. last, see `adam.step`; `write`'s gradient stays in the cache."""
    width, starts = weights.size, np.empty((2, LANES), np.int64)
    gradient = np.empty(_CHUNK * width, np.float32)
    for begin in range(first * together, last * together, _CHUNK):
        end = min(begin + _CHUNK, last * together)
        for word in range(begin, end, LANES):
            out = gradient[(word - begin) * width :]
            _write_some(word, end, by_values, weights, by_chances, marks, logits, starts, out)
        here = slice(begin * width, end * width)
        step_numbers(
            logits[here], gradient, moments[here], squares[here],
            fade, fade_squares, rate, root, epsilon, (end - begin) * width,
        )  # fmt: skip


@njit(nogil=True, error_model="numpy", cache=True)
def levels(first, last, values, bits, bit, out):
    """Writes how far the numbers first .. last are above threshold number `bit` of `bits`, in steps, between 0 and 1."""
    _levels(values[first:last], float32(bits), float32(bit), out[first:last], last - first)


@njit(nogil=True, error_model="numpy", cache=True)
def _levels(values, bits, bit, out, n):
    zero, one = float32(0), float32(1)
    for i in range(n):
        level = values[i] * bits - bit
        # In this order, so that what is not a number stays that.
        level = zero if level < zero else level
        out[i] = one if level > one else level
