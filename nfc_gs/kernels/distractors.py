"""Which pixels of a photograph show the scene: distances of two pictures, a fit to them, and what follows for every pixel."""

import numpy as np
from numba import float32, njit

from nfc_gs.kernels.simd import LANES, fill, fnma, load, store
from nfc_gs.kernels.words import sigmoid

_SETTINGS = {"nogil": True, "fastmath": {"nsz", "contract", "reassoc", "arcp"}, "error_model": "numpy", "cache": True}


@njit(**_SETTINGS)
def _sum_across(values, reach, width, out):
    """`out[x]` is the sum of values[x - reach .. x + reach], of those that there are."""
    for x in range(width):
        out[x] = values[x]
    for step in range(1, reach + 1):
        for x in range(width - step):
            out[x] += values[x + step]
        for x in range(step, width):
            out[x] += values[x - step]


@njit(**_SETTINGS)
def _subtract(rgb, photograph, out, n):
    for i in range(n):
        out[i] = abs(rgb[i] - photograph[i])


@njit(**_SETTINGS)
def _add_channels(values, out, width):
    for x in range(width):
        out[x] = values[3 * x] + values[3 * x + 1] + values[3 * x + 2]


@njit(**_SETTINGS)
def apart(first, last, rgb, photograph, weights, reach, distances, across, counts):
    """Writes the distances of rows first .. last, and their sums along the row.

    Args:
        first: first row.
        last: one behind the last row.
        rgb: [H 3W].
        photograph: [H 3W].
        weights: 1 where a pixel counts and 0 elsewhere, [H W]; of no rows where all do.
        reach: how many neighbours on each side are summed.
        distances: sum of the three channels' distances, [H W'] with W' at least W; 0 where a pixel does not count.
        across: the sums of these, [H W'].
        counts: of how many pixels that count, [H W']; of no rows where `weights` has none.
    """
    width = rgb.shape[1] // 3
    channels = np.empty(3 * width, np.float32)
    for y in range(first, last):
        _subtract(rgb[y], photograph[y], channels, 3 * width)
        _add_channels(channels, distances[y], width)
        if weights.shape[0] > 0:
            for x in range(width):
                distances[y, x] *= weights[y, x]
            _sum_across(weights[y], reach, width, counts[y])
        _sum_across(distances[y], reach, width, across[y])


@njit(**_SETTINGS)
def _add_rows(values, first, last, width, out):
    for x in range(width):
        out[x] = values[first, x]
    for y in range(first + 1, last):
        for x in range(width):
            out[x] += values[y, x]


@njit(**_SETTINGS)
def around(first, last, across, counts, reach, width, means):
    """Writes the mean distance around each pixel of rows first .. last, [H W'], from `apart`'s sums; 0 where none counts."""
    height = across.shape[0]
    counted = np.empty(means.shape[1], np.float32)
    for y in range(first, last):
        top, bottom = max(y - reach, 0), min(y + reach + 1, height)
        _add_rows(across, top, bottom, width, means[y])
        if counts.shape[0] > 0:
            _add_rows(counts, top, bottom, width, counted)
        else:
            for x in range(width):
                counted[x] = float32((bottom - top) * (min(x + reach + 1, width) - max(x - reach, 0)))
        for x in range(width):
            means[y, x] /= max(counted[x], float32(1))
        for x in range(width, means.shape[1]):
            means[y, x] = float32(0)


@njit(**_SETTINGS)
def _sums(means, distances, counted, solid, steepness, level, chances):
    """Of a sample, of 16 n pixels: the sum of chances that count, that of solid pixels, and of the latter times distances."""
    for at in range(0, means.size, LANES):
        store(chances, at, sigmoid(fnma(fill(steepness), load(means, at), fill(level))))
    total, weight, apart_total = float32(0), float32(0), float32(0)
    for i in range(means.size):
        total += counted[i] * chances[i]
        weight += solid[i] * chances[i]
        apart_total += solid[i] * chances[i] * distances[i]
    return total, weight, apart_total


@njit(**_SETTINGS)
def _sample(means, distances, weights, alpha, stride, opaque):
    """Of every stride-th pixel of every stride-th row: what `_sums` takes; zeros behind them, to a multiple of 16."""
    height, width = alpha.shape
    size = -(-height // stride) * -(-width // stride)
    taken = np.zeros((4, -(-size // LANES) * LANES), np.float32)
    i = 0
    for y in range(0, height, stride):
        for x in range(0, width, stride):
            counted = weights[y, x] if weights.shape[0] > 0 else float32(1)
            taken[0, i], taken[1, i], taken[2, i] = means[y, x], distances[y, x], counted
            taken[3, i] = counted if alpha[y, x] > opaque else float32(0)
            i += 1
    return taken[0], taken[1], taken[2], taken[3]


@njit(**_SETTINGS)
def fit(means, distances, weights, alpha, stride, rounds, opaque, smallest, largest, doubt, rarest, rarest_other, odds):
    """The width of the scene's own distances, the log odds of its share, and its share with these, by expectation maximization.

    Args:
        means: from `around`, [H W'].
        distances: from `apart`, [H W'].
        weights: as `apart`'s.
        alpha: [H W].
        stride: every how many-th row and column is looked at.
        rounds: how often.
        opaque: the width is found where alpha is more.
        smallest: the least width.
        largest: the greatest, with which it begins as far as `doubt` says.
        doubt: as how many pixels of the largest width are added, in shares of those that count.
        rarest: what the scene's share is at least.
        rarest_other: what is left beside it at least.
        odds: log odds of the scene, to begin with.
    """
    means, distances, counted, solid = _sample(means, distances, weights, alpha, stride, opaque)
    chances = np.empty_like(means)
    pixels, weight, apart_total = float32(0), float32(0), float32(0)
    for i in range(means.size):
        pixels += counted[i]
        weight += solid[i]
        apart_total += solid[i] * distances[i]
    doubt = doubt * pixels + float32(1e-6)
    for number in range(rounds + 1):
        width = (apart_total + 3 * doubt * largest) / (3 * (weight + doubt))
        width = min(max(width, smallest), largest)
        level = odds - 3 * np.log(2 * width)
        total, weight, apart_total = _sums(
            means, distances, counted, solid, float32(1 / width), float32(level), chances
        )
        scene = total / max(pixels, float32(1))
        if number < rounds:
            share = min(max(scene, rarest), 1 - rarest_other)
            odds = float32(np.log(share / (1 - share)))
    return width, odds, scene


@njit(**_SETTINGS)
def _blend(rgb, photograph, chances, out, width):
    for x in range(width):
        chance = chances[x]
        red, green, blue = rgb[3 * x], rgb[3 * x + 1], rgb[3 * x + 2]
        out[3 * x] = red + chance * (photograph[3 * x] - red)
        out[3 * x + 1] = green + chance * (photograph[3 * x + 1] - green)
        out[3 * x + 2] = blue + chance * (photograph[3 * x + 2] - blue)


@njit(**_SETTINGS)
def complete(first, last, means, rgb, photograph, width, odds, trust, chances, out):
    """Writes each pixel's chance to show the scene, in rows first .. last, and the photograph completed by the render.

    Args:
        first: first row.
        last: one behind the last row.
        means: from `around`, [H W'], W' a multiple of 16.
        rgb: [H 3W].
        photograph: [H 3W].
        width: from `fit`.
        odds: log odds, from `fit`.
        trust: how much a chance counts, in [0, 1]; what is missing goes to the scene.
        chances: [H W'].
        out: chance * photograph + (1 - chance) * rgb, [H 3W].
    """
    steepness, level = float32(1 / width), float32(odds - 3 * np.log(2 * width))
    for y in range(first, last):
        row, written = means[y], chances[y]
        for at in range(0, row.size, LANES):
            doubted = fill(trust) * (fill(float32(1)) - sigmoid(fnma(fill(steepness), load(row, at), fill(level))))
            store(written, at, fill(float32(1)) - doubted)
        _blend(rgb[y], photograph[y], written, out[y], rgb.shape[1] // 3)
