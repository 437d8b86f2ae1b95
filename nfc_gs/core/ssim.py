"""The structural similarity of two pictures: the variant of 3DGS, in training and in evaluation alike.

Window 11 x 11, Gaussian of sigma 1.5, channels apart, pictures padded with zeros, C1 = 0.01^2, C2 = 0.03^2 (Wang et al.
2004; 3DGS, Kerbl et al. 2023). Variants without padding give values that are a few thousandths apart: name this one.
"""

import functools
import importlib
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfc_gs.core.sums import RowSum, compiled, rows_of, weighted_total, weights_of
from nfc_gs.kernels import ssim as kernels


def mean_ssim(
    x: Float[Tensor, "H W 3"], y: Float[Tensor, "H W 3"], mask: Bool[Tensor, "H W"] | None = None
) -> Float[Tensor, ""]:
    """The mean of `ssim_map`, at most 1, over the pixels of `mask` (all, if None; 1, if it is empty).

    The gradient goes to `x` only. Compiled for float32 on a CPU; on a CUDA device by the package fused_ssim, if that is
    installed and all pixels count, or else in plain torch.
    """
    y = y.detach()
    wanted = x.requires_grad and torch.is_grad_enabled()
    if compiled(x, y):
        if mask is not None and not mask.any():
            return x.new_ones(())
        return weighted_total([ssim_rows(x, y, mask)], [1.0])[0]
    if x.is_cuda and mask is None and (fused := _fused_ssim()) is not None:
        pictures = (picture.permute(2, 0, 1)[None].contiguous() for picture in (x, y))
        mean: Tensor = fused(*pictures, padding="same", train=wanted)
        return mean
    return _PlainSSIM.apply(x, y, mask, wanted)


def ssim_rows(x: Float[Tensor, "H W 3"], y: Float[Tensor, "H W 3"], mask: Bool[Tensor, "H W"] | None) -> RowSum:
    """`mean_ssim` for float32 on a CPU; at least one pixel must count."""
    pixels = x.shape[:2].numel() if mask is None else int(mask.sum())
    inputs = *rows_of(x, y), weights_of(mask, x.shape[1])
    return RowSum(picture=x, kernel=kernels.rows_of_ssim, inputs=inputs, factor=1 / (3 * pixels))


def ssim_map(x: Float[Tensor, "H W 3"], y: Float[Tensor, "H W 3"]) -> Float[Tensor, "H W 3"]:
    """The similarity around every pixel, in [-1, 1], for pictures with values in [0, 1]; in plain torch."""
    top, bottom, *_ = _parts(*_planes(x, y))
    return (top[0] * top[1] / (bottom[0] * bottom[1])).permute(1, 2, 0)


def _planes(x: Float[Tensor, "H W 3"], y: Float[Tensor, "H W 3"]) -> tuple[Tensor, Tensor]:
    """The pictures by channels, [3 H W]."""
    return x.permute(2, 0, 1), y.permute(2, 0, 1)


def _blurred(planes: Float[Tensor, "P H W"]) -> Float[Tensor, "P H W"]:
    """Weighted sums over the windows around all pixels; its own adjoint, as the window is symmetric and zeros lie outside."""
    window = _window(planes.device, planes.dtype).view(1, 1, -1, 1)
    for _ in range(2):
        # Along the columns, then along the rows, laid down as columns: a GPU takes six times as long along rows.
        planes = torch.nn.functional.conv2d(planes[:, None], window, padding=(kernels.RADIUS, 0))[:, 0]
        planes = planes.mT.contiguous()
    return planes


def _parts(
    x: Float[Tensor, "3 H W"], y: Float[Tensor, "3 H W"]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor, Tensor]:
    """The two factors above the fraction, the two below, and both means."""
    moments = _blurred(torch.cat([x, y, x * x + y * y, x * y]))
    u, v, squares, product = moments.view(4, *x.shape)
    both, means = u * v, u * u + v * v
    top = (2 * both + kernels.C1, 2 * (product - both) + kernels.C2)
    return top, (means + kernels.C1, squares - means + kernels.C2), u, v


class _PlainSSIM(torch.autograd.Function):
    """`mean_ssim` in plain torch, with its gradient found on the way, by fewer operations than autograd would need."""

    @staticmethod
    def forward(ctx, x, y, mask, wanted):  # type: ignore[no-untyped-def]
        planes = _planes(x.detach(), y)
        (a, b), (c, d), u, v = _parts(*planes)
        below = c * d
        similarity = a * b / below
        if mask is None:
            value, weight = similarity.mean(), 1 / similarity.numel()
        else:
            # Without asking the device whether any pixel counts, for which the program would wait.
            numbers = 3 * mask.sum()
            value = torch.where(numbers > 0, (similarity * mask).sum() / numbers.clamp_min(1), 1)
            weight = mask / numbers.clamp_min(1)
        if not wanted:
            return value
        # By the mean of x, by that of x x + y y and by that of x y.
        by_mean = 2 * (v * (b - a) / below + u * similarity * (1 / d - 1 / c))
        slopes = torch.cat([by_mean, -similarity / d, 2 * a / below]) * weight
        by_mean, by_squares, by_product = _blurred(slopes).view(3, *similarity.shape)
        by_x = by_mean + 2 * planes[0] * by_squares + planes[1] * by_product
        ctx.save_for_backward(by_x.permute(1, 2, 0).contiguous())
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (by_x,) = ctx.saved_tensors
        return by_x * gradient, None, None, None


@functools.lru_cache
def _window(device: torch.device, dtype: torch.dtype) -> Float[Tensor, " W"]:
    """Kept, since a copy to a CUDA device makes the program wait."""
    return torch.from_numpy(kernels.window()).to(device, dtype)


@functools.cache
def _fused_ssim() -> Callable[..., Tensor] | None:
    """The function of the package fused_ssim (Mallick et al. 2024), which has the same window, padding and constants."""
    try:
        return importlib.import_module("fused_ssim").fused_ssim
    except ImportError:
        return None
