"""A network that is told where and when."""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dynamic.fields.network import NetworkField
from dynamic.fields.residuals import Heads, Residuals, linear
from dynamic.fields.waking import waking_rates
from nfc_gs.config import NonNegativeInt, PositiveFloat, PositiveInt, Share, spec
from nfc_gs.core.gaussians import Gaussians, Population
from nfc_gs.deformations.base import Deformation

# The highest frequency's period is four over two to the power of their number, and float32 has 24 bits.
FREQUENCIES_MAX = 20


class Network(NetworkField):
    """Deformable-3D-GS's field (Yang et al. 2023): encoded canonical means and time to residuals on raw parameters.

    The means are detached: the network does not pull them. The encoding enters again half way.
    """

    low: Tensor
    high: Tensor

    def __init__(self, settings: "Mlp", bounds: Float[Tensor, "2 3"], generator: Generator) -> None:
        super().__init__()
        self.settings = settings
        width, depth = settings.width_of_network, settings.depth
        inputs = 3 * (1 + 2 * settings.position_frequencies)
        moments = 1 + 2 * settings.time_frequencies
        # The time is the same for all Gaussians: its part of a layer is one row, added to all. Together the two halves
        # are Xavier's layer for the joint input.
        self.from_place, self.from_time = nn.ModuleDict(), nn.ModuleDict()
        for layer in sorted({0, depth // 2}):
            joint = linear(inputs + moments + (width if layer else 0), width, generator)
            where, when = linear(inputs, width, generator), linear(moments, width, generator)
            with torch.no_grad():
                where.weight.copy_(joint.weight[:, :inputs])
                when.weight.copy_(joint.weight[:, inputs : inputs + moments])
            self.from_place[str(layer)], self.from_time[str(layer)] = where, when
        self.layers = nn.ModuleDict({str(layer): linear(width, width, generator) for layer in range(1, depth)})
        unit = 0.5 * float((bounds[1] - bounds[0]).max())
        self.heads = Heads(settings.residuals, width, 0, unit, generator)
        self.register_buffer("low", bounds[0].clone(), persistent=False)
        self.register_buffer("high", bounds[1].clone(), persistent=False)
        self.register_buffer("awake", torch.zeros((), dtype=torch.bool))

    def features(self, gaussians: Gaussians, time: float) -> Float[Tensor, "N F"]:
        """What the last hidden layer says."""
        centred = 2 * (gaussians.means.detach() - self.low) / (self.high - self.low) - 1
        where = encode(centred, self.settings.position_frequencies)
        when = encode(where.new_full((1, 1), 2 * time - 1), self.settings.time_frequencies)
        hidden = where
        for layer in range(self.settings.depth):
            parts = [self.layers[str(layer)](hidden)] if layer else []
            if str(layer) in self.from_place:
                parts += [self.from_place[str(layer)](where), self.from_time[str(layer)](when)]
            # The heads begin with a rectifier, so the last layer has none of its own.
            hidden = sum(parts[1:], parts[0])
            hidden = hidden if layer == self.settings.depth - 1 else hidden.relu()
        return hidden

    @torch.no_grad()
    def advance(self, population: Population, progress: float) -> None:
        """Wakes at the end of the warm-up."""
        if progress >= self.settings.warm_up:
            self.awake.fill_(True)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """All of the network."""
        return {"network": list(self.parameters())}

    def rates(self, progress: float) -> dict[str, float]:
        """It falls exponentially from the end of the warm-up on, after an even rise."""
        settings = self.settings
        return waking_rates({"network": settings.rate}, progress, settings.warm_up, settings.rate_final, settings.rise)

    def penalties(self, gaussians: Gaussians, time: float) -> dict[str, Tensor]:
        """None: the network is smooth by itself."""
        return {}

    def scalars(self) -> dict[str, float]:
        """The root mean square of the weights."""
        weights = torch.cat([parameter.detach().flatten() for parameter in self.parameters()])
        return {"network_weights": float(weights.square().mean().sqrt())}


def encode(values: Float[Tensor, "N D"], frequencies: int) -> Float[Tensor, "N E"]:
    """The values, and the sines and cosines of pi/2, pi, 2 pi, ... times them: E = D (1 + 2 frequencies).

    With the values in [-1, 1] the lowest frequency has a half period in the box (NeRF, Mildenhall et al. 2020, has a
    whole one). Each doubling of the angle is a product: sine and cosine are computed once.
    """
    parts = [values]
    sine, cosine = torch.sin(0.5 * math.pi * values), torch.cos(0.5 * math.pi * values)
    for _ in range(frequencies):
        parts += [sine, cosine]
        sine, cosine = 2 * sine * cosine, 1 - 2 * sine.square()
    return torch.cat(parts, 1)


@spec
class Mlp(Deformation):
    """A network over encoded position and time (Deformable-3D-GS, Yang et al. 2023); time jitter is `time.jitter`.

    Attributes:
        width_of_network: its width (published: 256).
        depth: its hidden layers (published: 8).
        position_frequencies: of the encoding of the means (published: 10).
        time_frequencies: of the encoding of the time (published: 6 for synthetic scenes, 10 otherwise).
        residuals: what is changed besides means and quaternions.
        warm_up: the share of the training before which nothing moves.
        rate: Adam's learning rate.
        rate_final: what it falls to, as a share of itself.
        rise: the share of the training in which it rises from zero, after the warm-up.
    """

    width_of_network: PositiveInt = 64
    depth: PositiveInt = 4
    position_frequencies: NonNegativeInt = 6
    time_frequencies: NonNegativeInt = 6
    residuals: Residuals = Residuals()
    warm_up: Share = 0.05
    rate: PositiveFloat = 2e-3
    rate_final: PositiveFloat = 0.05
    rise: Share = 0.005

    def __post_init__(self) -> None:
        if max(self.position_frequencies, self.time_frequencies) > FREQUENCIES_MAX:
            raise ValueError(
                f"position_frequencies and time_frequencies must be at most {FREQUENCIES_MAX}: float32 numbers are no finer"
            )
        if self.warm_up >= 1:
            raise ValueError("warm_up must be less than 1")

    def init(self, bounds: Float[Tensor, "2 3"], num_times: int, generator: Generator) -> Network:
        """Weights drawn from the generator, and heads that say zero."""
        return Network(self, bounds, generator)


Spec = Mlp
