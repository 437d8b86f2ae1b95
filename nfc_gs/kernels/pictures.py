"""Pictures row by row: photographs as numbers, and how far two pictures are apart, with the gradient."""

from numba import float32, njit

_SETTINGS = {"nogil": True, "error_model": "numpy", "cache": True}
_EXACT = {**_SETTINGS, "fastmath": False}  # the same rounding as torch's, operation by operation
_FAST = {**_SETTINGS, "fastmath": True}


@njit(**_EXACT)
def _unit(codes, out, n):
    for i in range(n):
        out[i] = float32(codes[i]) / float32(255)


@njit(**_EXACT)
def _over(alpha, background, out, n):
    red, green, blue = background[0], background[1], background[2]
    for i in range(n):
        clear = float32(1) - alpha[i]
        out[3 * i] += clear * red
        out[3 * i + 1] += clear * green
        out[3 * i + 2] += clear * blue


@njit(**_EXACT)
def photograph(first, last, rgb_codes, alpha_codes, background, rgb, alpha):
    """Writes rows first .. last of a photograph as numbers in [0, 1], its transparent pixels over `background` [3].

    Args:
        first: first row.
        last: one behind the last row.
        rgb_codes: uint8 [H 3W], premultiplied by alpha.
        alpha_codes: uint8 [H W]; of no rows where all is opaque.
        background: [3].
        rgb: [H 3W].
        alpha: [H W]; of no rows where all is opaque.
    """
    n = rgb_codes.shape[1]
    for y in range(first, last):
        _unit(rgb_codes[y], rgb[y], n)
        if alpha.shape[0] > 0:
            _unit(alpha_codes[y], alpha[y], n // 3)
            _over(alpha[y], background, rgb[y], n // 3)


@njit(**_FAST)
def _distance(x, y, squared, n):
    total = 0.0
    if squared:
        for i in range(n):
            apart = x[i] - y[i]
            total += apart * apart
    else:
        for i in range(n):
            total += abs(x[i] - y[i])
    return total


@njit(**_FAST)
def _weighed_distance(x, y, weights, squared, n):
    total = 0.0
    for i in range(n):
        apart = x[i] - y[i]
        total += weights[i // 3] * (apart * apart if squared else abs(apart))
    return total


@njit(**_FAST)
def _add_slope(x, y, scale, squared, out, n):
    zero = float32(0)
    if squared:
        twice = float32(2) * scale
        for i in range(n):
            out[i] += twice * (x[i] - y[i])
    else:
        for i in range(n):
            apart = x[i] - y[i]
            out[i] += scale if apart > zero else (-scale if apart < zero else zero)


@njit(**_FAST)
def _add_weighed_slope(x, y, weights, scale, squared, out, n):
    zero = float32(0)
    for i in range(n):
        apart, here = x[i] - y[i], scale * weights[i // 3]
        if squared:
            out[i] += float32(2) * here * apart
        else:
            out[i] += here if apart > zero else (-here if apart < zero else zero)


@njit(**_FAST)
def distances(first, last, x, y, weights, squared, scale, sums, fresh, gradient):
    """Writes the sum of |x - y|, or of its square, of each row first .. last of two pictures [H 3W], and adds `scale` times
    its gradient by `x` to `gradient` [H 3W], which has no rows if none is wanted, and is first cleared if it is `fresh`.

    `weights` are those of the pixels, [H W], or of no rows if all count the same; `sums` float64 [H], one a row, so that
    their sum does not depend on the number of threads.
    """
    n, wanted = x.shape[1], gradient.shape[0] > 0
    if fresh:
        gradient[first:last] = float32(0)
    for row in range(first, last):
        if weights.shape[0] > 0:
            sums[row] = _weighed_distance(x[row], y[row], weights[row], squared, n)
            if wanted:
                _add_weighed_slope(x[row], y[row], weights[row], scale, squared, gradient[row], n)
        else:
            sums[row] = _distance(x[row], y[row], squared, n)
            if wanted:
                _add_slope(x[row], y[row], scale, squared, gradient[row], n)
