"""Gray words: neighbouring levels differ in one bit."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nfc_gs.codes.base import LevelCode, bits_of, bounded, place_values, solve, start
from nfc_gs.config import spec


@spec
class Gray(LevelCode):
    """The reflected binary word of the nearest of 2^bits levels (Gray, US patent 2632058, 1953).

    `bits` 1 to 16. `soft`: labels are the mean word of the levels within `soft` of the nearest one (0: hard words).
    `margin`: how sure the first logits are of every bit but the first.
    """

    @property
    def linear(self) -> bool:
        """False: decoding multiplies bits, so it must come before compositing."""
        return False

    def word_of(self, levels: Int[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape K"]:
        """Each digit of the level's binary word, exclusive-or the one before it."""
        return bits_of(levels ^ (levels >> 1), self.bits, dtype)

    def decode(self, probabilities: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape"]:
        """The expected value if the bits were independent coins with these probabilities.

        A Gray bit is the exclusive-or of two neighbouring binary bits, so binary bit i is the parity of the first i + 1
        Gray bits, and E[(-1)^parity] is the product of the E[(-1)^bit] = 1 - 2p, as for any independent signs.
        """
        signs = (1 - 2 * probabilities).cumprod(-1)
        return (1 - signs @ place_values(self.bits, probabilities.device, probabilities.dtype)) / 2

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
        directions = start(self.word_of(levels, values.dtype), 1.0)

        def at(certainty: Tensor) -> Tensor:
            sure = certainty[..., None].expand_as(directions).clone()
            sure[..., 1:].clamp_(min=self.margin)
            return directions * sure

        # Bright and dark are mirror images: both become distances from 1/2, which grow with certainty.
        distance = (values - 0.5).abs()
        return at(solve(distance, lambda c: (self.values(at(c), unit) - 0.5).abs(), 0.0, 40.0 + self.margin))


Spec = Gray
