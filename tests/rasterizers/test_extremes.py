"""Pictures and scenes at the edge of what is sensible: the right result, and no more memory than they need."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nfc_gs.benchmarks.cells import peak
from nfc_gs.benchmarks.loads import METHODS, make_trainer, shells
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Splats
from nfc_gs.rasterizers.cpu import Cpu
from nfc_gs.rasterizers.reference import Reference
from tests.rasterizers import scenes
from tests.rasterizers.test_backends import GRADIENT, PICTURE, difference, draw

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a peak that can be set back")
# Sums of some ten thousand float32 terms of one sign, in another order.
MANY = 1e-4
# A place near pixel 4,000 is rounded by up to 2^-13 pixels, and as a splat is at least 0.55 pixels wide, its alpha changes
# by up to 1.1 a pixel.
FAR = 1.5 * 2**-13


def straight_camera(width: int, height: int) -> Camera:
    return Camera(
        world_to_camera=torch.eye(4), focal=(20.0, 20.0), centre=(width / 2, height / 2), width=width, height=height
    )


@pytest.mark.parametrize(("width", "height", "count"), [(1, 1, 400), (4001, 17, 60), (17, 4001, 60)])
def test_pictures_of_one_pixel_and_of_one_line_are_the_references(width, height, count):
    camera = scenes.camera(width, height)
    exact = scenes.splats(count, 3, 6)
    near = scenes.undecided(exact, camera)
    right = draw(Reference(), exact, camera, ~near)
    found = draw(Cpu(), scenes.splats(count, 3, 6, torch.float32), camera, ~near)
    assert right.rendering.alpha.detach().max() > 0.1
    error = (found.rendering.channels.double() - right.rendering.channels).abs().amax(-1)
    rounding = FAR if max(width, height) > 1 else 0
    assert error[~near].max() < PICTURE + rounding
    for name, gradient in right.gradients.items():
        assert difference(found.gradients[name], gradient) < GRADIENT + 4 * rounding, name


@pytest.mark.parametrize(("width", "height"), [(1, 1), (4001, 17), (1000, 700)])
def test_a_splat_that_covers_the_picture_leaves_and_learns_its_closed_form(width, height):
    tensors = {
        "means": torch.tensor([[0.0, 0.0, 4.0]]),
        "scales": torch.full((1, 3), 1e6),
        "quats": torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        "opacities": torch.tensor([0.8]),
        "values": torch.tensor([[0.2, 0.5, 0.9]]),
    }
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    rendering = Cpu()(Splats(**leaves), straight_camera(width, height), torch.ones(3))
    colour = 0.8 * torch.tensor([0.2, 0.5, 0.9]) + 0.2
    torch.testing.assert_close(rendering.channels, colour.expand(height, width, 3), rtol=0, atol=PICTURE)
    rendering.channels.mean((0, 1)).sum().backward()
    # The mean over the pixels of o c + (1 - o) 1, by c and by o.
    torch.testing.assert_close(leaves["values"].grad, torch.full((1, 3), 0.8), rtol=MANY, atol=0)
    torch.testing.assert_close(leaves["opacities"].grad, torch.tensor([0.2 + 0.5 + 0.9 - 3]), rtol=MANY, atol=0)


def crowd(count: int) -> dict[str, Tensor]:
    """So many faint splats before one tile, each as wide as it; their depths differ by what float32 can tell apart."""
    generator = torch.Generator().manual_seed(0)
    depths = 1 + torch.randperm(count, generator=generator) / count
    across = (torch.rand(count, 2, generator=generator) - 0.5) * 0.6 * depths[:, None]
    return {
        "means": torch.cat([across, depths[:, None]], 1),
        "scales": depths[:, None] * torch.tensor([0.15, 0.2, 0.25]),
        "quats": torch.randn(count, 4, generator=generator),
        "opacities": 0.02 + 0.04 * torch.rand(count, generator=generator),
        "values": torch.rand(count, 3, generator=generator),
    }


def test_of_a_hundred_thousand_splats_in_one_tile_the_nearest_are_drawn():
    count, kept = 100_000, 6_000
    camera, tensors = straight_camera(16, 16), crowd(count)
    nearest = tensors["means"][:, 2].argsort()[:kept]
    some = {name: tensor[nearest].double().requires_grad_() for name, tensor in tensors.items()}
    near = scenes.undecided(Splats(**some), camera)
    right = draw(Reference(), Splats(**some), camera, ~near)
    # Everything behind these is hidden, in every pixel.
    assert right.gradients["values"][-kept // 4 :].abs().max() == 0
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    found = draw(Cpu(), Splats(**leaves), camera, ~near)
    error = (found.rendering.channels.double() - right.rendering.channels).abs().amax(-1)
    assert error[~near].max() < MANY
    for name in scenes.INPUTS:
        assert difference(found.gradients[name][nearest], right.gradients[name]) < 10 * GRADIENT, name
        behind = torch.ones(count, dtype=torch.bool)
        behind[nearest] = False
        assert found.gradients[name][behind].abs().max() == 0, name


def megabytes(splats: dict[str, Tensor], camera: Camera) -> float:
    """The rise of the process's memory while they are drawn and differentiated."""

    def work() -> None:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in splats.items()}
        Cpu()(Splats(**leaves), camera, torch.zeros(3)).channels.sum().backward()

    work()
    before, after = peak(lambda: None, "cpu").megabytes, peak(work, "cpu").megabytes
    assert before is not None and after is not None
    return after - before


@LINUX
def test_a_crowded_tile_takes_memory_in_proportion_to_its_splats():
    count = 100_000
    # Rows, lists, sums and gradients: some 80 numbers a splat, twice over as there are two passes.
    assert megabytes(crowd(count), straight_camera(16, 16)) < 2 * 80 * 4 * count / 1e6


@LINUX
def test_splats_that_cover_everything_take_memory_in_proportion_to_the_tiles():
    count, side = 300, 800
    covering = {name: tensor[:count] for name, tensor in crowd(100_000).items()}
    covering["scales"] = torch.full((count, 3), 1e6)
    # Every splat is in the list of each of the 2,500 tiles: three numbers each time, in room that grows by doubling;
    # and some 40 numbers a pixel.
    tiles = (side // 16) ** 2
    assert megabytes(covering, straight_camera(side, side)) < (4 * 3 * 4 * count * tiles + 40 * 4 * side**2) / 1e6


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_training_step_that_sees_no_splat_changes_none(method):
    load = shells(50, 0).seen(20, 20)
    behind = load.camera.world_to_camera.clone()
    behind[2, 3] = -10
    blind = replace(load, camera=replace(load.camera, world_to_camera=behind))
    trainer = make_trainer(blind, method, Cpu(), 0)
    before = {name: value.detach().clone() for name, value in trainer.model.gaussians.items()}
    for _ in range(3):
        report = trainer.step()
    assert not report.picture.rendering.radii.any()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.gaussians.items())
