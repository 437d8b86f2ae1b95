"""What words of logits mean, where decoding is a weighted sum of their sigmoids; and the gradient."""

import numpy as np
from numba import float32, njit

from nfc_gs.kernels.simd import (
    LANES,
    exp2,
    fill,
    find_rows_of,
    fma,
    gather,
    load,
    load_columns,
    scatter,
    select,
    store,
    store_columns,
)

# Bits that are loaded and stored at once, for 16 words.
GROUP = 4
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
def expectations(first, last, logits, weights, probabilities, values):
    """Writes the values of words first .. last, and the sigmoids of their logits.

    Args:
        first: first word.
        last: one behind the last word.
        logits: [N K], flat.
        weights: of a word's bits, [K].
        probabilities: [N K], flat.
        values: [N].
    """
    width = weights.size
    if width % GROUP == 0:
        _expect_groups(first, last, logits, weights, probabilities, values)
        return
    begin, end = first * width, last * width
    whole = begin + (end - begin) // LANES * LANES
    for at in range(begin, whole, LANES):
        store(probabilities, at, _sigmoid(load(logits, at)))
    if whole < end:
        some = np.zeros(LANES, np.float32)
        some[: end - whole] = logits[whole:end]
        store(some, 0, _sigmoid(load(some, 0)))
        probabilities[whole:end] = some[: end - whole]
    for word in range(first, last):
        total = float32(0)
        for bit in range(width):
            total += weights[bit] * probabilities[word * width + bit]
        values[word] = total


@njit(**_SETTINGS)
def _expect_groups(first, last, logits, weights, probabilities, values):
    """`expectations` of words of whole groups of bits: a lane for each of 16 words."""
    width = weights.size
    starts, some = np.empty(LANES, np.int64), np.empty(LANES, np.float32)
    for word in range(first, last, LANES):
        find_rows_of(width, word, last, starts)
        total = fill(float32(0))
        for bit in range(0, width, GROUP):
            a, b, c, d = load_columns(logits, starts, bit)
            a, b, c, d = _sigmoid(a), _sigmoid(b), _sigmoid(c), _sigmoid(d)
            store_columns(probabilities, starts, bit, a, b, c, d)
            total = fma(fill(weights[bit]), a, fma(fill(weights[bit + 1]), b, total))
            total = fma(fill(weights[bit + 2]), c, fma(fill(weights[bit + 3]), d, total))
        if word + LANES <= last:
            store(values, word, total)
        else:
            store(some, 0, total)
            values[word:last] = some[: last - word]


@njit(**_SETTINGS)
def slopes(first, last, by_values, weights, probabilities, by_logits):
    """Writes the gradient of the logits of words first .. last, [N K] flat, from that of their values [N]."""
    width = weights.size
    if width % GROUP == 0:
        _slope_groups(first, last, by_values, weights, probabilities, by_logits)
        return
    for word in range(first, last):
        pull = by_values[word]
        for bit in range(width):
            chance = probabilities[word * width + bit]
            by_logits[word * width + bit] = pull * weights[bit] * chance * (float32(1) - chance)


@njit(**_SETTINGS)
def _slope(pull, weight, chance):
    """Sixteen slopes of one bit."""
    return pull * fill(weight) * (chance * (fill(float32(1)) - chance))


@njit(**_SETTINGS)
def _slope_groups(first, last, by_values, weights, probabilities, by_logits):
    """`slopes` of words of whole groups of bits."""
    width = weights.size
    starts, some = np.empty(LANES, np.int64), np.zeros(LANES, np.float32)
    for word in range(first, last, LANES):
        find_rows_of(width, word, last, starts)
        if word + LANES <= last:
            pull = load(by_values, word)
        else:
            some[: last - word] = by_values[word:last]
            some[last - word :] = by_values[last - 1]
            pull = load(some, 0)
        for bit in range(0, width, GROUP):
            a, b, c, d = load_columns(probabilities, starts, bit)
            a, b = _slope(pull, weights[bit], a), _slope(pull, weights[bit + 1], b)
            c, d = _slope(pull, weights[bit + 2], c), _slope(pull, weights[bit + 3], d)
            store_columns(by_logits, starts, bit, a, b, c, d)


@njit(**_SETTINGS)
def one_bit(first, last, logits, width, bit, chances):
    """Writes the sigmoids [N] of one bit of words first .. last; `logits` are [N K], flat, with K the width."""
    starts, places = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    for word in range(first, last, LANES):
        find_rows_of(width, word, last, starts)
        find_rows_of(1, word, last, places)
        scatter(chances, places, 0, _sigmoid(gather(logits, starts, bit)))


@njit(**_SETTINGS)
def one_bit_slopes(first, last, by_chances, width, bit, chances, by_logits):
    """Writes the gradient of the logits of words first .. last from that of `one_bit`; zeros for all other bits."""
    starts, places = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    for word in range(first, last, LANES):
        by_logits[word * width : min(word + LANES, last) * width] = float32(0)
        find_rows_of(width, word, last, starts)
        find_rows_of(1, word, last, places)
        pull, chance = gather(by_chances, places, 0), gather(chances, places, 0)
        scatter(by_logits, starts, bit, _slope(pull, float32(1), chance))
