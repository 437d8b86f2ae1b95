"""Adam's step in one pass over the numbers, of all rows or only of those that were seen."""

import math

from numba import float32, njit

# Products and sums may be contracted, no more: quotients and roots are those of IEEE 754.
_SETTINGS = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy", "cache": True}


@njit(**_SETTINGS)
def step_numbers(values, gradients, moments, squares, fade, fade_squares, rate, root, epsilon, n):
    """`step` of the first n numbers of all arrays."""
    new, new_squares = float32(1) - fade, float32(1) - fade_squares
    for i in range(n):  # from 0, or LLVM would not vectorize it: indices below 0 count from the end
        gradient = gradients[i]
        moment = fade * moments[i] + new * gradient
        square = fade_squares * squares[i] + new_squares * (gradient * gradient)
        moments[i] = moment
        squares[i] = square
        values[i] -= rate * moment / (math.sqrt(square) * root + epsilon)


@njit(**_SETTINGS)
def step(first, last, seen, width, values, gradients, moments, squares, fade, fade_squares, rate, root, epsilon):
    """Moves the rows first .. last of `values` against their gradients, and updates both moments; all flat float32.

    Args:
        first: first row.
        last: one behind the last row.
        seen: which rows take part, bool [N]; of no rows if all do. The others keep values and moments.
        width: how many numbers a row has.
        values: what is optimized.
        gradients: of the loss, by `values`.
        moments: the first moments, exp_avg.
        squares: the second moments, exp_avg_sq.
        fade: beta 1.
        fade_squares: beta 2.
        rate: the learning rate, divided by 1 - beta1^t.
        root: 1 / sqrt(1 - beta2^t).
        epsilon: added to the root of the second moment.
    """
    begin = first
    while begin < last:
        end = last
        if seen.shape[0] > 0:
            while begin < last and not seen[begin]:
                begin += 1
            end = begin
            while end < last and seen[end]:
                end += 1
        here = slice(begin * width, end * width)
        step_numbers(
            values[here], gradients[here], moments[here], squares[here],
            fade, fade_squares, rate, root, epsilon, (end - begin) * width,
        )  # fmt: skip
        begin = end
