"""The judge itself, judged by finite differences."""

import torch

from nfc_gs.core.gaussians import Splats
from nfc_gs.rasterizers import reference
from tests.rasterizers import scenes


def test_gradients_are_those_of_finite_differences():
    # Few faint, wide splats: no alpha in this picture is near a threshold, so it is smooth.
    generator = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    inputs = (0.1 * normal(4, 3), (0.1 * normal(4, 3)).exp(), normal(4, 4), torch.sigmoid(normal(4)), normal(4, 2))
    camera, background = scenes.camera(6, 5), torch.zeros(2, dtype=torch.float64)

    def picture(means, scales, quats, opacities, values):
        splats = Splats(means=means, scales=scales, quats=quats, opacities=opacities, values=values)
        rendering = reference.Reference()(splats, camera, background, depth=True)
        return rendering.channels, rendering.alpha, rendering.depth

    assert torch.autograd.gradcheck(picture, [tensor.requires_grad_() for tensor in inputs])


def test_the_mean_is_projected_as_the_camera_projects_points():
    splats, camera = scenes.splats(50, 1), scenes.camera(40, 30)
    means2d, _, depths = reference.project(splats, camera)
    pixels, right = camera.project(splats.means)
    seen = right > camera.near
    torch.testing.assert_close(means2d[seen], pixels[seen], rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(depths[seen], right[seen], rtol=1e-12, atol=0)


def test_the_covariance_is_that_of_projected_samples():
    # A small Gaussian, for which the perspective is as good as linear; sampling error 1 / sqrt(2e5) of a variance.
    splats, camera = scenes.splats(1, 1), scenes.camera(400, 300)
    small = Splats(
        means=torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64),
        scales=torch.tensor([[0.02, 0.005, 0.01]], dtype=torch.float64),
        **{name: getattr(splats, name) for name in ("quats", "opacities", "values")},
    )
    samples = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rotation = reference.quats_to_matrices(small.quats)[0]
    pixels, _ = camera.project(small.means + (samples * small.scales) @ rotation.T)
    _, covariances, _ = reference.project(small, camera)
    expected = torch.cov(pixels.T) + 0.3 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(covariances[0], expected, rtol=0.02, atol=0.02 * float(expected.detach().abs().max()))
