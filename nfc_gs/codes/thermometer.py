"""Thermometer words: bit j says whether the value is above the j-th threshold; the ordinal code."""

import torch
from jaxtyping import Float
from torch import Tensor

from nfc_gs.codes.base import TargetCode, bounded, chance, check_bits, equal_values, expected, level, solve, start
from nfc_gs.config import spec


@spec
class Thermometer(TargetCode):
    """`bits` thresholds, the lowest first (unary or ordinal code: label encodings of BEL, Shah et al., ICLR 2022).

    `bits` 1 to 64. `soft`: labels are clamp(bits v - j, 0, 1), exact for every value and differentiable in it; else
    hard, v >= (j + 1/2) / bits. `margin`: how sure the first logits are, before one common offset makes them decode
    exactly.
    """

    bits: int = 4
    soft: bool = True
    margin: float = 2.0

    def __post_init__(self) -> None:
        check_bits(self.bits, 64)

    @property
    def width(self) -> int:
        """The number of thresholds."""
        return self.bits

    @property
    def linear(self) -> bool:
        """True: decoding is a mean."""
        return True

    def encode(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape K"]:
        """How far the value is above each threshold, in steps and at most one; or, if not `soft`, the hard word."""
        if not self.soft:
            return self.words(values)
        thresholds = torch.arange(self.bits, dtype=values.dtype, device=values.device)
        # bits v - j as one matrix product: broadcasting along a last axis this short is five times slower.
        steps = torch.addmm(-thresholds, values.reshape(-1, 1), values.new_full((1, self.bits), self.bits))
        return steps.clamp_(0, 1).view(*values.shape, self.bits)

    def encode_bit(self, values: Float[Tensor, "*shape"], bit: int) -> Float[Tensor, "*shape"]:
        """How far the value is above one threshold; or, if not `soft`, whether it is."""
        if not self.soft:
            return (values * self.bits >= bit + 0.5).to(values.dtype)
        return level(values, self.bits, bit)

    def ramp(self, bit: int) -> tuple[float, float] | None:
        """How far the value is above one threshold."""
        return (float(self.bits), float(bit)) if self.soft else None

    def words(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape K"]:
        """One where the value is at least (j + 1/2) / bits: ones, then zeros."""
        thresholds = torch.arange(self.bits, dtype=values.dtype, device=values.device) + 0.5
        return (values[..., None] * self.bits >= thresholds).to(values.dtype)

    def decode(self, probabilities: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape"]:
        """The mean: the share of the thresholds that are passed."""
        return probabilities.mean(-1)

    def probabilities(self, logits: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape K"]:
        """Sigmoids."""
        return torch.sigmoid(logits)

    def probability(self, logits: Float[Tensor, "*shape K"], bit: int) -> Float[Tensor, "*shape"]:
        """One bit's sigmoids."""
        return chance(logits, bit)

    def values(self, logits: Float[Tensor, "*shape K"], unit: bool) -> Float[Tensor, "*shape"]:
        """The mean of the sigmoids, in [0, 1] for colours and opacities alike."""
        return expected(logits, equal_values(self.bits, logits.device, logits.dtype))

    def logits(self, values: Float[Tensor, "*shape"], unit: bool) -> Float[Tensor, "*shape K"]:
        """The code's label at its margin, shifted by one offset to mean the value itself."""
        values = bounded(values)
        first = start(self.encode(values), self.margin)
        reach = 10 + 2 * self.margin
        return first + solve(values, lambda o: self.values(first + o[..., None], unit), -reach, reach)[..., None]


Spec = Thermometer
