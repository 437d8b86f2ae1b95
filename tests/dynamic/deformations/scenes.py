"""Gaussians and populations for the tests of the fields."""

import torch

from nfc_gs.core.gaussians import Gaussians, Population

BOUNDS = torch.tensor([[-1.3] * 3, [1.3] * 3])
NUM_TIMES = 100


def gaussians(num: int, width: int, seed: int = 0) -> Gaussians:
    """Random ones in the box."""
    generator = torch.Generator().manual_seed(seed)
    return Gaussians(
        means=torch.rand(num, 3, generator=generator) * 2 - 1,
        log_scales=torch.randn(num, 3, generator=generator) - 3,
        quats=torch.randn(num, 4, generator=generator),
        colour_logits=torch.randn(num, 3, 1, generator=generator),
        opacity_logits=torch.randn(num, 1, generator=generator),
        harmonics=torch.zeros(num, 0, 3),
        motion=torch.zeros(num, width),
    )


def population(of: Gaussians) -> Population:
    """What a field sees of them."""
    return Population(
        gaussians=of,
        decode_opacities=lambda: of.opacity_logits[:, 0].sigmoid(),
        encode_opacities=lambda opacities: opacities.logit()[:, None],
        extent=1.0,
    )
