"""Few bits: values rounded to the levels of a short word, in training already, so that the rest can make up for it."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nfc_gs.config import Share, spec

Bits = Literal[0, 2, 3, 4, 5, 6, 7, 8]


@spec
class Rounding:
    """Decoded colours (without the view-dependent part) and opacities, rounded to words of so many bits; 0: not at all.

    It acts from the share `start` of the steps on, with gradients straight through (Bengio et al., arXiv 1308.3432): what is
    rendered, evaluated and exported are levels, what is learned are the numbers before rounding. With start 1 it is
    rounding after the training, the control.
    """

    colour_bits: Bits = 0
    opacity_bits: Bits = 0
    start: Share = 0.7

    def at(self, progress: float) -> "Rounding":
        """Itself from `start` on, no rounding before."""
        return self if progress >= self.start else UNROUNDED


UNROUNDED = Rounding()


def rounded(values: Float[Tensor, "*shape"], bits: int) -> Float[Tensor, "*shape"]:
    """The nearest of 2^bits equidistant levels of [0, 1], with the gradient of the values themselves; 0 bits: the values."""
    if bits == 0:
        return values
    last = 2**bits - 1
    # A sum of the values and a difference would miss the levels by an ulp.
    return _StraightThrough.apply(values, last)


class _StraightThrough(torch.autograd.Function):
    """Rounds, and hands gradients on."""

    @staticmethod
    def forward(ctx, values, last):  # type: ignore[no-untyped-def]
        return (values.clamp(0, 1) * last).round() / last

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return gradient, None
