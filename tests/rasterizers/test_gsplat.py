"""What is this project's own about the gsplat backend, on a CPU: gsplat's place is taken by the reference."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from nfc_gs.core.harmonics import evaluate_plain
from nfc_gs.rasterizers import gsplat
from nfc_gs.rasterizers.gsplat import Gsplat
from nfc_gs.rasterizers.reference import Reference
from tests.rasterizers import scenes, stand_in

EXACT = {"rtol": 1e-9, "atol": 1e-11}  # float64, the same sums in another order
EXTRAS = [{}, {"depth": True}, {"weights": True}, {"absgrad": True}, {"depth": True, "absgrad": True, "weights": True}]


@pytest.fixture(autouse=True)
def place_taken(monkeypatch):
    monkeypatch.setattr(gsplat, "_gsplat", stand_in.package)
    gsplat._intrinsics.cache_clear()


def drawn(rasterizer, channels, extras):
    splats, camera = scenes.splats(120, channels, 3), scenes.camera(30, 20)
    generator = torch.Generator().manual_seed(1)
    background = torch.rand(channels, generator=generator, dtype=torch.float64)
    rendering = rasterizer(splats, camera, background, **extras)
    by_channels = torch.randn(20, 30, channels, generator=generator, dtype=torch.float64)
    loss = (rendering.channels * by_channels).sum() + (rendering.alpha * by_channels[..., 0]).sum()
    if rendering.depth is not None:
        loss = loss + (rendering.depth * by_channels[..., 0]).sum()
    loss.backward()
    return splats, rendering


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("extras", EXTRAS, ids=lambda extras: " ".join(extras) or "plain")
@pytest.mark.parametrize("channels", [1, 3, 24])
def test_a_rendering_says_what_the_references_says(monkeypatch, channels, extras, packed):
    # Intrinsics are float32, as gsplat takes them; the camera's numbers here are not exact in it.
    monkeypatch.setattr(gsplat, "_intrinsics", exact_intrinsics)
    splats, found = drawn(Gsplat(packed=packed), channels, extras)
    same, right = drawn(Reference(), channels, extras)
    for name in ("channels", "alpha", "depth", "radii"):
        ours, theirs = getattr(found, name), getattr(right, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours.detach(), theirs.detach(), **EXACT)
    for name in scenes.INPUTS:
        torch.testing.assert_close(getattr(splats, name).grad, getattr(same, name).grad, **EXACT)
    torch.testing.assert_close(found.means2d.grad, right.means2d.grad, **EXACT)
    for name in ("absgrad", "weights"):
        ours, theirs = getattr(found, name), getattr(right, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours(), theirs(), **EXACT)
    picture = torch.rand(20, 30, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for ours, theirs in zip(found.gather(picture), right.gather(picture), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def exact_intrinsics(fx, fy, cx, cy, device):
    return torch.tensor([[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]], dtype=torch.float64)


def cameras_apart(*sizes):
    """Cameras of these sizes, each somewhere else."""
    cameras = [scenes.camera(*size) for size in sizes]
    for number, camera in enumerate(cameras):
        camera.world_to_camera[:3, 3] += 0.3 * torch.tensor([number, -number, number])
    return cameras


def several(rasterizer, cameras, extras):
    """One cloud, with other values for each camera: all renderings, and the leaves with the gradients of one sum of them."""
    generator = torch.Generator().manual_seed(5)
    cloud = scenes.splats(120, 3, 3)
    values = [torch.rand(120, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in cameras]
    backgrounds = list(torch.rand(len(cameras), 3, generator=generator, dtype=torch.float64))
    mine = [replace(cloud, values=own) for own in values]
    renderings = rasterizer.draw(mine, cameras, backgrounds, **extras)
    loss = torch.zeros((), dtype=torch.float64)
    for camera, rendering in zip(cameras, renderings, strict=True):
        by = torch.randn(camera.height, camera.width, 3, generator=generator, dtype=torch.float64)
        loss = loss + (rendering.channels * by).sum() + (rendering.alpha * by[..., 0]).sum()
        if rendering.depth is not None:
            loss = loss + (rendering.depth * by[..., 1]).sum()
    loss.backward()
    return renderings, [getattr(cloud, name) for name in scenes.INPUTS[:-1]] + values


@pytest.fixture
def calls(monkeypatch):
    """How many cameras each call of gsplat's function had."""
    counted = []

    def rasterization(**arguments):
        counted.append(len(arguments["viewmats"]))
        return stand_in.rasterization(**arguments)

    package = stand_in.package()
    package.rasterization = rasterization
    monkeypatch.setattr(gsplat, "_gsplat", lambda: package)
    return counted


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("extras", EXTRAS, ids=lambda extras: " ".join(extras) or "plain")
def test_several_cameras_in_one_pass_see_what_each_sees_alone(monkeypatch, calls, extras, packed):
    monkeypatch.setattr(gsplat, "_intrinsics", exact_intrinsics)
    cameras = cameras_apart((30, 20), (30, 20), (30, 20))
    found, ours = several(Gsplat(packed=packed), cameras, extras)
    assert calls == [3]
    right, theirs = several(Reference(), cameras, extras)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, **EXACT)
    picture = torch.rand(20, 30, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for one, other in zip(found, right, strict=True):
        for name in ("channels", "alpha", "depth", "radii"):
            here, there = getattr(one, name), getattr(other, name)
            assert (here is None) == (there is None)
            if here is not None:
                torch.testing.assert_close(here.detach(), there.detach(), **EXACT)
        torch.testing.assert_close(one.means2d.grad, other.means2d.grad, **EXACT)
        for name in ("absgrad", "weights"):
            if extras.get(name):
                torch.testing.assert_close(getattr(one, name)(), getattr(other, name)(), **EXACT)
        for here, there in zip(one.gather(picture), other.gather(picture), strict=True):
            torch.testing.assert_close(here, there, **EXACT)
    # Each camera sees others of them: else one camera's statistics could pass for another's.
    assert not torch.equal(found[0].radii, found[1].radii)


def test_cameras_that_do_not_fit_together_are_drawn_one_after_the_other(monkeypatch, calls):
    monkeypatch.setattr(gsplat, "_intrinsics", exact_intrinsics)
    two = cameras_apart((30, 20), (30, 20))
    cases = {
        "sizes": (Gsplat(), cameras_apart((30, 20), (20, 30))),
        "near": (Gsplat(), [two[0], replace(two[1], near=0.5)]),
        "unwanted": (Gsplat(batched=False), two),
    }
    for rasterizer, cameras in cases.values():
        calls.clear()
        found, ours = several(rasterizer, cameras, {})
        assert calls == [1, 1]
        right, theirs = several(Reference(), cameras, {})
        for one, other in zip(found, right, strict=True):
            torch.testing.assert_close(one.channels, other.channels, **EXACT)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.grad, other.grad, **EXACT)
    clouds = [scenes.splats(50, 3, seed) for seed in (1, 2)]
    calls.clear()
    assert len(Gsplat().draw(clouds, two, [torch.zeros(3, dtype=torch.float64)] * 2)) == 2
    assert calls == [1, 1]


def test_weights_are_known_though_no_loss_saw_the_picture():
    splats, camera = scenes.splats(30, 3), scenes.camera(20, 10)
    rendering = Gsplat()(splats, camera, torch.zeros(3, dtype=torch.float64), weights=True)
    rendering.alpha.sum().backward()
    _, gathered = rendering.gather(torch.zeros(10, 20, 1, dtype=torch.float64))
    torch.testing.assert_close(rendering.weights(), gathered, **EXACT)


def test_a_splat_that_the_blur_widens_is_fainter_when_antialiased(monkeypatch):
    monkeypatch.setattr(gsplat, "_intrinsics", exact_intrinsics)
    # Round, on the axis: its variance on the screen is v before the blur and v + 0.3 after it, in both directions.
    variance = (20 / 4 * 0.05) ** 2
    splats = scenes.splats(1, 3)
    with torch.no_grad():
        splats.means.copy_(torch.tensor([[0.0, 0, 4]]))
        splats.scales.fill_(0.05)
        splats.opacities.fill_(0.8)
    camera = scenes.camera(9, 9).__class__(
        world_to_camera=torch.eye(4), focal=(20.0, 20.0), centre=(4.5, 4.5), width=9, height=9
    )
    for antialiased, peak in ((False, 0.8), (True, 0.8 * variance / (variance + 0.3))):
        alpha = Gsplat(antialiased=antialiased)(splats, camera, torch.zeros(3, dtype=torch.float64)).alpha
        assert alpha[4, 4].item() == pytest.approx(peak, rel=1e-6)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_shading_is_the_plain_harmonics(degree):
    generator = torch.Generator().manual_seed(0)
    sizes = ((40, 3), (40, 15, 3), (40, 3))
    first = [torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes]
    position = torch.randn(3, generator=generator, dtype=torch.float64)
    gradients = []
    for shade in (Gsplat().shade, evaluate_plain):
        leaves = [tensor.clone().requires_grad_() for tensor in first]
        colours = shade(*leaves, position, degree)
        (colours * torch.arange(3)).sum().backward()
        none = torch.zeros(40, 15, 3, dtype=torch.float64)
        gradients.append([colours.detach(), leaves[0].grad, none if leaves[1].grad is None else leaves[1].grad])
        gradients[-1].append(torch.zeros(40, 3).double() if leaves[2].grad is None else leaves[2].grad)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("extras", EXTRAS, ids=lambda extras: " ".join(extras) or "plain")
def test_no_splats_leave_the_background_and_never_reach_gsplat(extras):
    splats = scenes.splats(0, 3)
    background = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    rendering = Gsplat()(splats, scenes.camera(20, 10), background, **extras)
    assert torch.equal(rendering.channels, background.expand(10, 20, 3))
    rendering.channels.sum().backward()
    assert rendering.means2d.grad.shape == (0, 2)
    assert rendering.gather(torch.ones(10, 20, 2))[0].shape == (0, 2)
    assert Gsplat().shade(*(torch.zeros(0, *size) for size in ((3,), (15, 3), (3,))), torch.zeros(3), 3).shape == (0, 3)


@pytest.mark.parametrize("packed", [False, True])
def test_a_rendering_that_nobody_holds_is_gone(packed):
    rendering = drawn(Gsplat(packed=packed), 3, {"weights": True, "absgrad": True})[1]
    gone = weakref.ref(rendering.means2d)
    del rendering
    gc.collect()
    assert gone() is None


def test_the_kernels_step_with_our_corrections_is_adam():
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(6, 2, generator=generator, dtype=torch.float64))
    twin = torch.nn.Parameter(parameter.detach().clone())
    adam = torch.optim.Adam([twin], lr=0.01, betas=(0.9, 0.999), eps=1e-8)
    moments, squares = torch.zeros_like(parameter), torch.zeros_like(parameter)
    from nfc_gs.training import optimizer

    seen = torch.ones(6, dtype=torch.bool)
    for count in range(1, 6):
        parameter.grad = torch.randn(6, 2, generator=generator, dtype=torch.float64)
        twin.grad = parameter.grad.clone()
        adam.step()
        state = {"exp_avg": moments, "exp_avg_sq": squares}
        numbers = (0.9, 0.999, 0.01 / (1 - 0.9**count), (1 - 0.999**count) ** -0.5, 1e-8)
        optimizer.step_by_gsplat(parameter, state, seen, *numbers)
    torch.testing.assert_close(parameter, twin, **EXACT)
