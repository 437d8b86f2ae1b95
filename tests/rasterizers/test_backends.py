"""The same cases over every rasterizer, judged by the dense reference in float64."""

import importlib
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Splats
from nfc_gs.core.rendering import Rendering
from nfc_gs.kernels.threads import set_thread_count, thread_count
from nfc_gs.rasterizers.base import Rasterizer
from nfc_gs.rasterizers.reference import Reference
from tests.rasterizers import scenes

PICTURE = 1e-5  # a hundred float32 roundings of numbers near one
GRADIENT = 1e-4  # relative to the gradient's norm: sums over pixels, of both signs
# gsplat is compiled with fast divisions, roots and exponentials, takes the inverse of needles' covariances by their
# determinants, and finds transmittances again, backwards, by dividing: on an H200 6e-5 and 1.7e-4 are what that costs here.
LOOSER = {"cpu": 1, "cuda": 10}
FLIPPED = 1e-2  # one splat more or less of alpha 1/255, and what it hides
UNDECIDED_SHARE = 1e-3

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and gsplat")
GPU = [pytest.mark.gpu, no_gpu]
BACKENDS = ["cpu", pytest.param("gsplat", marks=GPU), pytest.param("gsplat packed", marks=GPU)]


def load(backend: str) -> Rasterizer:
    kind, *settings = backend.split()
    return importlib.import_module(f"nfc_gs.rasterizers.{kind}").Spec(**dict.fromkeys(settings, True))


@pytest.fixture(params=BACKENDS)
def rasterizer(request: pytest.FixtureRequest) -> Rasterizer:
    return load(request.param)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest):
    before = thread_count()
    set_thread_count(request.param)
    yield request.param
    set_thread_count(before)


@dataclass
class Drawn:
    rendering: Rendering
    gradients: dict[str, Tensor]


def draw(rasterizer: Rasterizer, splats: Splats, camera: Camera, mask: Tensor | None = None, **extras: bool) -> Drawn:
    """Draws, and differentiates a fixed random sum of picture, alpha and depth over the pixels of `mask`."""
    generator = torch.Generator().manual_seed(7)
    channels, shape = splats.values.shape[1], (camera.height, camera.width)
    background = torch.rand(channels, generator=generator).to(splats.means)
    by_channels = torch.randn(*shape, channels, generator=generator).to(splats.means)
    by_alpha, by_depth = torch.randn(2, *shape, generator=generator).to(splats.means)
    where = torch.ones(shape).to(splats.means) if mask is None else mask.to(splats.means)
    rendering = rasterizer(splats, camera.to(rasterizer.device), background, depth=True, **extras)
    loss = ((rendering.channels * by_channels).sum(-1) + rendering.alpha * by_alpha) * where
    (loss + rendering.depth * by_depth * where).sum().backward()
    gradients = {name: getattr(splats, name).grad for name in scenes.INPUTS}
    return Drawn(rendering, gradients | {"means2d": rendering.means2d.grad})


def difference(found: Tensor, right: Tensor) -> float:
    return float((found.double().cpu() - right).detach().norm() / right.detach().norm())


CASES = [(3, 70, 50, 0), (1, 64, 64, 1), (4, 33, 90, 2), (15, 50, 47, 3), (24, 61, 40, 4)]


@pytest.mark.parametrize(("channels", "width", "height", "seed"), CASES)
def test_pictures_and_gradients_are_the_references(rasterizer, threads, channels, width, height, seed):
    camera = scenes.camera(width, height)
    exact = scenes.splats(400, channels, seed)
    near = scenes.undecided(exact, camera)
    assert near.double().mean() <= UNDECIDED_SHARE
    right = draw(Reference(), exact, camera, ~near)
    found = draw(rasterizer, scenes.splats(400, channels, seed, torch.float32, rasterizer.device), camera, ~near)

    drawn, wanted = found.rendering.radii.cpu() > 0, right.rendering.radii > 0
    assert drawn[wanted].all()
    # gsplat rounds the half extents before it looks which splats reach into the picture, and so takes some from just outside.
    assert rasterizer.device == "cuda" or torch.equal(drawn, wanted)
    # A half extent of a whole number of pixels may be rounded up either way.
    assert (found.rendering.radii.cpu() - right.rendering.radii)[wanted].abs().max() <= 1
    for name in ("channels", "alpha", "depth"):
        error = (getattr(found.rendering, name).double().cpu() - getattr(right.rendering, name)).abs()
        error = error.amax(-1) if name == "channels" else error
        # Depths are not near one but near three.
        assert error[~near].max() < PICTURE * LOOSER[rasterizer.device] * (3 if name == "depth" else 1)
        assert not near.any() or error[near].max() < FLIPPED * (3 if name == "depth" else 1)
    for name, gradient in right.gradients.items():
        assert difference(found.gradients[name], gradient) < GRADIENT * LOOSER[rasterizer.device], name


def test_absolute_gradients_and_gathered_pictures_are_the_references(rasterizer, threads):
    camera = scenes.camera(70, 50)
    exact = scenes.splats(400, 3)
    near = scenes.undecided(exact, camera)
    right = draw(Reference(), exact, camera, ~near, absgrad=True)
    found = draw(rasterizer, scenes.splats(400, 3, 0, torch.float32, rasterizer.device), camera, ~near, absgrad=True)
    assert difference(found.rendering.absgrad(), right.rendering.absgrad()) < GRADIENT * LOOSER[rasterizer.device]
    assert difference(found.gradients["means"], right.gradients["means"]) < GRADIENT * LOOSER[rasterizer.device]

    picture = torch.rand(50, 70, 5, generator=torch.Generator().manual_seed(1)) * ~near[..., None]
    for ours, theirs in zip(
        found.rendering.gather(picture.to(rasterizer.device)), right.rendering.gather(picture), strict=True
    ):
        assert ours.shape == theirs.shape
        assert difference(ours, theirs) < GRADIENT * LOOSER[rasterizer.device]
        assert not ours.requires_grad


def test_gathered_weights_sum_to_alpha(rasterizer):
    splats, camera = scenes.splats(200, 3, 5, torch.float32, rasterizer.device), scenes.camera(40, 30)
    rendering = rasterizer(splats, camera.to(rasterizer.device), torch.zeros(3, device=rasterizer.device))
    _, weights = rendering.gather(torch.zeros(30, 40, 1, device=rasterizer.device))
    torch.testing.assert_close(weights.sum(), rendering.alpha.sum().detach(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("channels", "width"), [(1, 64), (2, 70), (3, 70), (4, 33), (7, 50), (24, 61)])
def test_accumulated_weights_are_the_references_and_those_of_gather(rasterizer, threads, channels, width):
    camera = scenes.camera(width, 50)
    exact = scenes.splats(400, channels)
    near = scenes.undecided(exact, camera)
    right = draw(Reference(), exact, camera, weights=True, absgrad=True).rendering
    splats = scenes.splats(400, channels, 0, torch.float32, rasterizer.device)
    found = draw(rasterizer, splats, camera, weights=True, absgrad=True)
    ours = found.rendering.weights()
    assert ours.shape == (400,)
    assert not ours.requires_grad
    # Where float32 cannot decide a threshold, a weight is off by one splat more or less.
    allowed = GRADIENT * right.weights().norm() + FLIPPED * near.sum()
    assert (ours.double().cpu() - right.weights()).norm() < allowed
    _, gathered = found.rendering.gather(torch.zeros(50, width, 1, device=rasterizer.device))
    torch.testing.assert_close(ours, gathered, rtol=1e-5, atol=0)
    assert difference(found.rendering.absgrad(), right.absgrad()) < FLIPPED

    without = draw(rasterizer, scenes.splats(400, channels, 0, torch.float32, rasterizer.device), camera)
    assert without.rendering.weights is None
    for name, gradient in without.gradients.items():
        # On a GPU sums come in any order: 1.5e-4 where few splats make up the norm.
        allowed = GRADIENT * LOOSER[rasterizer.device]
        assert difference(found.gradients[name].cpu(), gradient.double().cpu()) < allowed, name


def round_splat(device: str, **changes: Tensor) -> Splats:
    tensors = {
        "means": torch.tensor([[0.0, 0.0, 4.0]]),
        "scales": torch.full((1, 3), 0.5),
        "quats": torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        "opacities": torch.tensor([0.8]),
        "values": torch.tensor([[0.2, 0.5, 0.9]]),
    }
    return Splats(**{name: tensor.to(device) for name, tensor in (tensors | changes).items()})


def straight_camera(size: int) -> Camera:
    return Camera(
        world_to_camera=torch.eye(4), focal=(20.0, 20.0), centre=(size / 2, size / 2), width=size, height=size
    )


def test_a_round_splat_on_the_axis_is_its_closed_form(rasterizer):
    size = 17
    rendering = rasterizer(
        round_splat(rasterizer.device),
        straight_camera(size).to(rasterizer.device),
        torch.ones(3, device=rasterizer.device),
        depth=True,
    )
    # On the axis the derivative of the perspective is focal / depth times the identity.
    variance = (20 / 4 * 0.5) ** 2 + 0.3
    axis = torch.arange(size) + 0.5 - size / 2
    alpha = 0.8 * torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * variance))
    alpha = torch.where(alpha >= 1 / 255, alpha, 0)
    torch.testing.assert_close(rendering.alpha.cpu(), alpha, rtol=0, atol=PICTURE)
    torch.testing.assert_close(rendering.depth.cpu(), 4 * alpha, rtol=0, atol=4 * PICTURE)
    colours = alpha[..., None] * torch.tensor([0.2, 0.5, 0.9]) + 1 - alpha[..., None]
    torch.testing.assert_close(rendering.channels.cpu(), colours, rtol=0, atol=PICTURE)


@pytest.mark.parametrize("size", [1, 16, 40])
def test_a_splat_that_covers_everything_leaves_one_part_in_five(rasterizer, size):
    splats = round_splat(rasterizer.device, scales=torch.full((1, 3), 1e4))
    rendering = rasterizer(splats, straight_camera(size).to(rasterizer.device), torch.ones(3, device=rasterizer.device))
    torch.testing.assert_close(rendering.alpha.cpu(), torch.full((size, size), 0.8), rtol=0, atol=PICTURE)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("count", [0, 1])
def test_nothing_visible_leaves_the_background(backend, count):
    rasterizer = load(backend)
    behind = round_splat(rasterizer.device, means=torch.tensor([[0.0, 0.0, -4.0]]))
    leaves = {name: getattr(behind, name)[:count].clone().requires_grad_() for name in scenes.INPUTS}
    background = torch.tensor([0.1, 0.2, 0.3], device=rasterizer.device)
    rendering = rasterizer(
        Splats(**leaves), straight_camera(20).to(rasterizer.device), background, depth=True, absgrad=True
    )
    (rendering.channels.sum() + rendering.depth.sum()).backward()
    assert torch.equal(rendering.channels, background.expand(20, 20, 3))
    assert not rendering.alpha.any()
    assert not rendering.radii.any()
    assert all(not leaf.grad.any() for leaf in leaves.values())
    sums, weights = rendering.gather(torch.ones(20, 20, 2, device=rasterizer.device))
    assert sums.shape == (count, 2)
    assert not weights.any()
