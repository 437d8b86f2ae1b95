"""Numbers that are sums over a picture's rows, and their gradients: several in one pass, by compiled kernels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfc_gs.kernels.threads import part, share, thread_count


@dataclass(frozen=True, kw_only=True)
class RowSum:
    """`offset` + `factor` times the sum of one number for each row of `picture`.

    `kernel(first, last, *inputs, scale, sums, fresh, gradient)` writes the numbers of the rows first .. last to `sums`,
    float64 [H], and adds `scale` times their gradient by the picture to `gradient`, float32 [H M]; that has no rows if none is
    wanted, and counts as zero so far if it is `fresh`.
    """

    picture: Float[Tensor, "H W *rest"]
    kernel: Callable[..., None]
    inputs: tuple[object, ...]
    factor: float
    offset: float = 0.0


def compiled(*tensors: Tensor) -> bool:
    """Whether kernels take these tensors: float32 on a CPU."""
    return all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)


def rows_of(*tensors: Tensor) -> list[np.ndarray]:
    """Pictures [H W *] as arrays [H W*]; copies of those that are not contiguous."""
    return [t.detach().contiguous().view(t.shape[0], t.shape[1:].numel()).numpy() for t in tensors]


def weights_of(mask: Bool[Tensor, "H W"] | None, width: int) -> np.ndarray:
    """How much each pixel counts, float32 [H W]; of no rows if all count the same."""
    return np.empty((0, width), np.float32) if mask is None else mask.float().contiguous().numpy()


def weighted_total(sums: Sequence[RowSum], weights: Sequence[float]) -> tuple[Float[Tensor, ""], list[float]]:
    """The weighted sum of the numbers, differentiable in their pictures (all of one height), and the numbers one by one.

    The gradient is found on the way: each thread goes through its rows with one kernel after the other.
    """
    pictures = list({id(each.picture): each.picture for each in sums}.values())
    wanted = [picture.requires_grad and torch.is_grad_enabled() for picture in pictures]
    values: list[float] = []
    total: Tensor = _WeightedTotal.apply(list(zip(sums, weights, strict=True)), values, wanted, *pictures)
    return total, values


class _WeightedTotal(torch.autograd.Function):
    """`weighted_total` of unique pictures, whose `values` it appends to a list."""

    @staticmethod
    def forward(ctx, weighted, values, wanted, *pictures):  # type: ignore[no-untyped-def]
        height, ctx.wanted = len(pictures[0]), wanted
        threads = min(thread_count(), max(height, 1))
        gradients = [torch.empty(height * want, *p.shape[1:]) for p, want in zip(pictures, wanted, strict=True)]
        arrays = {id(picture): rows_of(gradient)[0] for picture, gradient in zip(pictures, gradients, strict=True)}
        found = np.empty((len(weighted), height))

        def add(number: int) -> None:
            first, last = part(height, number, threads)
            begun: set[int] = set()
            for (each, weight), row in zip(weighted, found, strict=True):
                scale = np.float32(weight * each.factor)
                fresh = id(each.picture) not in begun
                each.kernel(first, last, *each.inputs, scale, row, fresh, arrays[id(each.picture)])
                begun.add(id(each.picture))

        share(add, threads)
        values += [each.offset + each.factor * float(row.sum()) for (each, _), row in zip(weighted, found, strict=True)]
        ctx.save_for_backward(*gradients)
        return pictures[0].new_tensor(sum(weight * value for (_, weight), value in zip(weighted, values, strict=True)))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        scale, found = gradient.item(), zip(ctx.wanted, ctx.saved_tensors, strict=True)
        # Mostly this is all that is minimized, and its gradient one.
        return None, None, None, *((g if scale == 1 else g * scale) if want else None for want, g in found)
