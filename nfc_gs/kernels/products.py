"""Gradients that are products of two arrays, or of an array and a number, made as Adam needs them."""

import numpy as np
from numba import njit

from nfc_gs.kernels.adam import step_numbers

_CHUNK = 1024  # numbers of a gradient that are made at a time
_SETTINGS = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy", "cache": True}


@njit(**_SETTINGS)
def _multiply(pulls, factors, factor, out, n):
    for i in range(n):
        out[i] = pulls[i] * factors[i] * factor


@njit(**_SETTINGS)
def _scale(pulls, factor, out, n):
    for i in range(n):
        out[i] = pulls[i] * factor


@njit(**_SETTINGS)
def _write_some(begin, end, pulls, factors, factor, out):
    if factors.size > 0:
        _multiply(pulls[begin:end], factors[begin:end], factor, out, end - begin)
    else:
        _scale(pulls[begin:end], factor, out, end - begin)


@njit(**_SETTINGS)
def write(first, last, pulls, factors, factor, width, gradient):
    """Writes `factor` times `pulls` times `factors`, which may be empty for none, in the rows first .. last of so many numbers;
    all flat.
    """
    begin, end = first * width, last * width
    _write_some(begin, end, pulls, factors, factor, gradient[begin:end])


@njit(**_SETTINGS)
def step(
    first, last, pulls, factors, factor, width,
    values, moments, squares, fade, fade_squares, rate, root, epsilon,
):  # fmt: skip
    """Adam's step of the rows first .. last, see `adam.step`; `write`'s gradient stays in the cache."""
    gradient = np.empty(_CHUNK, np.float32)
    for begin in range(first * width, last * width, _CHUNK):
        end = min(begin + _CHUNK, last * width)
        _write_some(begin, end, pulls, factors, factor, gradient)
        here = slice(begin, end)
        step_numbers(
            values[here], gradient, moments[here], squares[here],
            fade, fade_squares, rate, root, epsilon, end - begin,
        )  # fmt: skip
