"""Thermometer words whose thresholds lie where a scene's colours do: the ordinal code with steps of equal frequency."""

import functools
import itertools
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nfc_gs.codes.base import TargetCode, bounded, chance, check_bits, expected, solve, start
from nfc_gs.config import ConfigError, spec

# The share of equidistant thresholds in those of a scene: where many pixels have one colour no step becomes empty.
EVEN = 0.1
CHANNELS = 3


@spec
class Quantile(TargetCode):
    """`bits` steps for each colour channel, the lowest first, with as many of the training photographs' colours in each.

    Label j is clamp((v - k_j) / (k_j+1 - k_j), 0, 1), as of a soft thermometer whose knots k_0 = 0 .. k_K = 1 are not equidistant;
    decoding gives each probability its step's width, so that it is exact and linear too. For colours alone, whose channels are
    the values' last axis. `margin`: how sure the first logits are, before one common offset makes them decode exactly.
    `knots`: of each channel; null: those of the training photographs, found when the training begins (equidistant until
    then), and kept in its checkpoints.
    """

    bits: int = 4
    margin: float = 2.0
    knots: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits, 64)
        if self.knots is None:
            return
        if [len(channel) for channel in self.knots] != [self.bits + 1] * CHANNELS:
            raise ValueError(f"knots must be {CHANNELS} rows of {self.bits + 1} numbers, one more than bits")
        for channel in self.knots:
            if channel[0] != 0 or channel[-1] != 1 or any(a >= b for a, b in itertools.pairwise(channel)):
                raise ValueError(f"knots must rise from 0 to 1, found {list(channel)}")

    @property
    def width(self) -> int:
        """The number of steps."""
        return self.bits

    @property
    def linear(self) -> bool:
        """True: decoding is a weighted sum."""
        return True

    @property
    def adapts(self) -> bool:
        """Whether the photographs are still to be asked."""
        return self.knots is None

    def fit(self, colours: Float[Tensor, "P 3"]) -> "Quantile":
        """With knots at these colours' quantiles, channel by channel, a tenth of the way towards equidistant ones.

        Colours of exactly 0 and 1 are clipped or background, and are not counted.
        """
        even = torch.linspace(0, 1, self.bits + 1, dtype=torch.float64)
        knots = []
        for channel in colours.double().cpu().unbind(-1):
            within = channel[(channel > 0) & (channel < 1)].sort().values
            found = even.clone()
            if len(within):
                # torch.quantile takes no more than 16 million numbers.
                places = even * (len(within) - 1)
                low = places.floor().long()
                high = (low + 1).clamp(max=len(within) - 1)
                found = within[low].lerp(within[high], places - low)
                found[0], found[-1] = 0, 1
            knots.append(tuple(((1 - EVEN) * found + EVEN * even).tolist()))
        return replace(self, knots=tuple(knots))

    def encode(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape K"]:
        """How far the value is above each knot, in steps and at most one."""
        lows, widths = self._steps(values)
        return ((values[..., None] - lows) / widths).clamp(0, 1)

    def encode_bit(self, values: Float[Tensor, "*shape"], bit: int) -> Float[Tensor, "*shape"]:
        """How far the value is above one knot."""
        lows, widths = self._steps(values)
        return ((values - lows[:, bit]) / widths[:, bit]).clamp(0, 1)

    def words(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape K"]:
        """One where the value is in the upper half of the step or above it: ones, then zeros."""
        lows, widths = self._steps(values)
        return (values[..., None] >= lows + widths / 2).to(values.dtype)

    def decode(self, probabilities: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape"]:
        """The sum of the steps' widths, each by its probability."""
        _, widths = self._steps(probabilities)
        return (probabilities * widths).sum(-1)

    def probabilities(self, logits: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape K"]:
        """Sigmoids."""
        return torch.sigmoid(logits)

    def probability(self, logits: Float[Tensor, "*shape K"], bit: int) -> Float[Tensor, "*shape"]:
        """One bit's sigmoids."""
        return chance(logits, bit)

    def values(self, logits: Float[Tensor, "*shape K"], unit: bool) -> Float[Tensor, "*shape"]:
        """Decoded sigmoids, in [0, 1]."""
        self._refuse(unit)
        _, widths = self._steps(logits)
        return torch.stack([expected(logits[..., c, :], widths[c]) for c in range(CHANNELS)], -1)

    def logits(self, values: Float[Tensor, "*shape"], unit: bool) -> Float[Tensor, "*shape K"]:
        """The code's label at its margin, shifted by one offset to mean the value itself."""
        self._refuse(unit)
        values = bounded(values)
        first = start(self.encode(values), self.margin)
        # The narrowest step may hold all that a value needs, and its probability is then as small as the value.
        reach = 20 + 2 * self.margin
        return first + solve(values, lambda o: self.values(first + o[..., None], unit), -reach, reach)[..., None]

    def _steps(self, like: Tensor) -> tuple[Float[Tensor, "3 K"], Float[Tensor, "3 K"]]:
        """The steps' lower ends and widths."""
        return _steps_of(self.knots, self.bits, like.device, like.dtype)

    def _refuse(self, unit: bool) -> None:
        """Opacities have no channels.

        Raises:
            ConfigError: this is the code of opacities.
        """
        if unit:
            raise ConfigError("opacity_code: quantile is a code for colours; use binary or thermometer")


@functools.lru_cache
def _steps_of(
    knots: tuple[tuple[float, ...], ...] | None, bits: int, device: torch.device, dtype: torch.dtype
) -> tuple[Float[Tensor, "3 K"], Float[Tensor, "3 K"]]:
    """Lower ends and widths; kept, since a copy to a CUDA device makes the program wait."""
    if knots is None:
        ends = torch.linspace(0, 1, bits + 1, dtype=torch.float64).expand(CHANNELS, -1)
    else:
        ends = torch.tensor(knots, dtype=torch.float64)
    return ends[:, :-1].to(device, dtype), ends.diff(dim=1).to(device, dtype)


Spec = Quantile
