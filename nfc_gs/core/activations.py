"""What makes numbers out of parameters, one by one, with gradients that a parameter can be told."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfc_gs.core.leaves import Pull, tell_or_write
from nfc_gs.core.sums import compiled
from nfc_gs.kernels import products as kernels


def exponential(numbers: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """e^x of every number."""
    return _Exponential.apply(numbers) if compiled(numbers) and numbers.ndim > 0 else numbers.exp()


def affine(numbers: Float[Tensor, "*shape"], offset: float, factor: float) -> Float[Tensor, "*shape"]:
    """`offset + factor * x` of every number."""
    if compiled(numbers) and numbers.ndim > 0:
        return _Affine.apply(numbers, offset, factor)
    return offset + factor * numbers


@dataclass(frozen=True, kw_only=True)
class _ProductPull(Pull):
    """A gradient that is `factor` times `pulls` times `factors`, if there are any, number by number; `width` a row."""

    pulls: np.ndarray
    factors: np.ndarray
    factor: np.float32
    width: int

    def write(self, first: int, last: int, gradient: np.ndarray) -> None:
        """See `Pull`."""
        kernels.write(first, last, *self._inputs, gradient)

    def step(
        self, first: int, last: int, values: np.ndarray, moments: np.ndarray, squares: np.ndarray, *numbers: np.float32
    ) -> None:
        """See `Pull`."""
        kernels.step(first, last, *self._inputs, values, moments, squares, *numbers)

    @property
    def _inputs(self) -> tuple[object, ...]:
        return self.pulls, self.factors, self.factor, self.width


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().view(-1).numpy()


class _Exponential(torch.autograd.Function):
    """`exponential`."""

    @staticmethod
    def forward(ctx, numbers):  # type: ignore[no-untyped-def]
        powers = numbers.detach().exp()
        ctx.save_for_backward(numbers, powers)
        return powers

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        numbers, powers = ctx.saved_tensors
        width = numbers.shape[1:].numel()
        pull = _ProductPull(pulls=_flat(gradient), factors=_flat(powers), factor=np.float32(1), width=width)
        return tell_or_write(pull, numbers)


class _Affine(torch.autograd.Function):
    """`affine`."""

    @staticmethod
    def forward(ctx, numbers, offset, factor):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(numbers)
        ctx.factor = factor
        return offset + factor * numbers.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (numbers,) = ctx.saved_tensors
        width, nothing = numbers.shape[1:].numel(), np.empty(0, np.float32)
        pull = _ProductPull(pulls=_flat(gradient), factors=nothing, factor=np.float32(ctx.factor), width=width)
        return tell_or_write(pull, numbers), None, None
