"""What a clipped number still says: only that the true one lies at least so far out (Tobit model, Tobin 1958).

A photograph is y = clip(z, 0, 1) of a latent z = v + n with the value v that is looked for and noise n of standard deviation s.
Where 0 < y < 1 it is z itself; where y is 1, z is anything from 1 on. The mean of clipped numbers is therefore not v: of white
(v = 1) it is 1 - s / sqrt(2 pi), and whatever seeks the mean ends up there. What seeks v takes, for the numbers that were
clipped, the mean of what they may have been, given the present guess.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Photographs have 8 bits: what is within half a step of 0 or 1 is 0 or 255 there.
HALF_STEP = 0.5 / 255
# Below this standard deviation the noise is taken to be this: a quarter of a step of 8 bits.
SMALLEST = 0.25 / 255


def clipped(photograph: Float[Tensor, "*shape"]) -> tuple[Bool[Tensor, "*shape"], Bool[Tensor, "*shape"]]:
    """Where a photograph in [0, 1] is 0, and where it is 1, to half a step of 8 bits."""
    return photograph <= HALF_STEP, photograph >= 1 - HALF_STEP


def noise_of(
    picture: Float[Tensor, "H W 3"], photograph: Float[Tensor, "H W 3"], mask: Bool[Tensor, "H W"] | None
) -> Float[Tensor, ""]:
    """The root mean square of picture - photograph over the numbers that count and are not clipped.

    With the right picture it is the noise's standard deviation where clipping is far, and also where v is 0 or 1, as half
    a bell has the second moment of the whole one; in between it falls short by a few per cent.
    """
    low, high = clipped(photograph)
    counted = ~(low | high)
    if mask is not None:
        counted &= mask[..., None]
    # Those that do not count are zeros: to pick out the others a device would be waited for.
    squares = torch.where(counted, picture.detach() - photograph, 0).square()
    return (squares.sum() / counted.sum().clamp(min=1)).sqrt().clamp(min=SMALLEST)


def beyond(below: Float[Tensor, "*shape"], noise: float | Tensor) -> Float[Tensor, "*shape"]:
    """The mean of what normal noise about 0 is if it is at least `below`: s phi(a) / Phi(-a) with a = below / s."""
    scaled = below / (noise * math.sqrt(2))
    return noise * math.sqrt(2 / math.pi) / torch.special.erfcx(scaled)
