"""Planes over pairs of x, y, z and time, whose product feeds a small network."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable

from dynamic.fields.network import NetworkField
from dynamic.fields.residuals import Heads, Residuals, linear
from dynamic.fields.roughness import roughness
from dynamic.fields.waking import waking_rates
from dynamic.kernels import planes as kernels
from nfc_gs.config import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Share, spec
from nfc_gs.core.gaussians import Gaussians, Population
from nfc_gs.deformations.base import Deformation
from nfc_gs.kernels.simd import LANES
from nfc_gs.kernels.threads import part, share, thread_count

# Knots in time, at least: a plane needs two to be interpolated, three to have a second difference.
KNOTS_MIN = 3
# Each thread keeps gradients of the planes of its own; more threads than this would cost more memory than they save time.
THREADS_MAX = 8


class HexPlane(NetworkField):
    """4DGaussians' field (Wu et al. 2024) with time over the whole planes, planes that start near one, and zero heads.

    At each level three planes over space and three over an axis and time are read at a Gaussian's canonical mean and
    multiplied; the levels' features lie side by side and go through a network. `space` [3 R R C] and `time` [3 T R C]
    are the planes of a level, channels last.
    """

    low: Tensor
    high: Tensor
    turn: Tensor

    def __init__(
        self, settings: "HexPlanes", bounds: Float[Tensor, "2 3"], num_times: int, generator: Generator
    ) -> None:
        super().__init__()
        self.settings = settings
        knots = max(KNOTS_MIN, round(num_times / settings.times_per_knot))
        channels, half = settings.channels, settings.spread
        sizes = [settings.resolution * factor for factor in settings.levels]
        self.space = nn.ParameterList(
            torch.empty(3, size, size, channels).uniform_(1 - half, 1 + half, generator=generator) for size in sizes
        )
        self.time = nn.ParameterList(torch.ones(3, knots, size, channels) for size in sizes)
        trunk: list[nn.Module] = [linear(channels * len(sizes), settings.width_of_network, generator)]
        for _ in range(settings.depth):
            trunk += [nn.ReLU(), linear(settings.width_of_network, settings.width_of_network, generator)]
        self.trunk = nn.Sequential(*trunk)
        unit = 0.5 * float((bounds[1] - bounds[0]).max())
        self.heads = Heads(settings.residuals, settings.width_of_network, settings.head_width, unit, generator)
        self.register_buffer("low", bounds[0].clone(), persistent=False)
        self.register_buffer("high", bounds[1].clone(), persistent=False)
        self.register_buffer("awake", torch.zeros((), dtype=torch.bool))
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))

    def features(self, gaussians: Gaussians, time: float) -> Float[Tensor, "N F"]:
        """What the planes say where the Gaussians are and at this time, through the trunk; outside the box, at its border."""
        positions = (gaussians.means - self.low) / (self.high - self.low)
        levels = [
            read(positions, space, cut(planes, time)) for space, planes in zip(self.space, self.time, strict=True)
        ]
        return self.trunk(torch.cat(levels, 1))

    @torch.no_grad()
    def advance(self, population: Population, progress: float) -> None:
        """Wakes at the end of the warm-up, and counts the steps after it: the penalties take turns."""
        if progress >= self.settings.warm_up:
            self.awake.fill_(True)
            self.turn.add_(1)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Planes, and the network."""
        return {
            "planes": [*self.space, *self.time],
            "network": [*self.trunk.parameters(), *self.heads.parameters()],
        }

    def rates(self, progress: float) -> dict[str, float]:
        """Both fall exponentially from the end of the warm-up on, after an even rise."""
        settings = self.settings
        rates = {"planes": settings.planes_rate, "network": settings.network_rate}
        return waking_rates(rates, progress, settings.warm_up, settings.rate_final, settings.rise)

    def penalties(self, gaussians: Gaussians, time: float) -> dict[str, Tensor]:
        """See `HexPlanes`."""
        settings = self.settings
        if not self.awake or int(self.turn) % settings.every:
            return {}
        terms = {
            "plane_smoothness": (
                settings.plane_smoothness,
                _sum(roughness(plane, axis) for plane in self.space for axis in (1, 2)),
            ),
            "time_smoothness": (settings.time_smoothness, _sum(roughness(plane, 1) for plane in self.time)),
            "time_l1": (settings.time_l1, _sum((plane - 1).abs().mean() for plane in self.time)),
        }
        return {name: settings.every * weight * value for name, (weight, value) in terms.items() if weight > 0}

    def scalars(self) -> dict[str, float]:
        """Root mean square distances of the planes from one."""
        return {
            name: float(torch.cat([(plane.detach() - 1).flatten() for plane in planes]).square().mean().sqrt())
            for name, planes in (("space_planes", self.space), ("time_planes", self.time))
        }


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()


def cut(planes: Float[Tensor, "3 T R C"], time: float) -> Float[Tensor, "3 R C"]:
    """The planes over an axis and time at one time in [0, 1], the first knot being at 0 and the last at 1."""
    last = planes.shape[1] - 1
    place = min(max(time, 0.0), 1.0) * last
    knot = min(int(place), last - 1)
    return _Cut.apply(planes, knot, place - knot)


def read(
    positions: Float[Tensor, "N 3"], space: Float[Tensor, "3 R R C"], lines: Float[Tensor, "3 R C"]
) -> Float[Tensor, "N C"]:
    """The product of three planes and three lines at positions in [0, 1]^3, interpolated; held at the border outside.

    Differentiable in all three. Compiled for float32 on a CPU, plain torch elsewhere.

    Args:
        positions: x, y, z; 0 is the first sample of a plane, 1 the last.
        space: over (x, y), (x, z) and (y, z); the first of a pair is the third axis, the second the second.
        lines: over x, y and z.
    """
    if positions.device.type == "cpu" and positions.dtype == torch.float32:
        return _Read.apply(positions, space, lines)
    return read_plain(positions, space, lines)


def read_plain(
    positions: Float[Tensor, "N 3"], space: Float[Tensor, "3 R R C"], lines: Float[Tensor, "3 R C"]
) -> Float[Tensor, "N C"]:
    """The same as `read`, in plain torch on any device and in any precision."""
    x, y, z = (2 * positions - 1).unbind(1)
    middle = torch.zeros_like(x)
    across = torch.stack([torch.stack(pair, -1) for pair in ((x, y), (x, z), (y, z))])
    along = torch.stack([torch.stack([axis, middle], -1) for axis in (x, y, z)])
    planes, rows = (
        nn.functional.grid_sample(values, places[:, :, None], padding_mode="border", align_corners=True)
        for values, places in ((space.permute(0, 3, 1, 2), across), (lines.permute(0, 2, 1)[:, :, None], along))
    )
    return (planes.prod(0) * rows.prod(0))[:, :, 0].T


def _whole(tensor: Tensor) -> np.ndarray:
    """The tensor as an array whose channels fill whole vectors; what is added is zero."""
    array = tensor.detach().contiguous().numpy()
    missing = -array.shape[-1] % LANES
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)]) if missing else array


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx, positions, space, lines):
        arrays = (positions.detach().contiguous().numpy(), _whole(space), _whole(lines))
        count, threads = len(positions), thread_count()
        features = np.empty((count, arrays[1].shape[3]), np.float32)
        share(lambda number: kernels.forward(*part(count, number, threads), *arrays, features), threads)
        ctx.arrays, ctx.channels = arrays, space.shape[3]
        return torch.from_numpy(features)[:, : ctx.channels]

    @staticmethod
    @once_differentiable
    def backward(ctx, by_features):
        positions, space, lines = ctx.arrays
        incoming = _whole(by_features)
        count, threads = len(positions), min(thread_count(), THREADS_MAX)
        by_positions = np.empty_like(positions)
        # One sum for each thread, added up in the order of the threads.
        by_space = np.zeros((threads, *space.shape), np.float32)
        by_lines = np.zeros((threads, *lines.shape), np.float32)
        share(
            lambda number: kernels.backward(
                *part(count, number, threads), *ctx.arrays, incoming, by_positions, by_space[number], by_lines[number]
            ),
            threads,
        )
        sums = (
            torch.from_numpy(parts[0] if threads == 1 else parts.sum(0))[..., : ctx.channels]
            for parts in (by_space, by_lines)
        )
        return torch.from_numpy(by_positions), *sums


class _Cut(torch.autograd.Function):
    """Its gradient is zero but at two knots: autograd would add two such planes up."""

    @staticmethod
    def forward(ctx, planes, knot, beyond):
        ctx.planes, ctx.knot, ctx.beyond = planes.shape, knot, beyond
        return torch.lerp(planes[:, knot], planes[:, knot + 1], beyond)

    @staticmethod
    @once_differentiable
    def backward(ctx, by_lines):
        by_planes = by_lines.new_zeros(ctx.planes)
        by_planes[:, ctx.knot] = (1 - ctx.beyond) * by_lines
        by_planes[:, ctx.knot + 1] = ctx.beyond * by_lines
        return by_planes, None, None


@spec
class HexPlanes(Deformation):
    """Multi-resolution planes over space and time, with a network behind them (4DGaussians, Wu et al. 2024).

    Penalties, each summed over the levels: `plane_smoothness` times the mean square second difference of the planes over
    space along either axis; `time_smoothness` times that of the planes over time, along time; `time_l1` times the mean
    distance of the planes over time from one. They are computed at each `every`th step, with `every` times their weight.

    Attributes:
        resolution: samples along each axis of space, at the first level ...
        levels: ... times these.
        channels: features a level.
        times_per_knot: the planes over time have a knot for every so many of the photographs' times.
        spread: the planes over space start evenly in [1 - spread, 1 + spread], those over time at one.
        width_of_network: the trunk's width.
        depth: the trunk's hidden layers.
        head_width: the width of each head's own hidden layer; 0: none.
        residuals: what is changed besides means and quaternions.
        warm_up: the share of the training before which nothing moves.
        planes_rate: Adam's learning rate of the planes.
        network_rate: Adam's learning rate of the network.
        rate_final: what both rates fall to, as a share of themselves.
        rise: the share of the training in which both rates rise from zero, after the warm-up.
    """

    resolution: PositiveInt = 32
    levels: tuple[PositiveInt, ...] = (1, 2)
    channels: PositiveInt = 16
    times_per_knot: PositiveFloat = 4
    spread: Share = 0.5
    width_of_network: PositiveInt = 64
    depth: NonNegativeInt = 0
    head_width: NonNegativeInt = 0
    residuals: Residuals = Residuals()
    warm_up: Share = 0.05
    planes_rate: PositiveFloat = 1e-2
    network_rate: PositiveFloat = 2e-3
    rate_final: PositiveFloat = 0.05
    rise: Share = 0.005
    plane_smoothness: NonNegativeFloat = 1e-2
    time_smoothness: NonNegativeFloat = 1e-1
    time_l1: NonNegativeFloat = 1e-4
    every: PositiveInt = 4

    def __post_init__(self) -> None:
        if not self.levels or self.resolution * min(self.levels) < 3:
            raise ValueError("levels must name one at least, and each have 3 samples along an axis at least")
        if self.warm_up >= 1:
            raise ValueError("warm_up must be less than 1")

    def init(self, bounds: Float[Tensor, "2 3"], num_times: int, generator: Generator) -> HexPlane:
        """Planes drawn from the generator, and heads that say zero."""
        return HexPlane(self, bounds, num_times, generator)


Spec = HexPlanes
