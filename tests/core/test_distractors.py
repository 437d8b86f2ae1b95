"""Pixels told apart: against the equations written out with NumPy, and against photographs of which the truth is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve

from nfc_gs import cli
from nfc_gs.core.distractors import (
    BLIND,
    DOUBT,
    FEW,
    FIRST_LOG_ODDS,
    LARGEST,
    RAREST_OTHER,
    RAREST_SCENE,
    SMALLEST,
    SOLID,
    SOME,
    TELLING,
    Distractors,
)
from nfc_gs.kernels.threads import set_thread_count, thread_count
from nfc_gs.losses.base import completed, weighted
from nfc_gs.losses.l1 import L1
from tests.conftest import REPOSITORY
from tests.losses.comparisons import comparison
from tests.waiting import META, nobody_waits

# Means of up to 9,000 float32 numbers, six times in turn, and the logarithms and exponentials of what follows from them.
CLOSE = {"rtol": 0, "atol": 1e-5}
WIDTH = 0.02  # of the scene's own errors


def photographed(height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A render, its photograph with errors of Laplace's distribution and a red rectangle before it, and where that is."""
    generator = np.random.default_rng(seed)
    rgb = generator.uniform(0.2, 0.8, (height, width, 3))
    photograph = rgb + generator.laplace(0, WIDTH, rgb.shape)
    there = np.zeros((height, width), bool)
    there[height // 4 : height // 2, width // 4 : width // 2] = True
    photograph[there] = [1.0, 0.0, 0.1]
    return torch.from_numpy(rgb), torch.from_numpy(photograph.clip(0, 1)), torch.from_numpy(there)


def by_the_equations(settings, rgb, alpha, photograph, mask):
    """Chances to show the scene, [H W], float64, of pictures so small that all of their pixels are sampled."""
    counted = np.ones(alpha.shape) if mask is None else mask.numpy().astype(float)
    errors = np.abs((rgb - photograph).numpy()).sum(-1) * counted
    square = np.ones((2 * settings.reach + 1,) * 2)
    means = convolve(errors, square, mode="constant") / np.maximum(convolve(counted, square, mode="constant"), 1)
    solid, doubt = counted * (alpha.numpy() > SOLID), DOUBT * counted.sum() + 1e-6
    seen, odds = solid, FIRST_LOG_ODDS
    for number in range(settings.rounds + 1):
        width = ((seen * errors).sum() + 3 * doubt * LARGEST) / (3 * (seen.sum() + doubt))
        width = np.clip(width, SMALLEST, LARGEST)
        # Bayes: three Laplace densities for the scene, the density 1 of the unit cube for a distractor.
        scene = np.exp(odds) * np.exp(-means / width) / (2 * width) ** 3
        chances = scene / (1 + scene)
        if number < settings.rounds:
            share = np.clip((counted * chances).sum() / max(counted.sum(), 1), RAREST_SCENE, 1 - RAREST_OTHER)
            seen, odds = solid * chances, np.log(share / (1 - share))
    left_out = 1 - (counted * chances).sum() / max(counted.sum(), 1)
    trust = np.clip((BLIND - width) / (BLIND - TELLING), 0, 1) * np.clip((left_out - FEW) / (SOME - FEW), 0, 1)
    return np.where(counted > 0, 1 - trust * (1 - chances), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernels", "torch"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("size", [(1, 1), (37, 5), (40, 64), (96, 90)], ids=str)
@pytest.mark.parametrize("settings", [Distractors(), Distractors(reach=0), Distractors(reach=4, rounds=2)], ids=repr)
def test_chances_are_those_of_the_equations(settings, size, masked, dtype):
    rgb, photograph, _ = photographed(*size)
    alpha = torch.rand(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(*size, generator=torch.Generator().manual_seed(2)) > 0.3 if masked else None
    expected = torch.from_numpy(by_the_equations(settings, rgb, alpha, photograph, mask))
    found = settings(rgb.to(dtype), alpha.to(dtype), photograph.to(dtype), alpha.to(dtype), mask)
    torch.testing.assert_close(found.chances.double(), expected, **CLOSE)
    blend = rgb + expected[..., None] * (photograph - rgb)
    within = torch.ones(size, dtype=torch.bool) if mask is None else mask
    torch.testing.assert_close(found.rgb.double()[within], blend[within], **CLOSE)


def test_what_stands_before_the_scene_is_found_and_nothing_else():
    rgb, photograph, there = (each.float() for each in photographed(200, 300))
    chances = Distractors()(rgb, torch.ones(200, 300), photograph).chances
    # Around its edge, as far as neighbours reach, means are of both.
    reach = Distractors().reach
    near = torch.nn.functional.max_pool2d(there[None], 2 * reach + 1, 1, reach)[0] > 0
    within = torch.nn.functional.avg_pool2d(there[None], 2 * reach + 1, 1, reach)[0] > 0.99
    assert chances[within].max() < 1e-3 and chances[~near].min() > 0.999


def test_a_clean_photograph_loses_nothing():
    rgb, _, _ = photographed(200, 300)
    noise = torch.from_numpy(np.random.default_rng(1).laplace(0, WIDTH, rgb.shape))
    chances = Distractors()(rgb.float(), torch.ones(200, 300), (rgb + noise).float()).chances
    assert chances.min() == 1


def test_of_a_hundredth_of_a_photograph_nothing_is_left_out():
    rgb, _, _ = (each.float() for each in photographed(200, 300))
    photograph = rgb.clone()
    photograph[:22, :22] = torch.tensor([1.0, 0.0, 0.1])  # .8 %
    assert Distractors()(rgb, torch.ones(200, 300), photograph).chances.min() == 1
    photograph[:60, :60] = torch.tensor([1.0, 0.0, 0.1])  # 6 %
    assert Distractors()(rgb, torch.ones(200, 300), photograph).chances[10, 10] < 0.001


@pytest.mark.parametrize("width", [0.1, 0.15, 0.25, 0.4])
def test_a_wrong_render_is_not_taken_for_distractors(width):
    # Everything is off, as early in a training: nothing is then told apart.
    rgb, _, _ = photographed(200, 300)
    off = torch.from_numpy(np.random.default_rng(1).laplace(0, width, rgb.shape))
    assert Distractors()(rgb.float(), torch.ones(200, 300), (rgb + off).float()).chances.mean() > 0.98


def test_nothing_rendered_tells_nothing():
    rgb, photograph, _ = (each.float() for each in photographed(60, 80))
    assert Distractors()(torch.zeros_like(rgb), torch.zeros(60, 80), photograph).chances.min() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernels", "torch"])
def test_a_reach_beyond_the_picture_is_all_of_it(dtype):
    rgb, photograph, _ = (each.to(dtype) for each in photographed(12, 20))
    alpha = torch.ones(12, 20, dtype=dtype)
    all_of_it, beyond = (Distractors(reach=reach)(rgb, alpha, photograph).chances for reach in (19, 10**9))
    assert torch.equal(all_of_it, beyond)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [np.s_[:], np.s_[15, 20]], ids=["everywhere", "one pixel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernels", "torch"])
def test_a_render_that_is_no_number_is_not_hidden_as_a_distractor(wrong, where, dtype):
    rgb, photograph, _ = (each.to(dtype) for each in photographed(40, 64))
    rgb[where] = wrong
    found = Distractors()(rgb, torch.ones(40, 64, dtype=dtype), photograph)
    assert not (rgb - found.rgb).abs().sum().isfinite()


def test_pictures_of_any_layout_are_taken():
    rgb, photograph, there = (each.float() for each in photographed(64, 40))
    mask, alpha = there < 2, torch.rand(64, 40, generator=torch.Generator().manual_seed(1))
    turned = [each.transpose(0, 1) for each in (rgb, alpha, photograph, alpha, mask)]
    found, expected = Distractors()(*turned), Distractors()(*(each.contiguous() for each in turned))
    assert expected.chances.min() < 0.01
    for name in ("rgb", "alpha", "chances"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_threads_do_not_change_a_bit(masked):
    rgb, photograph, _ = (each.float() for each in photographed(211, 307))
    mask = rgb[..., 0] > 0.3 if masked else None
    before, found = thread_count(), []
    try:
        for threads in (1, 2, 3):
            set_thread_count(threads)
            found.append(Distractors()(rgb, torch.ones(211, 307), photograph, None, mask))
    finally:
        set_thread_count(before)
    for other in found[1:]:
        assert torch.equal(found[0].rgb, other.rgb) and torch.equal(found[0].chances, other.chances)


def test_nothing_is_classified_before_every_photograph_was_seen_often():
    settings = Distractors(looks=10, latest=0.3)
    assert settings.first_step(50, 7000, 1) == 501 and settings.first_step(50, 7000, 2) == 251
    assert settings.first_step(50, 7000, 3) == 168  # after 166 steps there were 498 looks
    assert settings.first_step(50, 1000, 1) == 301 and Distractors(looks=0).first_step(50, 7000, 1) == 1


def test_a_distance_is_weighed_but_its_slope_is_whole():
    rgb, photograph, _ = photographed(40, 64)
    rgb.requires_grad_()
    whole = comparison(rgb, photograph)
    whole = replace(whole, alpha=torch.ones(40, 64, dtype=torch.float64))
    seen, chances = completed(whole, Distractors())
    _, total = weighted({"l1": L1(weight=1.0)}, seen)
    total.backward()
    # Of |x - (r y + (1 - r) x')| with x' held fast, at x' = x: the sign of x - y where r > 0, as of |x - y| itself ...
    gradient = torch.sign(rgb.detach() - photograph) / rgb.numel()
    sure = chances > 0.5
    torch.testing.assert_close(rgb.grad[sure], gradient[sure])
    # ... and its value is r |x - y|.
    expected = (chances[..., None] * (rgb.detach() - photograph).abs()).mean()
    torch.testing.assert_close(total.detach(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_a_cuda_device_finds_the_same(masked):
    rgb, photograph, _ = photographed(96, 90)
    mask = rgb[..., 0] > 0.3 if masked else None
    expected = torch.from_numpy(by_the_equations(Distractors(), rgb, torch.ones(96, 90), photograph, mask))
    moved = [
        None if each is None else each.to("cuda")
        for each in (rgb.float(), torch.ones(96, 90), photograph.float(), mask)
    ]
    found = Distractors()(moved[0], moved[1], moved[2], None, moved[3])
    torch.testing.assert_close(found.chances.double().cpu(), expected, **CLOSE)


def test_alpha_is_completed_too():
    rgb, photograph, _ = photographed(40, 64)
    alpha, known = torch.full((40, 64), 0.75, dtype=torch.float64), torch.ones(40, 64, dtype=torch.float64)
    found = Distractors()(rgb, alpha, photograph, known)
    torch.testing.assert_close(found.alpha, found.chances * known + (1 - found.chances) * alpha)


def test_nobody_waits_for_a_device():
    rgb, photograph, there = (each.to(META) for each in photographed(40, 64))
    with nobody_waits():
        found = Distractors()(rgb, rgb[..., 0], photograph, rgb[..., 1], there)
    assert found.rgb.shape == (40, 64, 3) and found.chances.shape == (40, 64)


def test_a_training_sees_the_scene_behind_what_stands_before_it(tmp_path):
    psnr = {}
    for name, setting in (("none", "distractors=null"), ("classes", "distractors={}")):
        assert cli.main([
            "train", str(REPOSITORY / "configs/toy.yaml"), f"output={tmp_path}", f"name={name}", "dataset.size=48",
            "dataset.num_train=24", "dataset.num_test=4", "dataset.points=400", "strategy.cap_max=1500", "steps=1000",
            "degradation.blocks=10", setting,
        ]) == 0  # fmt: skip
        psnr[name] = json.loads((tmp_path / name / "metrics.json").read_text())["psnr"]
    # A fifth of each photograph is hidden, which costs about a decibel; a quarter of it keeps the test from being about luck.
    assert psnr["classes"] > psnr["none"] + 0.25, psnr
