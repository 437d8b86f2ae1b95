"""Binary words, most significant bit first: the code of Neural Field Classifiers."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nfc_gs.codes.base import TargetCode, bounded, solve, start
from nfc_gs.config import spec


@spec
class Binary(TargetCode):
    """The binary word of the nearest of 2^bits levels (Neural Field Classifiers, arXiv 2403.01058: 203 is 11001011).

    `bits` 1 to 16. `soft`: labels are the mean word of the levels within `soft` of the nearest one (0: hard words).
    `margin`: how sure the first logits are, before one common offset makes them decode exactly.
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
        """True: decoding is a weighted sum."""
        return True

    def encode(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape K"]:
        """The word of the nearest level, or with `soft` the mean word of its neighbourhood."""
        levels = nearest_levels(values, self.bits)
        words = [bits_of(near, self.bits, values.dtype) for near in neighbourhood(levels, self.bits, self.soft)]
        return torch.stack(words).mean(0) if self.soft else words[0]

    def words(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape K"]:
        """The word of the nearest level."""
        return bits_of(nearest_levels(values, self.bits), self.bits, values.dtype)

    def decode(self, probabilities: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape"]:
        """The sum of the probabilities times the place values 2^-k / sum 2^-k: hard words give level / (2^bits - 1)."""
        return probabilities @ place_values(self.bits).to(probabilities)

    def probabilities(self, logits: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape K"]:
        """Sigmoids."""
        return torch.sigmoid(logits)

    def values(self, logits: Float[Tensor, "*shape K"], unit: bool) -> Float[Tensor, "*shape"]:
        """Decoded sigmoids, in [0, 1] for colours and opacities alike."""
        return self.decode(torch.sigmoid(logits))

    def logits(self, values: Float[Tensor, "*shape"], unit: bool) -> Float[Tensor, "*shape K"]:
        """The word of the nearest level at the code's margin, shifted by one offset to mean the value itself."""
        values = bounded(values)
        first = start(self.words(values), self.margin)
        reach = 10 + 2 * self.margin
        return first + solve(values, lambda o: self.values(first + o[..., None], unit), -reach, reach)[..., None]


def check_bits(bits: int, most: int) -> None:
    """Refuses widths that a code does not have."""
    if not 1 <= bits <= most:
        raise ValueError(f"bits must be 1 to {most}, found {bits}")


def check_softness(soft: int) -> None:
    """Refuses windows of negative width."""
    if soft < 0:
        raise ValueError(f"soft must be 0 (hard words) or a number of levels, found {soft}")


def nearest_levels(values: Float[Tensor, "*shape"], bits: int) -> Int[Tensor, "*shape"]:
    """The nearest of 2^bits equidistant levels of [0, 1]."""
    return (values.clamp(0, 1) * (2**bits - 1)).round().int()


def neighbourhood(levels: Int[Tensor, "*shape"], bits: int, soft: int) -> list[Tensor]:
    """The levels from `soft` below to `soft` above; at the ends the last level stands for those that are missing."""
    return [(levels + offset).clamp(0, 2**bits - 1) for offset in range(-soft, soft + 1)]


def bits_of(levels: Int[Tensor, "*shape"], bits: int, dtype: torch.dtype) -> Float[Tensor, "*shape K"]:
    """Binary words, most significant bit first."""
    places = torch.arange(bits - 1, -1, -1, dtype=levels.dtype, device=levels.device)
    return (levels[..., None] >> places & 1).to(dtype)


def place_values(bits: int) -> Float[Tensor, " K"]:
    """2^-k / sum 2^-k, float64."""
    values = 2.0 ** -torch.arange(bits, dtype=torch.float64)
    return values / values.sum()


Spec = Binary
