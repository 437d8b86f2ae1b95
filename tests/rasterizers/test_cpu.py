"""What only the CPU rasterizer promises."""

import subprocess
import sys

import pytest
import torch

from nfc_gs.core.gaussians import Splats
from nfc_gs.kernels.threads import part, set_thread_count, share, thread_count
from nfc_gs.rasterizers import cpu
from nfc_gs.rasterizers.cpu import Cpu
from tests.rasterizers import scenes


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("field", ["means", "scales", "quats", "opacities"])
def test_a_splat_that_is_not_finite_is_not_drawn_and_spoils_no_other(field, number):
    camera, background = scenes.camera(50, 40), torch.zeros(3)
    sound = scenes.splats(60, 3, 1, torch.float32)
    tensors = {name: getattr(sound, name).detach().clone() for name in scenes.INPUTS}
    without = {name: tensor[torch.arange(60) != 30].clone() for name, tensor in tensors.items()}
    tensors[field].view(60, -1)[30] = number
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    rendering = Cpu()(Splats(**leaves), camera, background)
    rendering.channels.sum().backward()

    expected = {name: tensor.requires_grad_() for name, tensor in without.items()}
    right = Cpu()(Splats(**expected), camera, background)
    right.channels.sum().backward()
    if field == "quats" and number == 1e30:
        pytest.skip("a long quaternion is a direction like any other, or overflows: either is sound")
    assert not rendering.radii[30].any()
    assert torch.equal(rendering.channels, right.channels)
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad[torch.arange(60) != 30], expected[name].grad)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_do_no_harm_but_to_themselves(number):
    splats = scenes.splats(60, 3, 1, torch.float32)
    rendering = Cpu()(splats, scenes.camera(50, 40), torch.zeros(3))
    rendering.channels.backward(torch.full_like(rendering.channels, number))
    assert splats.means.grad.shape == (60, 3)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_number_of_threads_gives_the_same_bits(threads):
    before = thread_count()
    set_thread_count(threads)
    results = []
    for _ in range(2):
        splats = scenes.splats(500, 3, 2, torch.float32)
        rendering = Cpu()(splats, scenes.camera(90, 70), torch.zeros(3))
        rendering.channels.square().sum().backward()
        results.append([rendering.channels, *(getattr(splats, name).grad for name in scenes.INPUTS)])
    set_thread_count(before)
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


@pytest.mark.parametrize("band", [2**18, 700])
@pytest.mark.parametrize("depth", [False, True])
def test_another_number_of_threads_gives_the_same_bits(depth, band, monkeypatch):
    # Of 700 entries a band there are several.
    monkeypatch.setattr(cpu, "_BAND", band)
    before = thread_count()
    results = []
    for threads in (1, 2, 3, 16):
        set_thread_count(threads)
        splats = scenes.splats(500, 3, 2, torch.float32)
        rendering = Cpu()(splats, scenes.camera(90, 70), torch.full((3,), 0.3), depth=depth, absgrad=True, weights=True)
        total = rendering.channels.square().sum() + rendering.alpha.cos().sum()
        if depth:
            total = total + rendering.depth.sin().sum()
        total.backward()
        gathered = rendering.gather(torch.linspace(-1, 1, 90 * 70).reshape(70, 90, 1))
        results.append([
            rendering.channels, rendering.alpha, *(getattr(splats, name).grad for name in scenes.INPUTS),
            rendering.means2d.grad, rendering.absgrad(), rendering.weights(), *gathered,
        ])  # fmt: skip
    set_thread_count(before)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


def test_equal_depths_are_drawn_in_the_order_of_the_splats():
    tensors = {
        "means": torch.tensor([[0.0, 0.0, 4.0]]),
        "scales": torch.full((1, 3), 0.5),
        "quats": torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        "opacities": torch.tensor([0.9]),
    }
    camera = scenes.Camera(world_to_camera=torch.eye(4), focal=(20.0, 20.0), centre=(8.5, 8.5), width=17, height=17)
    twice = {name: tensor.expand(2, *tensor.shape[1:]) for name, tensor in tensors.items()}
    rendering = Cpu()(Splats(**twice, values=torch.eye(2)), camera, torch.zeros(2))
    torch.testing.assert_close(rendering.channels[8, 8], torch.tensor([0.9, 0.09]), rtol=0, atol=1e-6)


PROGRAM = """
import torch
from nfc_gs.kernels import compositing, projection, tiles
from nfc_gs.rasterizers import cpu
from nfc_gs.rasterizers.cpu import Cpu
from tests.rasterizers import scenes
for channels in {channels}:
    rendering = Cpu()(scenes.splats(50, channels, 0, torch.float32), scenes.camera(40, 30), torch.zeros(channels))
    rendering.channels.sum().backward()
    rendering.gather(torch.zeros(30, 40, 2))
stats = [f.stats for m in (compositing, projection, tiles) for f in vars(m).values() if hasattr(f, "stats")]
print(sum(sum(s.cache_hits.values()) for s in stats), sum(sum(s.cache_misses.values()) for s in stats))
"""


def _cache_use(channels: list[int], environment: dict[str, str] | None = None) -> tuple[int, int]:
    program = PROGRAM.format(channels=channels)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    hits, misses = done.stdout.split()
    return int(hits), int(misses)


def test_a_second_process_compiles_nothing_whatever_the_number_of_channels():
    _cache_use([3])
    hits, misses = _cache_use([3, 5, 24])
    assert hits > 0
    assert misses == 0


def test_shared_work_comes_back_in_order_and_parts_cover_everything():
    assert share(lambda number: number**2, 5) == [0, 1, 4, 9, 16]
    parts = [part(10, number, 3) for number in range(3)]
    assert [i for first, last in parts for i in range(first, last)] == list(range(10))


def test_scratch_is_used_again_but_never_by_two_at_once():
    scratch = cpu._Scratch()
    with scratch.borrow(3, 5) as first, scratch.borrow(2, 4) as second:
        assert (first.shape, second.shape) == ((3, 5), (2, 4))
        first[:], second[:] = 1, 2
        assert (first == 1).all()
    with scratch.borrow(2, 4) as third:
        assert third.ctypes.data in (first.ctypes.data, second.ctypes.data)


def test_what_a_pass_has_handed_out_is_not_touched_by_the_next():
    held, copies = [], []
    for seed in range(3):
        splats = scenes.splats(200, 3, seed, torch.float32)
        rendering = Cpu()(splats, scenes.camera(50, 40), torch.zeros(3), absgrad=True, weights=True)
        rendering.channels.sum().backward()
        sums = [*rendering.gather(torch.ones(40, 50, 2)), rendering.absgrad(), rendering.weights()]
        held += [rendering.channels.detach(), *sums, *(getattr(splats, name).grad for name in scenes.INPUTS)]
        copies += [tensor.clone() for tensor in held[len(copies) :]]
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(held, copies, strict=True))


def test_weights_are_not_known_before_the_backward_pass():
    rendering = Cpu()(scenes.splats(20, 3, 0, torch.float32), scenes.camera(50, 40), torch.zeros(3), weights=True)
    with pytest.raises(RuntimeError, match="weights are known only after"):
        rendering.weights()
