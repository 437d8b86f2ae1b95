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
_CHUNK = 512  # words whose gradient is made at a time: so many that what is read of it has long been written
_MINUS_LOG2E = np.float32(-np.log2(np.e))
# exp2 takes no more; the sigmoid is then 1e-38, or one but for that.
_FARTHEST = np.float32(126)
# NaN stays what it is, so that a training that has gone astray is seen.
_SETTINGS = {"nogil": True, "fastmath": {"nsz", "contract", "reassoc", "arcp"}, "error_model": "numpy", "cache": True}
_INLINE = _SETTINGS | {"forceinline": True}


@njit(**_INLINE)
def sigmoid(logits):
    """Sixteen sigmoids."""
    exponent = logits * fill(_MINUS_LOG2E)
    exponent = select(exponent > fill(_FARTHEST), fill(_FARTHEST), exponent)
    exponent = select(exponent < fill(-_FARTHEST), fill(-_FARTHEST), exponent)
    return fill(float32(1)) / (fill(float32(1)) + exp2(exponent))


@njit(**_INLINE)
def _rows(width):
    """Where sixteen words of `width` numbers begin, and sixteen numbers."""
    words, numbers = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    find_rows_of(width, 0, LANES, words)
    find_rows_of(1, 0, LANES, numbers)
    return words, numbers


@njit(**_INLINE)
def _shorten(rows, width, word, last):
    """Makes what begins at word `word` end before `last`, which only the last sixteen of all need."""
    if word + LANES > last:
        find_rows_of(width, 0, last - word, rows[0])
        find_rows_of(1, 0, last - word, rows[1])


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
    grouped, rows = width // GROUP * GROUP, _rows(width)
    for word in range(first, last, LANES):
        _shorten(rows, width, word, last)
        total = fill(float32(0))
        for bit in range(0, grouped, GROUP):
            a, b, c, d = load_columns(logits, rows[0], word * width + bit)
            total = fma(fill(weights[bit]), sigmoid(a), fma(fill(weights[bit + 1]), sigmoid(b), total))
            total = fma(fill(weights[bit + 2]), sigmoid(c), fma(fill(weights[bit + 3]), sigmoid(d), total))
        for bit in range(grouped, width):
            total = fma(fill(weights[bit]), sigmoid(gather(logits, rows[0], word * width + bit)), total)
        scatter(values, rows[1], word, total)


@njit(**_SETTINGS)
def one_bit(first, last, logits, width, bit, chances):
    """Writes the sigmoids [N] of one bit of words first .. last; `logits` are [N K], flat, with K the width."""
    rows = _rows(width)
    for word in range(first, last, LANES):
        _shorten(rows, width, word, last)
        scatter(chances, rows[1], word, sigmoid(gather(logits, rows[0], word * width + bit)))


@njit(**_INLINE)
def _slope(logits, pull, weight, push, marked):
    """Sixteen slopes of one bit: of its share of the value, and of itself if it is marked."""
    chance = sigmoid(logits)
    return (pull * weight + push * marked) * (chance * (fill(float32(1)) - chance))


@njit(**_INLINE)
def _write_some(word, last, by_values, weights, by_chances, marks, logits, rows, out, at):
    """`write` of at most sixteen words, to `out` from `at` on."""
    width = weights.size
    grouped = width // GROUP * GROUP
    _shorten(rows, width, word, last)
    pull, push = gather(by_values, rows[1], word), gather(by_chances, rows[1], word)
    for bit in range(0, grouped, GROUP):
        a, b, c, d = load_columns(logits, rows[0], word * width + bit)
        a = _slope(a, pull, weights[bit], push, marks[bit])
        b = _slope(b, pull, weights[bit + 1], push, marks[bit + 1])
        c = _slope(c, pull, weights[bit + 2], push, marks[bit + 2])
        d = _slope(d, pull, weights[bit + 3], push, marks[bit + 3])
        store_columns(out, rows[0], at + bit, a, b, c, d)
    for bit in range(grouped, width):
        lanes = _slope(gather(logits, rows[0], word * width + bit), pull, weights[bit], push, marks[bit])
        scatter(out, rows[0], at + bit, lanes)


@njit(**_SETTINGS)
def write(first, last, by_values, weights, by_chances, marks, together, logits, gradient):
    """Writes the gradient of the logits in the rows first .. last, `together` words each; both flat, [N K].

    Args:
        first: first row.
        last: one behind the last row.
        by_values: the gradient of the words' values [N].
        weights: of a word's bits, [K]; zeros if values have no part in it.
        by_chances: that of the sigmoids [N] of one bit.
        marks: one for that bit, zero for the others, [K]; zeros if sigmoids have no part in it.
        together: how many words a row has.
        logits: of the words.
        gradient: what is written.
    """
    rows, end = _rows(weights.size), last * together
    for word in range(first * together, end, LANES):
        at = word * weights.size
        _write_some(word, end, by_values, weights, by_chances, marks, logits, rows, gradient, at)


@njit(**_SETTINGS)
def step(
    first, last, by_values, weights, by_chances, marks, together,
    logits, moments, squares, fade, fade_squares, rate, root, epsilon,
):  # fmt: skip
    """Adam's step of the logits in the rows first .. last, see `adam.step`; `write`'s gradient stays in the cache."""
    width = weights.size
    rows, gradient = _rows(width), np.empty(_CHUNK * width, np.float32)
    for begin in range(first * together, last * together, _CHUNK):
        end = min(begin + _CHUNK, last * together)
        for word in range(begin, end, LANES):
            at = (word - begin) * width
            _write_some(word, end, by_values, weights, by_chances, marks, logits, rows, gradient, at)
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
