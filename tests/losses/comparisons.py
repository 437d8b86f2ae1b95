"""Comparisons made by hand, with a compositing simple enough to be written out: fixed weights."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from nfc_gs.codes.base import TargetCode
from nfc_gs.codes.identity import Identity
from nfc_gs.losses.base import Appearance, Comparison

HEIGHT, WIDTH, NUM_GAUSSIANS = 4, 5, 6


def random(seed: int, *shape: int) -> Tensor:
    """Numbers in [0, 1), float64."""
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def compositing() -> Tensor:
    """Weights [H W N] that sum to less than one; the last Gaussian is not seen."""
    weights = random(10, HEIGHT, WIDTH, NUM_GAUSSIANS)
    weights[..., -1] = 0
    return weights / (weights.sum(-1, keepdim=True) + 0.5)


def gatherer(weights: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """`Rendering.gather` of those weights, by definition."""

    def gather(picture: Tensor) -> tuple[Tensor, Tensor]:
        return torch.einsum("hwn,hwp->np", weights, picture), weights.sum((0, 1))

    return gather


def appearance(code: TargetCode, logits: Tensor, step: int = 1) -> Appearance:
    """Gaussians without view dependence."""
    base = code.values(logits, False)
    return Appearance(colours=base.relu(), base=base, colour_logits=logits, code=code, step=step)


def comparison(rgb: Tensor, target: Tensor, mask: Tensor | None = None, code: TargetCode | None = None) -> Comparison:
    """A picture beside its target; everything else is there but means nothing."""
    code = code or Identity()
    logits = code.logits(random(11, NUM_GAUSSIANS, 3), False)
    return Comparison(
        rgb=rgb,
        target_rgb=target,
        alpha=rgb.detach()[..., 0].clamp(0, 1),
        target_alpha=None,
        mask=mask,
        appearance=appearance(code, logits),
        opacities=random(12, NUM_GAUSSIANS),
        scales=random(13, NUM_GAUSSIANS, 3),
        planes={},
        memory={},
        gather=gatherer(compositing()),
        progress=0.5,
        step=0,
    )


def seen(code: TargetCode, logits: Tensor, target: Tensor, background: Tensor) -> Comparison:
    """The Gaussians of `logits`, composited by `compositing` over `background`."""
    looks = appearance(code, logits)
    rgb = blend(looks.colours, background)
    return replace(comparison(rgb, target), appearance=looks)


def blend(values: Tensor, background: Tensor) -> Tensor:
    """Per-Gaussian values [N P] composited over the background's [P]."""
    weights = compositing()
    return weights @ values + (1 - weights.sum(-1, keepdim=True)) * background
