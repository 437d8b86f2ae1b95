"""Binary words, most significant bit first: the code of Neural Field Classifiers."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nfc_gs.codes.base import LevelCode, bits_of, bounded, expected, place_values, solve, start
from nfc_gs.config import spec


@spec
class Binary(LevelCode):
    """The binary word of the nearest of 2^bits levels (Neural Field Classifiers, arXiv 2403.01058: 203 is 11001011).

    `bits` 1 to 16. `soft`: labels are the mean word of the levels within `soft` of the nearest one (0: hard words).
    `margin`: how sure the first logits are, before one common offset makes them decode exactly.
    """

    @property
    def linear(self) -> bool:
        """True: decoding is a weighted sum."""
        return True

    def word_of(self, levels: Int[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape K"]:
        """The level's binary digits."""
        return bits_of(levels, self.bits, dtype)

    def decode(self, probabilities: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape"]:
        """The sum of the probabilities times the place values 2^-k / sum 2^-k: hard words give level / (2^bits - 1)."""
        return probabilities @ place_values(self.bits, probabilities.device, probabilities.dtype)

    def values(self, logits: Float[Tensor, "*shape K"], unit: bool) -> Float[Tensor, "*shape"]:
        """Decoded sigmoids, in [0, 1] for colours and opacities alike."""
        return expected(logits, place_values(self.bits, logits.device, logits.dtype))

    def logits(self, values: Float[Tensor, "*shape"], unit: bool) -> Float[Tensor, "*shape K"]:
        """The word of the nearest level at the code's margin, shifted by one offset to mean the value itself."""
        values = bounded(values)
        first = start(self.words(values), self.margin)
        reach = 10 + 2 * self.margin
        return first + solve(values, lambda o: self.values(first + o[..., None], unit), -reach, reach)[..., None]


Spec = Binary
