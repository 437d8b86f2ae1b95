"""Which pixels of a photograph show the scene, and which show something before it: a class for every pixel, found by training."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from jaxtyping import Bool, Float
from torch import Tensor

from nfc_gs.config import NonNegativeInt, PositiveInt, Share, spec
from nfc_gs.core.sums import compiled, rows_of, weights_of
from nfc_gs.kernels import distractors as kernels
from nfc_gs.kernels import rows
from nfc_gs.kernels.simd import LANES
from nfc_gs.kernels.threads import threads_for

# The scene's own distances are at least 2.5 steps of 8 bits wide, and so wide at most: where nothing is known.
SMALLEST, LARGEST = 0.01, 0.45
# To the pixels by which the width is found, so many of the largest width are added, as a share of all: none may be solid.
DOUBT = 1e-3
# A photograph's share of the scene, and of what is before it, is at least this; and the log odds of the scene that are begun with.
RAREST_SCENE, RAREST_OTHER = 0.5, 0.01
FIRST_LOG_ODDS = 2.0
# With errors of less than the first width classes count in full, with more than the second not at all: a render as wrong as
# that, at the beginning of a training, tells nothing apart (with .18 all colours alike explain a photograph as well).
TELLING, BLIND = 0.13, 0.2
# Of a photograph of which less than the first share is found to show something else nothing is left out; from the second on all.
FEW, SOME = 0.01, 0.03
# As many pixels as the fit needs.
SAMPLE = 10_000
# A render is solid where its alpha is more: an empty background is right without any effort, and says nothing of errors.
SOLID = 0.5


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A photograph as the losses see it: where it shows something else than the scene, it is the render itself.

    `chances`: of each pixel to show the scene, in [0, 1]; 1 outside the mask.
    """

    rgb: Float[Tensor, "H W 3"]
    alpha: Float[Tensor, "H W"] | None
    chances: Float[Tensor, "H W"]


@spec
class Distractors:
    """Each pixel of a training photograph is classified: the scene, or something that stands before it in this photograph alone.

    Two classes make a pixel's colour y of the rendered one x. The scene: y - x has a Laplace distribution of width s in
    each channel, the same in all of the photograph. A distractor: y is anything, all colours alike. With e the sum over
    channels of |y - x|, and its mean over the (2 `reach` + 1)^2 pixels around, since what stands before a scene is more
    than a pixel large,

        log odds of the scene = - mean e / s - 3 log(2 s) + log(p / (1 - p)),

    and the photograph's share p of the scene and s are those that expectation maximization finds, in `rounds` rounds at
    each look, from a wide s on; s is found where something is rendered. So there is nothing to set. p is at least
    one half, and all of a photograph is taken to be the scene as long as the render is so wrong that s is .2 or more, or if
    the rest would be less than 1 % of it (from 3 % on it is left out as found). Nothing is classified before each photograph has
    been looked at `looks` times, or after the share `latest` of the steps if that is sooner: what few views see is learned
    late, and would never be if it were left out from the first step on. Pixels that show the
    scene with chance r have as their target r y + (1 - r) x, with no gradient through r or x: a distance from it is r
    times the distance from y, and so is the slope of a squared one. The slope of |x - target| is a sign, the same for every r
    that float32 tells from 0 there (about 1e-7, log odds of -16): L1 leaves out what is surely not the scene, and nothing
    by halves. (Errors as a mixture with a uniform class: Hampel et al. 1986; for radiance fields, least
    squares trimmed over neighbourhoods: RobustNeRF, arXiv 2302.00833.)
    """

    looks: NonNegativeInt = 10
    latest: Share = 0.3
    reach: NonNegativeInt = 2
    rounds: PositiveInt = 6

    def first_step(self, photographs: int, steps: int, batch: int) -> int:
        """The first step, from 1, at which photographs are classified, of `steps` with `batch` of so many photographs each."""
        return 1 + min(math.ceil(self.looks * photographs / batch), int(self.latest * steps))

    @torch.no_grad()
    def __call__(
        self,
        rgb: Float[Tensor, "H W 3"],
        alpha: Float[Tensor, "H W"],
        photograph: Float[Tensor, "H W 3"],
        photograph_alpha: Float[Tensor, "H W"] | None = None,
        mask: Bool[Tensor, "H W"] | None = None,
    ) -> Completed:
        """The photograph completed by the render.

        Args:
            rgb: rendered, not clamped.
            alpha: rendered, in [0, 1].
            photograph: in [0, 1].
            photograph_alpha: in [0, 1], where it is known.
            mask: true where a pixel counts.
        """
        rgb, alpha = rgb.detach(), alpha.detach()
        find = self._by_kernels if compiled(rgb, alpha, photograph) else self._by_torch
        completed, chances = find(rgb, alpha, photograph, mask)
        if mask is not None:
            chances = torch.where(mask, chances, 1)
        if photograph_alpha is not None:
            photograph_alpha = alpha + chances * (photograph_alpha - alpha)
        return Completed(rgb=completed, alpha=photograph_alpha, chances=chances)

    def _reach_in(self, height: int, width: int) -> int:
        """How far neighbours are looked for; farther than the picture is large there are none."""
        return min(self.reach, max(height, width) - 1)

    def _by_kernels(
        self, rgb: Tensor, alpha: Tensor, photograph: Tensor, mask: Bool[Tensor, "H W"] | None
    ) -> tuple[Tensor, Tensor]:
        height, width = alpha.shape
        padded, threads = -(-width // LANES) * LANES, threads_for(rgb.numel())
        drawn, taken = rows_of(rgb, photograph)
        weights = weights_of(mask, width)
        distances, across, means = (np.empty((height, padded), np.float32) for _ in range(3))
        counts = np.empty((len(weights), padded), np.float32)
        reach = self._reach_in(height, width)
        rows.split(kernels.apart, height, threads, drawn, taken, weights, reach, distances, across, counts)
        rows.split(kernels.around, height, threads, across, counts, reach, width, means)
        fitted, odds, scene = kernels.fit(
            means, distances, weights, alpha.contiguous().numpy(), _stride(height, width), self.rounds,
            *map(np.float32, (SOLID, SMALLEST, LARGEST, DOUBT, RAREST_SCENE, RAREST_OTHER, FIRST_LOG_ODDS)),
        )  # fmt: skip
        completed, chances = torch.empty(height, width, 3), across
        out = completed.view(height, 3 * width).numpy()
        trust = np.float32(_trust(fitted, scene))
        rows.split(kernels.complete, height, threads, means, drawn, taken, fitted, odds, trust, chances, out)
        return completed, torch.from_numpy(chances)[:, :width]

    def _by_torch(
        self, rgb: Tensor, alpha: Tensor, photograph: Tensor, mask: Bool[Tensor, "H W"] | None
    ) -> tuple[Tensor, Tensor]:
        distances = (rgb - photograph).abs().sum(-1)
        counted = torch.ones_like(distances) if mask is None else mask.to(distances)
        reach = self._reach_in(*alpha.shape)

        def around(values: Tensor) -> Tensor:
            return functional.avg_pool2d(values[None, None], 2 * reach + 1, 1, reach, divisor_override=1)[0, 0]

        means = around(distances * counted) / around(counted).clamp(min=1)
        stride = _stride(*alpha.shape)
        mean, distance, count, shown = (each[::stride, ::stride] for each in (means, distances, counted, alpha))
        solid, pixels = count * (shown > SOLID), count.sum()
        weight, doubt, odds = solid, DOUBT * pixels + 1e-6, torch.full_like(pixels, FIRST_LOG_ODDS)
        width = _width(weight, distance, doubt)
        for _ in range(self.rounds):
            chance = _chance(mean, width, odds)
            share = ((count * chance).sum() / pixels.clamp(min=1)).clamp(RAREST_SCENE, 1 - RAREST_OTHER)
            odds, width = torch.logit(share), _width(solid * chance, distance, doubt)
        scene = (count * _chance(mean, width, odds)).sum() / pixels.clamp(min=1)
        trust = ((BLIND - width) / (BLIND - TELLING)).clamp(0, 1) * ((1 - scene - FEW) / (SOME - FEW)).clamp(0, 1)
        chances = 1 - trust * (1 - _chance(means, width, odds))
        return rgb + chances[..., None] * (photograph - rgb), chances


def _stride(height: int, width: int) -> int:
    """Every how many-th row and column is sampled."""
    return max(1, math.isqrt(height * width // SAMPLE))


def _trust(width: float, scene: float) -> float:
    """How much classes count with errors of this width and this share of the scene, in [0, 1]."""
    told = min(max((BLIND - width) / (BLIND - TELLING), 0.0), 1.0)
    return told * min(max((1 - scene - FEW) / (SOME - FEW), 0.0), 1.0)


def _width(weight: Tensor, distance: Tensor, doubt: Tensor) -> Tensor:
    """The scene's own width, of these pixels and some of the largest."""
    width = ((weight * distance).sum() + 3 * doubt * LARGEST) / (3 * (weight.sum() + doubt))
    return width.clamp(SMALLEST, LARGEST)


def _chance(mean: Tensor, width: Tensor, odds: Tensor) -> Tensor:
    return torch.sigmoid(odds - 3 * torch.log(2 * width) - mean / width)
