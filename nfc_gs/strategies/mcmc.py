"""Gaussians as samples of a Markov chain: the dead are moved onto the living, and noise explores (arXiv 2404.09591)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from nfc_gs.config import spec
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Edit, Population
from nfc_gs.core.rendering import Rendering
from nfc_gs.core.rotations import quats_to_matrices
from nfc_gs.core.sampling import choose_with_repeats, standard_normals
from nfc_gs.strategies.base import Strategy

# The most Gaussians one is divided into at a time; beyond it Eq. 9's alternating sums would lose their digits.
COPIES_MAX = 51
# Opacities stop short of one, whose logit is infinite.
OPACITY_MAX = 1 - 1e-6
# The noise is gated by a sigmoid of this steepness and centre over 1 - opacity (Eq. 8 and the authors' code).
GATE_STEEPNESS = 100.0
GATE_CENTRE = 0.995


def divide(
    opacities: Float[Tensor, " M"], copies: Int[Tensor, " M"]
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """The opacity of each of `copies` coinciding Gaussians that together stand for one, and the factor of its scales.

    The opacity keeps the alpha at the centre, (1 - new)^copies = 1 - old; the factor keeps the integral of alpha along
    a line through the centre (Kheradmand et al. 2024, Eq. 9; its inner and outer sums are joined here by the identity
    sum over i of C(i - 1, k) = C(n, k + 1)). `copies` in 1 to `COPIES_MAX`; opacities in [0, 1), above zero.
    """
    old = opacities.double()
    new = -torch.expm1(torch.log1p(-old) / copies)
    binomials = [[math.comb(n, j) for j in range(1, COPIES_MAX + 1)] for n in range(COPIES_MAX + 1)]
    table = torch.tensor(binomials, dtype=torch.float64, device=old.device)[copies]
    order = torch.arange(1, COPIES_MAX + 1, dtype=torch.float64, device=old.device)
    sign = 1 - 2 * ((order - 1) % 2)
    integral = (table * sign * new[:, None] ** order / order.sqrt()).sum(1)
    return new.to(opacities.dtype), (old / integral).to(opacities.dtype)


@spec
class Mcmc(Strategy):
    """3DGS-MCMC: moves Gaussians rather than dropping them, and grows to a given number.

    Meant to go with an initial opacity of 0.5, small initial scales, and penalties of 0.01 on opacities and scales.

    Attributes:
        cap_max: the number of Gaussians at which growth ends.
        start: the step after which Gaussians are moved and added.
        stop: the share of all steps after which nobody is moved or added; the paper stops at 25,000 of 30,000.
        every: steps between two changes.
        growth: the share by which the population grows at a change.
        min_opacity: a Gaussian of this opacity or less is dead.
        noise_rate: the size of the noise on the means, in units of their learning rate; 0 for none.
    """

    cap_max: int = 1_000_000
    start: int = 500
    stop: float = 0.8
    every: int = 100
    growth: float = 0.05
    min_opacity: float = 0.005
    noise_rate: float = 5e5

    def __post_init__(self) -> None:
        if self.cap_max < 1 or self.every < 1:
            raise ValueError("cap_max and every must be at least 1")
        if not 0 <= self.stop <= 1:
            raise ValueError("stop is a share of all steps and must be in [0, 1]")
        if self.growth < 0 or self.noise_rate < 0:
            raise ValueError("growth and noise_rate must not be negative")

    @property
    def absgrad(self) -> bool:
        """Never needed."""
        return False

    @property
    def weights(self) -> bool:
        """Never needed."""
        return False

    def init(self, num_gaussians: int, device: str) -> dict[str, Tensor]:
        """No statistics: opacities alone decide."""
        return {}

    def observe(
        self, state: dict[str, Tensor], rendering: Rendering, camera: Camera, step: int, steps: int, views: int = 1
    ) -> None:
        """Nothing is kept."""

    @torch.no_grad()
    def edit(
        self,
        state: dict[str, Tensor],
        population: Population,
        step: int,
        steps: int,
        generator: Generator,
        views: int = 1,
    ) -> Edit | None:
        """Moves the dead onto the living and adds newcomers there; sources are drawn by opacity."""
        if step <= self.start or step > self.stop * steps or step % self.every:
            return None
        old, opacities = population.gaussians, population.opacities
        alive = opacities > self.min_opacity
        dead = (~alive).nonzero()[:, 0]
        added = max(0, min(self.cap_max, int((1 + self.growth) * len(old))) - len(old))
        if not bool(alive.any()) or len(dead) + added == 0:
            return None

        sources = choose_with_repeats(opacities * alive, len(dead) + added, generator)
        newcomers = torch.arange(len(old), len(old) + added, device=sources.device)
        targets = torch.cat([dead, newcomers])
        parent = torch.arange(len(old) + added, device=sources.device)
        parent[targets] = sources
        fresh = torch.zeros(len(parent), dtype=torch.bool, device=sources.device)
        fresh[targets] = True
        fresh[sources] = True

        copies = 1 + torch.bincount(sources, minlength=len(old))
        touched = parent[fresh]
        divided, shrink = divide(opacities[touched].clamp_max(OPACITY_MAX), copies[touched].clamp_max(COPIES_MAX))
        opacity_logits, log_scales = old.opacity_logits[parent], old.log_scales[parent]
        # As in the authors' code, nobody falls below the opacity at which it would still be drawn.
        opacity_logits[fresh] = population.encode_opacities(divided.clamp_min(self.min_opacity))
        log_scales[fresh] += shrink.log()[:, None]
        return Edit(parent=parent, fresh=fresh, values={"opacity_logits": opacity_logits, "log_scales": log_scales})

    def settle(self, state: dict[str, Tensor], edit: Edit) -> dict[str, Tensor]:
        """No statistics."""
        return {}

    @torch.no_grad()
    def perturb(
        self, population: Population, means_rate: float, step: int, steps: int, generator: Generator
    ) -> Tensor | None:
        """The noise of Eq. 8: the covariance matrix times normals, for transparent Gaussians only."""
        if self.noise_rate == 0:
            return None
        rotations, variances = quats_to_matrices(population.gaussians.quats), population.scales.square()
        normals = standard_normals(population.gaussians.means, generator)
        gate = torch.sigmoid(GATE_STEEPNESS * (1 - population.opacities - GATE_CENTRE))
        along_axes = (rotations.mT @ normals[:, :, None])[:, :, 0] * variances
        noise = (rotations @ along_axes[:, :, None])[:, :, 0]
        return noise * (gate * (self.noise_rate * means_rate))[:, None]


Spec = Mcmc
