"""Colours and what losses asked for beside them, composited in one pass: put side by side, and taken apart."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfc_gs.kernels import channels as kernels
from nfc_gs.kernels import rows
from nfc_gs.kernels.threads import threads_for


def join(parts: Sequence[Float[Tensor, "N _"]]) -> Float[Tensor, "N C"]:
    """Columns side by side, as `torch.cat(parts, 1)`; by the compiled kernel for float32 on a CPU, whose gradients are
    contiguous.
    """
    if all(map(_compiled, parts)):
        return _Join.apply(*parts)
    return torch.cat(list(parts), 1)


def cut(joined: Float[Tensor, "H W C"], widths: Sequence[int]) -> tuple[Tensor, ...]:
    """A picture's channels in parts [H W width], as `joined.split(widths, -1)`; by the compiled kernel for float32 on a CPU,
    whose parts are contiguous.
    """
    if _compiled(joined):
        return _Cut.apply(joined, tuple(widths))
    return joined.split(list(widths), -1)


def _compiled(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts [... c], of at least two axes, in one tensor [... C]."""
    joined = torch.empty(*parts[0].shape[:-1], sum(part.shape[-1] for part in parts))
    flat = joined.view(-1, joined.shape[-1])
    arrays = tuple(part.detach().contiguous().view(len(flat), part.shape[-1]).numpy() for part in parts)
    rows.split(kernels.join, len(flat), threads_for(flat.numel()), arrays, flat.numpy())
    return joined


def _cut(joined: Tensor, widths: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The inverse of `_joined`."""
    flat = joined.detach().contiguous().view(-1, joined.shape[-1])
    parts = tuple(torch.empty(*joined.shape[:-1], width) for width in widths)
    arrays = tuple(part.view(len(flat), part.shape[-1]).numpy() for part in parts)
    rows.split(kernels.cut, len(flat), threads_for(flat.numel()), flat.numpy(), arrays)
    return parts


class _Join(torch.autograd.Function):
    """`join` by the compiled kernel."""

    @staticmethod
    def forward(ctx, *parts):  # type: ignore[no-untyped-def]
        ctx.widths = tuple(part.shape[-1] for part in parts)
        return _joined(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return _cut(gradient, ctx.widths)


class _Cut(torch.autograd.Function):
    """`cut` by the compiled kernel."""

    @staticmethod
    def forward(ctx, joined, widths):  # type: ignore[no-untyped-def]
        return _cut(joined, widths)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):  # type: ignore[no-untyped-def]
        return _joined(gradients), None
