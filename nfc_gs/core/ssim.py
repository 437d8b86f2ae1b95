"""The structural similarity of two pictures: the variant of 3DGS, in training and in evaluation alike.

Window 11 x 11, Gaussian of sigma 1.5, channels apart, pictures padded with zeros, C1 = 0.01^2, C2 = 0.03^2 (Wang et al.
2004; 3DGS, Kerbl et al. 2023). Variants without padding give values that are a few thousandths apart: name this one.
"""

import functools
import importlib
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfc_gs.kernels import rows
from nfc_gs.kernels import ssim as kernels
from nfc_gs.kernels.threads import thread_count


def mean_ssim(
    x: Float[Tensor, "H W 3"], y: Float[Tensor, "H W 3"], mask: Bool[Tensor, "H W"] | None = None
) -> Float[Tensor, ""]:
    """The mean of `ssim_map`, at most 1, over the pixels of `mask` (all, if None; 1, if it is empty).

    The gradient goes to `x` only. Compiled for float32 on a CPU; on a CUDA device by the package fused_ssim, if that is
    installed and all pixels count, or else in plain torch.
    """
    y = y.detach()
    if x.device.type == "cpu" and x.dtype == y.dtype == torch.float32:
        return _MeanSSIM.apply(x, y, mask, x.requires_grad and torch.is_grad_enabled())
    if x.is_cuda and mask is None and (fused := _fused_ssim()) is not None:
        pictures = (picture.permute(2, 0, 1)[None].contiguous() for picture in (x, y))
        mean: Tensor = fused(*pictures, padding="same", train=x.requires_grad)
        return mean
    similarity = ssim_map(x, y)
    if mask is None:
        return similarity.mean()
    # Without asking the device whether there are any, for which the program would wait.
    counted, pixels = mask[..., None], mask.sum()
    return torch.where(pixels > 0, (similarity * counted).sum() / (3 * pixels.clamp_min(1)), 1.0)


def ssim_map(x: Float[Tensor, "H W 3"], y: Float[Tensor, "H W 3"]) -> Float[Tensor, "H W 3"]:
    """The similarity around every pixel, in [-1, 1], for pictures with values in [0, 1]; in plain torch."""
    window = _window(x.device, x.dtype)
    moments = torch.stack([x, y, x * x + y * y, x * y]).permute(0, 3, 1, 2).reshape(12, 1, *x.shape[:2])
    for _ in range(2):
        # Along the columns, then along the rows, laid down as columns: a GPU takes six times as long along rows.
        moments = torch.nn.functional.conv2d(moments, window.view(1, 1, -1, 1), padding=(kernels.RADIUS, 0))
        moments = moments.mT.contiguous()
    u, v, squares, product = moments.view(4, 3, *x.shape[:2])
    means = u * u + v * v
    similarity = (2 * u * v + kernels.C1) * (2 * (product - u * v) + kernels.C2)
    return (similarity / ((means + kernels.C1) * (squares - means + kernels.C2))).permute(1, 2, 0)


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


class _MeanSSIM(torch.autograd.Function):
    """`mean_ssim` by the compiled kernel, which finds value and gradient in one pass."""

    @staticmethod
    def forward(ctx, x, y, mask, wanted):  # type: ignore[no-untyped-def]
        height, width = x.shape[:2]
        pixels = height * width if mask is None else int(mask.sum())
        if pixels == 0:
            ctx.save_for_backward(torch.zeros_like(x))
            return x.new_ones(())
        weights = np.empty((0, width), np.float32) if mask is None else mask.float().contiguous().numpy()
        gradient = torch.empty(x.shape if wanted else (0, width, 3))
        sums = np.empty(height)
        pictures = [p.detach().contiguous().view(height, -1).numpy() for p in (x, y)]
        rows.split(
            kernels.rows_of_ssim,
            height,
            thread_count(),
            *pictures,
            weights,
            np.float32(1 / (3 * pixels)),
            sums,
            gradient.view(-1, 3 * width).numpy(),
        )
        ctx.save_for_backward(gradient)
        return x.new_tensor(sums.sum() / (3 * pixels))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (by_x,) = ctx.saved_tensors
        return by_x * gradient, None, None, None
