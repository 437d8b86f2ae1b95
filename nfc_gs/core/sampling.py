"""Random choices: those of the population are drawn on the CPU and then moved, so that they do not depend on the device."""

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from nfc_gs.core.gaussians import Gaussians
from nfc_gs.core.rotations import quats_to_matrices


def standard_normals(like: Float[Tensor, "*shape"], generator: Generator) -> Float[Tensor, "*shape"]:
    """Independent standard normals with the shape, type and device of `like`.

    On another device than the CPU it draws them itself, from a seed that is drawn from `generator`: some are needed at every
    step. They are then other numbers than on the CPU.
    """
    if like.device.type == "cpu":
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)
    seed = int(torch.randint(2**62, (), generator=generator))
    own = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=own, dtype=like.dtype, device=like.device)


def choose_with_repeats(weights: Float[Tensor, " N"], count: int, generator: Generator) -> Int[Tensor, " count"]:
    """`count` indices, each drawn with a probability proportional to its weight; some weight must be positive.

    `torch.multinomial` would refuse more than 2^24 weights.
    """
    ends = weights.detach().cpu().double().cumsum(0)
    marks = torch.rand(count, generator=generator, dtype=torch.float64) * ends[-1]
    # The first end above the mark: an interval of zero length is never hit. Rounding could reach the last end itself.
    last = int(torch.searchsorted(ends, ends[-1:]))
    return torch.searchsorted(ends, marks, right=True).clamp_max(last).to(weights.device)


def choose_without_repeats(weights: Float[Tensor, " N"], count: int, generator: Generator) -> Int[Tensor, " count"]:
    """`count` different indices, drawn one after another in proportion to the weights that are left.

    The order of arrival in a race of exponential clocks is that draw (Efraimidis and Spirakis 2006). At least `count`
    weights must be positive.
    """
    rates = weights.detach().cpu().double()
    # No clock shows exactly zero, so that one with a rate of zero shows infinity and never rings.
    waits = -torch.log1p(-torch.rand(len(rates), generator=generator, dtype=torch.float64))
    clocks = waits.clamp_min(1e-300) / rates
    return clocks.topk(count, largest=False).indices.to(weights.device)


def sample_offsets(gaussians: Gaussians, generator: Generator) -> Float[Tensor, "N 3"]:
    """One sample of each Gaussian, relative to its mean, in world units."""
    axes = gaussians.log_scales.exp() * standard_normals(gaussians.log_scales, generator)
    return (quats_to_matrices(gaussians.quats) @ axes[:, :, None])[:, :, 0]
