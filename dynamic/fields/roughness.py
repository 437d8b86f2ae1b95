"""How rough something sampled is: mean squares of second differences."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from dynamic.kernels import roughness as kernels


def roughness(values: Float[Tensor, "*shape"], axis: int) -> Float[Tensor, ""]:
    """The mean square second difference along an axis of three samples at least.

    Compiled, with its gradient, for float32 on a CPU, plain torch elsewhere.
    """
    if values.device.type == "cpu" and values.dtype == torch.float32:
        return _Roughness.apply(values, axis)
    return roughness_plain(values, axis)


def roughness_plain(values: Float[Tensor, "*shape"], axis: int) -> Float[Tensor, ""]:
    """The same as `roughness`, in plain torch on any device and in any precision."""
    return values.diff(n=2, dim=axis).square().mean()


class _Roughness(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, axis):
        samples = values.shape[axis]
        before = values.shape[:axis].numel()
        array = values.detach().contiguous().numpy().reshape(before, samples, -1)
        gradient = np.zeros_like(array)
        value = kernels.roughness(array, np.float32(samples / ((samples - 2) * array.size)), gradient)
        ctx.gradient = torch.from_numpy(gradient).view(values.shape)
        return values.new_tensor(value)

    @staticmethod
    @once_differentiable
    def backward(ctx, by_value):
        return by_value * ctx.gradient, None
