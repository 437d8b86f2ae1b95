"""Populations and renderings made by hand."""

import torch

from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Gaussians, Population
from nfc_gs.core.rendering import Rendering


def encode(opacities):
    """The identity code's logits."""
    return torch.logit(opacities)[:, None]


def make_population(opacities, scales=0.1, extent=1.0, seed=0):
    """Gaussians anywhere, of the given opacities and (isotropic or [N 3]) scales."""
    generator = torch.Generator().manual_seed(seed)
    opacities = torch.as_tensor(opacities, dtype=torch.float32)
    n = len(opacities)
    scales = torch.as_tensor(scales, dtype=torch.float32)
    if scales.ndim == 1:
        scales = scales[:, None]
    gaussians = Gaussians(
        means=torch.randn(n, 3, generator=generator),
        log_scales=scales.expand(n, 3).log().clone(),
        quats=torch.randn(n, 4, generator=generator),
        colour_logits=torch.randn(n, 3, 1, generator=generator),
        opacity_logits=encode(opacities),
        harmonics=torch.randn(n, 3, 3, generator=generator),
        motion=torch.randn(n, 2, generator=generator),
    )
    return Population(gaussians=gaussians, decode_opacities=lambda: opacities, encode_opacities=encode, extent=extent)


def opacities_after(edit, population):
    return torch.sigmoid(edit.apply(population.gaussians).opacity_logits[:, 0])


def make_rendering(gradients, drawn=None, absolute=None, weights=None):
    """A rendering whose means2d has the given gradient."""
    gradients = torch.as_tensor(gradients, dtype=torch.float32)
    means2d = torch.zeros_like(gradients, requires_grad=True)
    (means2d * gradients).sum().backward()
    weights = torch.full((len(gradients),), 100.0) if weights is None else torch.as_tensor(weights)
    drawn = torch.ones(len(gradients)) if drawn is None else torch.as_tensor(drawn)
    return Rendering(
        channels=torch.zeros(2, 2, 3),
        alpha=torch.zeros(2, 2),
        depth=None,
        means2d=means2d,
        radii=drawn.long()[:, None].expand(-1, 2) * 3,
        gather=lambda picture: (picture, picture),
        absgrad=None if absolute is None else lambda: torch.as_tensor(absolute, dtype=torch.float32),
        weights=lambda: weights,
    )


CAMERA = Camera(world_to_camera=torch.eye(4), focal=(1.0, 1.0), centre=(1.0, 1.0), width=200, height=100)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_equal_edits(first, second):
    assert torch.equal(first.parent, second.parent)
    assert torch.equal(first.fresh, second.fresh)
    assert first.values.keys() == second.values.keys()
    for name, value in first.values.items():
        assert torch.equal(value, second.values[name])
