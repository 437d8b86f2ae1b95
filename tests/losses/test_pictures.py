"""The losses that look only at the picture: l1, mse, dssim, value_bce, alpha_bce, opacity and scale."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from nfc_gs.config import ConfigError
from nfc_gs.core.ssim import mean_ssim
from nfc_gs.kernels.threads import set_thread_count, thread_count
from nfc_gs.losses.alpha_bce import AlphaBCE
from nfc_gs.losses.base import LossTerm, cross_entropy, masked_mean, mean_cross_entropy, mean_distance
from nfc_gs.losses.dssim import DSSIM
from nfc_gs.losses.l1 import L1
from nfc_gs.losses.mse import MSE
from nfc_gs.losses.opacity import Opacity
from nfc_gs.losses.ray_variance import RayVariance
from nfc_gs.losses.scale import Scale
from nfc_gs.losses.value_bce import ValueBCE
from tests.losses.comparisons import HEIGHT, WIDTH, comparison, random

EXACT = {"rtol": 0, "atol": 1e-12}  # float64 sums of few terms
SINGLE = {"rtol": 1e-6, "atol": 1e-9}  # float32 differences and slopes, float64 sums
RGB, TARGET = random(0, HEIGHT, WIDTH, 3), random(1, HEIGHT, WIDTH, 3)
MASK = random(2, HEIGHT, WIDTH) > 0.4
SATURATED = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64).expand(HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("loss", [L1(), MSE(), DSSIM()], ids=repr)
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_equal_pictures_have_no_loss(loss: LossTerm, mask: Tensor | None) -> None:
    torch.testing.assert_close(loss(comparison(TARGET, TARGET, mask)).item(), 0.0, **EXACT)


def test_l1_mse_and_value_bce_are_what_a_pencil_says() -> None:
    # One pixel: differences 0.2, 0 and 0.4.
    rgb = torch.tensor([[[0.5, 0.3, 0.8]]], dtype=torch.float64)
    target = torch.tensor([[[0.7, 0.3, 0.4]]], dtype=torch.float64)
    case = comparison(rgb, target)
    torch.testing.assert_close(L1()(case).item(), 0.2, **EXACT)
    torch.testing.assert_close(MSE()(case).item(), (0.04 + 0.16) / 3, **EXACT)
    entropy = math.log(0.5) + 0.3 * math.log(0.3) + 0.7 * math.log(0.7) + 0.4 * math.log(0.8) + 0.6 * math.log(0.2)
    torch.testing.assert_close(ValueBCE()(case).item(), -entropy / 3, **EXACT)


@pytest.mark.parametrize("loss", [L1(), MSE(), DSSIM(), ValueBCE()], ids=repr)
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_the_gradient_is_that_of_finite_differences(loss: LossTerm, mask: Tensor | None) -> None:
    # 1.3: a picture may be brighter than white.
    rgb = (RGB * 1.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(comparison(x, TARGET, mask)), rgb)


@pytest.mark.parametrize("loss", [L1(), MSE(), ValueBCE()], ids=repr)
def test_pixels_outside_the_mask_do_not_count(loss: LossTerm) -> None:
    rows = RGB[MASK][None], TARGET[MASK][None]
    torch.testing.assert_close(loss(comparison(RGB, TARGET, MASK)), loss(comparison(*rows)), **EXACT)


def test_a_mask_without_pixels_gives_zero_and_no_gradient() -> None:
    rgb = RGB.clone().requires_grad_()
    nothing = torch.zeros_like(MASK)
    for loss in (L1(), DSSIM()):
        value = loss(comparison(rgb, TARGET, nothing))
        (gradient,) = torch.autograd.grad(value, rgb)
        assert value == 0 and (gradient == 0).all()


def test_a_masked_mean_is_the_mean_of_the_pixels_that_count() -> None:
    torch.testing.assert_close(masked_mean(RGB, MASK), RGB[MASK].mean(), **EXACT)
    torch.testing.assert_close(masked_mean(RGB[..., 0], MASK), RGB[..., 0][MASK].mean(), **EXACT)


@pytest.mark.parametrize("squared", [False, True], ids=["absolute", "squared"])
@pytest.mark.parametrize("mask", [None, MASK, torch.zeros_like(MASK)], ids=["whole", "masked", "nothing"])
def test_the_compiled_distance_agrees_with_double_precision(squared: bool, mask: Tensor | None) -> None:
    rgb, target = (RGB * 1.3).float(), TARGET.float()
    rgb[0, :2] = target[0, :2]  # no slope where the colours are equal
    single, double = rgb.clone().requires_grad_(), rgb.double().requires_grad_()
    found, expected = (
        mean_distance(single, target, mask, squared),
        mean_distance(double, target.double(), mask, squared),
    )
    torch.testing.assert_close(found.double(), expected, **SINGLE)
    (slope,) = torch.autograd.grad(3 * found, single)
    torch.testing.assert_close(slope.double(), torch.autograd.grad(3 * expected, double)[0], **SINGLE)


def test_the_compiled_distance_is_the_same_on_any_number_of_threads() -> None:
    rgb, target = RGB.float(), TARGET.float()
    before, values = thread_count(), set()
    for threads in (1, 2, 3):
        set_thread_count(threads)
        values.add(mean_distance(rgb, target, MASK, squared=False).item())
    set_thread_count(before)
    assert len(values) == 1


def test_dssim_is_one_minus_ssim() -> None:
    torch.testing.assert_close(DSSIM()(comparison(RGB, TARGET, MASK)), 1 - mean_ssim(RGB, TARGET, MASK), **EXACT)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1e-9, 1.0, 3.0])
def test_value_bce_is_finite_wherever_colours_go(value: float) -> None:
    rgb = torch.full_like(SATURATED, value).requires_grad_()
    loss = ValueBCE()(comparison(rgb, SATURATED))
    (gradient,) = torch.autograd.grad(loss, rgb)
    assert loss.isfinite() and gradient.isfinite().all()
    # The steepest slope is 1 / eps, shared by all numbers.
    assert gradient.abs().max() <= 1 / (ValueBCE().eps * rgb.numel()) * 1.01


def test_value_bce_leads_back_from_the_wrong_end_and_never_past_a_saturated_target() -> None:
    rgb = torch.tensor([[[0.0, 1.2, 1.2], [1.2, -0.1, 1.0]]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[[1.0, 0.0, 0.5], [1.0, 0.0, 1.0]]], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(ValueBCE()(comparison(rgb, target)), rgb)
    assert gradient.sign().tolist() == [[[-1, 1, 1], [0, 0, 0]]]


def test_the_minimiser_of_value_bce_is_the_target() -> None:
    rgb = TARGET.clamp(0.01, 0.99).requires_grad_()
    (gradient,) = torch.autograd.grad(ValueBCE()(comparison(rgb, rgb.detach())), rgb)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), **EXACT)


def test_cross_entropy_is_torchs_within_its_bounds_and_its_tangent_beyond() -> None:
    chances, labels = random(3, 50) * 0.9 + 0.05, random(4, 50)
    torch.testing.assert_close(
        cross_entropy(chances, labels, 0.05),
        torch.nn.functional.binary_cross_entropy(chances, labels, reduction="none"),
        **EXACT,
    )
    edge = torch.tensor([0.05], dtype=torch.float64, requires_grad=True)
    value = torch.nn.functional.binary_cross_entropy(edge, labels[:1])
    (slope,) = torch.autograd.grad(value, edge)
    beyond = torch.tensor([-0.2], dtype=torch.float64)
    torch.testing.assert_close(cross_entropy(beyond, labels[:1], 0.05), value.detach() + slope * (-0.25), **EXACT)


def test_cross_entropy_has_the_gradient_of_finite_differences_everywhere() -> None:
    chances = (random(5, 60) * 1.4 - 0.2).requires_grad_()
    labels = random(6, 60).round(decimals=0)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels, 0.1), chances)


@pytest.mark.parametrize("eps", [0.02, 1e-3])
def test_the_compiled_cross_entropy_agrees_with_double_precision(eps: float) -> None:
    # More numbers than one chunk of the kernel holds, and not a multiple of it.
    chances, labels = (random(8, 5003) * 1.4 - 0.2).requires_grad_(), random(9, 5003).round()
    single = chances.detach().float().requires_grad_()
    found, expected = cross_entropy(single, labels.float(), eps), cross_entropy(chances, labels, eps)
    # 1 - p keeps 24 bits of 1, so that its share of eps is uncertain by 6e-8 / eps.
    torch.testing.assert_close(found.double(), expected, rtol=1e-7 / eps, atol=1e-6)
    (slope,) = torch.autograd.grad(found.sum(), single)
    torch.testing.assert_close(slope.double(), torch.autograd.grad(expected.sum(), chances)[0], rtol=1e-7 / eps, atol=0)


@pytest.mark.parametrize("mask", [None, MASK, torch.zeros_like(MASK)], ids=["whole", "masked", "nothing"])
@pytest.mark.parametrize("numbers", [(), (3,), (3000,)], ids=repr)  # of a pixel; a row of many is done in chunks
def test_the_compiled_mean_cross_entropy_agrees_with_double_precision(mask: Tensor | None, numbers: tuple) -> None:
    chances = (random(10, HEIGHT, WIDTH, *numbers) * 1.4 - 0.2).requires_grad_()
    labels = random(11, HEIGHT, WIDTH, *numbers)
    single = chances.detach().float().requires_grad_()
    found = mean_cross_entropy(single, labels.float(), mask, 0.02)
    expected = mean_cross_entropy(chances, labels, mask, 0.02)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    (slope,) = torch.autograd.grad(3 * found, single)
    torch.testing.assert_close(slope.double(), torch.autograd.grad(3 * expected, chances)[0], rtol=1e-5, atol=1e-9)


def test_the_compiled_mean_cross_entropy_is_the_same_on_any_number_of_threads() -> None:
    before, values = thread_count(), set()
    for threads in (1, 2, 3):
        set_thread_count(threads)
        values.add(mean_cross_entropy(RGB.float(), TARGET.float(), MASK, 0.02).item())
    set_thread_count(before)
    assert len(values) == 1


def test_alpha_bce_is_the_cross_entropy_of_the_silhouette() -> None:
    alpha, target = RGB[..., 0] * 0.8 + 0.1, TARGET[..., 0]
    case = replace(comparison(RGB, TARGET), alpha=alpha, target_alpha=target)
    torch.testing.assert_close(AlphaBCE()(case), torch.nn.functional.binary_cross_entropy(alpha, target), **EXACT)
    empty = replace(case, alpha=torch.zeros_like(alpha), target_alpha=torch.ones_like(target))
    assert AlphaBCE()(empty).isfinite()


def test_alpha_bce_without_alpha_says_so_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^losses\.alpha_bce: the data set has no alpha.*$"):
        AlphaBCE()(comparison(RGB, TARGET))


def test_opacity_and_scale_are_means() -> None:
    case = comparison(RGB, TARGET)
    torch.testing.assert_close(Opacity()(case), case.opacities.sum() / len(case.opacities), **EXACT)
    torch.testing.assert_close(Scale()(case), case.scales.sum() / case.scales.numel(), **EXACT)


def test_a_loss_acts_from_its_start_until_before_its_stop() -> None:
    loss = L1(start=0.25, stop=0.5)
    assert [loss.active(share) for share in (0.0, 0.25, 0.49, 0.5, 1.0)] == [False, True, True, False, False]
    assert not L1(weight=0.0).active(0.5)


def test_a_loss_of_every_third_step_acts_at_steps_3_6_and_so_on_between_start_and_stop() -> None:
    loss = RayVariance(every=3, stop=0.5)
    assert [step for step in range(1, 11) if loss.acts(0.0, step)] == [3, 6, 9]
    assert not loss.acts(0.5, 3)
    with pytest.raises(ValidationError, match="every"):
        RayVariance(every=0)


def test_the_weights_of_3dgs_are_the_defaults() -> None:
    assert (L1().weight, DSSIM().weight) == (0.8, 0.2)
