"""Gray words: neighbouring levels differ in one bit."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nfc_gs.codes.base import TargetCode, bounded, solve, start
from nfc_gs.codes.binary import bits_of, check_bits, check_softness, nearest_levels, neighbourhood, place_values
from nfc_gs.config import spec


@spec
class Gray(TargetCode):
    """The reflected binary word of the nearest of 2^bits levels (Gray, US patent 2632058, 1953).

    `bits` 1 to 16. `soft`: labels are the mean word of the levels within `soft` of the nearest one (0: hard words).
    `margin`: how sure the first logits are of every bit but the first.
    """

    bits: int = 8
    soft: int = 0
    margin: float = 2.0

    def __post_init__(self) -> None:
        check_bits(self.bits, 16)
        check_softness(self.soft)

    @property
    def width(self) -> int:
        """The number of bits."""
        return self.bits

    @property
    def linear(self) -> bool:
        """False: decoding multiplies bits, so it must come before compositing."""
        return False

    def encode(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape K"]:
        """The word of the nearest level, or with `soft` the mean word of its neighbourhood."""
        levels = neighbourhood(nearest_levels(values, self.bits), self.bits, self.soft)
        words = [bits_of(reflected(near), self.bits, values.dtype) for near in levels]
        return torch.stack(words).mean(0) if self.soft else words[0]

    def words(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape K"]:
        """The word of the nearest level."""
        return bits_of(reflected(nearest_levels(values, self.bits)), self.bits, values.dtype)

    def decode(self, probabilities: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape"]:
        """The expected value if the bits were independent coins with these probabilities.

        A Gray bit is the exclusive-or of two neighbouring binary bits, so binary bit i is the parity of the first i + 1
        Gray bits, and E[(-1)^parity] is the product of the E[(-1)^bit] = 1 - 2p, as for any independent signs.
        """
        signs = (1 - 2 * probabilities).cumprod(-1)
        return (1 - signs @ place_values(self.bits).to(probabilities)) / 2

    def probabilities(self, logits: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape K"]:
        """Sigmoids."""
        return torch.sigmoid(logits)

    def values(self, logits: Float[Tensor, "*shape K"], unit: bool) -> Float[Tensor, "*shape"]:
        """Decoded sigmoids, in [0, 1] for colours and opacities alike."""
        return self.decode(torch.sigmoid(logits))

    def logits(self, values: Float[Tensor, "*shape"], unit: bool) -> Float[Tensor, "*shape K"]:
        """The word of a neighbouring level, the first bit as sure as makes the value exact, the others at the margin.

        A common offset, as for binary words, would not do: all ones is not white in this code. The first bit's sign
        multiplies all others', so from an undecided first bit (1/2) to a certain word every value between is passed;
        where the margin is too small to reach a dark or bright value, the other bits become surer with the first. The
        word is of a level at least 1/512 beyond the value, as seen from 1/2: to mean a level exactly, a word would have
        to be certain, and certain bits do not learn.
        """
        values = bounded(values)
        last = 2**self.bits - 1
        brighter, darker = ((values + 1 / 512) * last).ceil(), ((values - 1 / 512) * last).floor()
        levels = torch.where(values >= 0.5, brighter, darker).clamp(0, last).int()
        directions = start(bits_of(reflected(levels), self.bits, values.dtype), 1.0)

        def at(certainty: Tensor) -> Tensor:
            sure = certainty[..., None].expand_as(directions).clone()
            sure[..., 1:].clamp_(min=self.margin)
            return directions * sure

        # Bright and dark are mirror images: both become distances from 1/2, which grow with certainty.
        distance = (values - 0.5).abs()
        return at(solve(distance, lambda c: (self.values(at(c), unit) - 0.5).abs(), 0.0, 40.0 + self.margin))


def reflected(levels: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The binary number whose bits are the Gray word."""
    return levels ^ (levels >> 1)


Spec = Gray
