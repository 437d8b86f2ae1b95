"""Adaptive density control of 3D Gaussian splatting: clone, split, prune, and reset opacities (Kerbl et al. 2023)."""

import math
from dataclasses import replace

import torch
from torch import Generator, Tensor

from nfc_gs.config import spec
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Edit, Population
from nfc_gs.core.rendering import Rendering
from nfc_gs.core.sampling import sample_offsets
from nfc_gs.strategies.base import Strategy

# The scales of a split Gaussian's two children are its own divided by this (Kerbl et al. 2023).
SPLIT_SHRINK = 1.6
# The thresholds of the mean screen gradient: of 3DGS, and of AbsGS (arXiv 2404.10484), whose sums are larger.
GROW_GRADIENT = 2e-4
GROW_ABSGRAD = 8e-4


@spec
class Classic(Strategy):
    """3DGS's own rule: where the picture pulls hard at a Gaussian, there are too few of them.

    Steps are absolute with the paper's values, meant for 30,000 steps; shorter schedules set their own.

    Attributes:
        start: the step after which the population changes.
        stop: the step from which it no longer does.
        every: steps between two changes.
        grow_gradient: a Gaussian grows above this mean gradient of the loss by its place on the screen, where the
            picture's half width and half height are 1. None: 2e-4, or 8e-4 with `absgrad`.
        absgrad: sums absolute gradients over pixels, which do not cancel (AbsGS, arXiv 2404.10484).
        grow_scale: up to this largest scale, as a share of the scene's extent, a growing Gaussian is cloned, above it
            split in two.
        prune_opacity: below it, a Gaussian is dropped.
        prune_scale: above this largest scale, as a share of the scene's extent, a Gaussian is dropped, once the step of
            the first reset has passed.
        reset_every: steps between two resets of all opacities; 0 for none. A reset needs as many steps again before the
            end of training to heal, so later ones are left out.
        reset_opacity: what opacities above it are reset to.
        cap_max: the largest number of Gaussians, the strongest gradients first; None for no limit.
    """

    start: int = 500
    stop: int = 15_000
    every: int = 100
    grow_gradient: float | None = None
    absgrad: bool = False
    grow_scale: float = 0.01
    prune_opacity: float = 0.005
    prune_scale: float = 0.1
    reset_every: int = 3000
    reset_opacity: float = 0.01
    cap_max: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError("every must be at least 1")
        if self.reset_every < 0:
            raise ValueError("reset_every must be positive, or 0 for no resets")
        if not self.prune_opacity < self.reset_opacity < 1:
            raise ValueError("reset_opacity must be above prune_opacity, or a reset would drop every Gaussian")

    @property
    def weights(self) -> bool:
        """Never needed."""
        return False

    def init(self, num_gaussians: int, device: str) -> dict[str, Tensor]:
        """No gradients yet: their sum, and how often each Gaussian was drawn."""
        return {name: torch.zeros(num_gaussians, device=device) for name in ("gradients", "drawn")}

    def observe(
        self, state: dict[str, Tensor], rendering: Rendering, camera: Camera, step: int, steps: int, views: int = 1
    ) -> None:
        """Adds the lengths of the screen gradients of the Gaussians that were drawn."""
        if step >= self.stop:
            return
        pull = rendering.means2d.grad
        if self.absgrad:
            assert rendering.absgrad is not None, "the rasterizer was not asked for absgrad"
            pull = rendering.absgrad()
        assert pull is not None, "observe comes after the backward pass"
        # The gradient by pixels, times the pixels in half a picture: thresholds then hold at every resolution.
        x, y = pull.unbind(1)
        length = torch.hypot(x * (camera.width / 2), y * (camera.height / 2)).to(state["gradients"])
        drawn = (rendering.radii > 0).all(1)
        state["gradients"] += torch.where(drawn, length, 0)
        state["drawn"] += drawn

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
        """Growth and pruning when they are due; then, on what they leave, the reset when it is due."""
        refines = self.start < step < self.stop and step % self.every == 0
        resets = self.resets(step, steps)
        if not refines and not resets:
            return None
        edit = self._refine(state, population, step, generator) if refines else _unchanged(population)
        return self._reset(edit, population) if resets else edit

    def resets(self, step: int, steps: int) -> bool:
        """Whether opacities are reset after this step of `steps`."""
        if self.reset_every == 0 or step % self.reset_every:
            return False
        return 0 < step < self.stop and step + self.reset_every <= steps

    def _refine(self, state: dict[str, Tensor], population: Population, step: int, generator: Generator) -> Edit:
        old, largest = population.gaussians, population.scales.amax(1)
        gradients = state["gradients"] / state["drawn"].clamp_min(1)
        threshold = self.grow_gradient
        if threshold is None:
            threshold = GROW_ABSGRAD if self.absgrad else GROW_GRADIENT
        # A Gaussian about to be dropped does not grow: its children would be dropped with it.
        faint = population.opacities < self.prune_opacity
        grows = (gradients > threshold) & ~faint
        if self.cap_max is not None:
            room = max(0, self.cap_max - len(old) + int(faint.sum()))
            if int(grows.sum()) > room:
                strongest = torch.where(grows, gradients, -1).topk(room).indices
                grows = torch.zeros_like(grows)
                grows[strongest] = True
        small = largest <= self.grow_scale * population.extent
        keeps, clones = (~(grows & ~small)).nonzero()[:, 0], (grows & small).nonzero()[:, 0]
        splits = (grows & ~small).nonzero()[:, 0].repeat(2)

        parent = torch.cat([keeps, clones, splits])
        fresh = torch.arange(len(parent), device=parent.device) >= len(keeps)
        divided = torch.arange(len(parent), device=parent.device) >= len(keeps) + len(clones)
        means, log_scales = old.means[parent], old.log_scales[parent]
        means[divided] += sample_offsets(old.map(lambda value: value[splits]), generator)
        log_scales[divided] -= math.log(SPLIT_SHRINK)

        stays = ~faint[parent]
        if 0 < self.reset_every < step:
            stays &= log_scales.exp().amax(1) <= self.prune_scale * population.extent
        return Edit(
            parent=parent[stays], fresh=fresh[stays], values={"means": means[stays], "log_scales": log_scales[stays]}
        )

    def _reset(self, edit: Edit, population: Population) -> Edit:
        opacity_logits = population.gaussians.opacity_logits[edit.parent]
        high = population.opacities[edit.parent] > self.reset_opacity
        lowered = population.opacities.new_full((int(high.sum()),), self.reset_opacity)
        opacity_logits[high] = population.encode_opacities(lowered)
        return replace(edit, values={**edit.values, "opacity_logits": opacity_logits}, forget=("opacity_logits",))

    def settle(self, state: dict[str, Tensor], edit: Edit) -> dict[str, Tensor]:
        """Zeros for the new population: what was seen before growth or a reset says nothing of what follows."""
        return {name: value.new_zeros(len(edit.parent)) for name, value in state.items()}

    def perturb(
        self, population: Population, means_rate: float, step: int, steps: int, generator: Generator
    ) -> Tensor | None:
        """No noise."""
        return None


def _unchanged(population: Population) -> Edit:
    everyone = torch.arange(len(population.gaussians), device=population.opacities.device)
    return Edit(parent=everyone, fresh=torch.zeros_like(everyone, dtype=torch.bool))


Spec = Classic
