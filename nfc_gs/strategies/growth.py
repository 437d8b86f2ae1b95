"""Grows to a given number of Gaussians along a given schedule, so that memory and time are known beforehand."""

import math

import torch
from torch import Generator, Tensor

from nfc_gs.config import spec
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Edit, Population
from nfc_gs.core.rendering import Rendering
from nfc_gs.core.sampling import choose_without_repeats, sample_offsets
from nfc_gs.strategies.base import Strategy, add_lengths, keep_largest

# Two halves are moved apart by this share of a sample of their Gaussian, one each way, and shrunk by this factor.
SPLIT_OFFSET = 0.7
SPLIT_SHRINK = 1.4
# An opacity above this is divided as if it were this, whose halves are 0.9 each: an opaque one would never soften.
SPLIT_OPACITY_MAX = 0.99
# The weight of who is too new to be judged hidden: more than any sum over pixels.
SPARED = 1e38


@spec
class Growth(Strategy):
    """Splits where the picture pulls most, to a fixed number; faint and hidden Gaussians are moved there, not dropped.

    Gradients only rank here, so there is no threshold to tune. The population grows by the same factor at every change,
    from its initial number to `cap_max`. Opacities are never reset, which suits schedules of a few thousand steps.

    Attributes:
        cap_max: the number of Gaussians at which growth ends.
        every: steps between two changes.
        grow_until: the share of all steps at which `cap_max` is reached.
        stop: the share of all steps after which nobody is moved or added.
        min_opacity: below it, a Gaussian is dead and is moved.
        min_weight: so is one that hardly shows: its compositing weights, summed over a picture's pixels, are at most w in
            any picture of as many changes as all training views take to be looked at, and this times the median of all w
            is more. 0: hidden ones stay.
    """

    cap_max: int = 50_000
    every: int = 100
    grow_until: float = 0.6
    stop: float = 0.75
    min_opacity: float = 0.005
    min_weight: float = 0.25

    def __post_init__(self) -> None:
        if self.cap_max < 1 or self.every < 1:
            raise ValueError("cap_max and every must be at least 1")
        if not 0 <= self.grow_until <= self.stop <= 1:
            raise ValueError("grow_until and stop are shares of all steps: 0 <= grow_until <= stop <= 1")
        if self.min_weight < 0:
            raise ValueError("min_weight must not be negative")

    @property
    def absgrad(self) -> bool:
        """Never needed."""
        return False

    @property
    def weights(self) -> bool:
        """To know who is hidden."""
        return self.min_weight > 0

    def init(self, num_gaussians: int, device: str) -> dict[str, Tensor]:
        """Nothing seen yet: the sum of the gradients' lengths in pixels, how often there was one, the largest weight."""
        return {name: torch.zeros(num_gaussians, device=device) for name in ("gradients", "pulled", "weight")}

    def observe(
        self, state: dict[str, Tensor], rendering: Rendering, camera: Camera, step: int, steps: int, views: int = 1
    ) -> None:
        """Adds the lengths of the screen gradients; a Gaussian hidden behind others is not counted as pulled."""
        if step > self.stop * steps:
            return
        assert rendering.means2d.grad is not None, "observe comes after the backward pass"
        add_lengths(rendering.means2d.grad, state["gradients"], state["pulled"])
        if self.weights:
            assert rendering.weights is not None, "the rasterizer was not asked for weights"
            if (step - 1) % self.window(views) == 0:
                state["weight"].zero_()
            keep_largest(rendering.weights(), state["weight"])

    def window(self, views: int) -> int:
        """For how many steps it is watched who shows, before the hidden are moved: whole intervals that hold all views.

        Whom only views that are yet to come can see is not hidden.
        """
        return -(-views // self.every) * self.every

    def target(self, num_gaussians: int, step: int, steps: int) -> int:
        """How many Gaussians there should be after this step's change, if there are `num_gaussians` before it.

        The rest of the way to `cap_max` is divided into equal factors, one for each change that is left; by induction
        this is one geometric sequence from the initial number.
        """
        if num_gaussians >= self.cap_max or num_gaussians == 0:
            return num_gaussians
        left = max(1, int(self.grow_until * steps) // self.every - step // self.every + 1)
        return min(self.cap_max, math.floor(num_gaussians * (self.cap_max / num_gaussians) ** (1 / left) + 0.5))

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
        """Splits sources drawn by their mean gradients; one half of each replaces a dead Gaussian or is a newcomer."""
        if step > self.stop * steps or step % self.every:
            return None
        old, opacities = population.gaussians, population.opacities
        is_dead = opacities < self.min_opacity
        watched = state["weight"][state["weight"] < SPARED]
        if self.weights and step % self.window(views) == 0 and len(watched) > 0:
            # Behind others or outside. By the median, which neither the pictures' size nor a huge background changes.
            is_dead |= state["weight"] < self.min_weight * watched.median()
        weights = torch.where(is_dead, 0, state["gradients"] / state["pulled"].clamp_min(1))
        dead = is_dead.nonzero()[:, 0]
        wanted = len(dead) + self.target(len(old), step, steps) - len(old)
        sources = choose_without_repeats(weights, min(wanted, int((weights > 0).sum())), generator)
        dead = dead[: len(sources)]
        total = len(old) + len(sources) - len(dead)
        newcomers = torch.arange(len(old), total, device=sources.device)

        parent = torch.arange(total, device=sources.device)
        targets = torch.cat([dead, newcomers])
        parent[targets] = sources
        fresh = torch.zeros(total, dtype=torch.bool, device=sources.device)
        fresh[targets] = True
        fresh[sources] = True

        apart = SPLIT_OFFSET * sample_offsets(old.map(lambda value: value.index_select(0, sources)), generator)
        halved = 1 - (1 - opacities[sources].clamp_max(SPLIT_OPACITY_MAX)).sqrt()
        halved_logits = population.encode_opacities(halved)
        split = ("means", "log_scales", "opacity_logits")
        values = {name: value.index_select(0, parent) for name, value in old.items() if name in split}
        for half, offset in ((sources, apart), (targets, -apart)):
            values["means"][half] += offset
            values["log_scales"][half] -= math.log(SPLIT_SHRINK)
            values["opacity_logits"][half] = halved_logits
        return Edit(parent=parent, fresh=fresh, values=values)

    def settle(self, state: dict[str, Tensor], edit: Edit) -> dict[str, Tensor]:
        """Zeros for the new population: halves of a Gaussian feel other gradients than the whole did.

        Who shows is watched on, until all views had their turn; halves are spared until then.
        """
        settled = {name: value.new_zeros(len(edit.parent)) for name, value in state.items()}
        settled["weight"] = state["weight"].index_select(0, edit.parent).masked_fill_(edit.fresh, SPARED)
        return settled

    def perturb(
        self, population: Population, means_rate: float, step: int, steps: int, generator: Generator
    ) -> Tensor | None:
        """No noise."""
        return None


Spec = Growth
