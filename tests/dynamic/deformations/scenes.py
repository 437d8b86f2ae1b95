"""Gaussians and populations for the tests of the fields."""

import torch

from nfc_gs.core.gaussians import Gaussians, Population
from nfc_gs.deformations.base import Deformation, DeformationField

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


def awake_network(settings: Deformation, loud: bool = True) -> DeformationField:
    """A network's field after its warm-up, at birth or, if `loud`, with all its parameters shaken."""
    field = settings.init(BOUNDS, NUM_TIMES, torch.Generator().manual_seed(0))
    field.advance(population(gaussians(10, 0)), 0.05)
    if loud:
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in field.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    return field


def assert_asleep_then_identity(settings: Deformation) -> DeformationField:
    """A network's field leaves the Gaussians alone in the warm-up, and is the identity after it until it has learned."""
    field = settings.init(BOUNDS, NUM_TIMES, torch.Generator().manual_seed(0))
    some = gaussians(50, 0)
    field.advance(population(some), 0.04)
    assert field(some, 0.4).gaussians is some
    assert field.penalties(some, 0.4) == {}
    field.advance(population(some), 0.05)
    for (name, got), (_, wanted) in zip(field(some, 0.4).gaussians.items(), some.items(), strict=True):
        assert torch.equal(got, wanted), name
    return field
