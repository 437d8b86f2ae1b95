"""Tobit regression, against scipy-free closed forms and Fisher's identity."""

import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from nfc_gs.core.clipping import beyond, clipped, noise_of
from nfc_gs.losses.mse import MSE
from nfc_gs.losses.tobit import Tobit
from tests.losses.comparisons import HEIGHT, WIDTH, comparison, random

EXACT = {"rtol": 0, "atol": 1e-12}  # float64 sums of few terms
NOISE = 0.1


def half_clipped() -> tuple[Tensor, Tensor]:
    """A picture in (0, 1) and a photograph that is 0, 1 or between."""
    return 0.1 + 0.8 * random(1, HEIGHT, WIDTH, 3), (2 * random(2, HEIGHT, WIDTH, 3) - 0.5).clamp(0, 1)


def test_the_loss_of_three_numbers_is_what_a_table_of_the_normal_distribution_says() -> None:
    rgb, target = torch.tensor([0.7, 0.9, 0.15]).double(), torch.tensor([0.6, 1.0, 0.0]).double()
    below, above = NormalDist(0.9, NOISE), NormalDist(0.15, NOISE)
    expected = 0.1**2 - 2 * NOISE**2 * (math.log(1 - below.cdf(1.0)) + math.log(above.cdf(0.0)))
    loss = Tobit(noise=NOISE)(comparison(rgb.view(1, 1, 3), target.view(1, 1, 3)))
    # NormalDist.cdf of 0.9335 in float64, and the loss's decimals 0.7 - 0.6 come from float32.
    torch.testing.assert_close(loss.item(), expected / 3, rtol=1e-6, atol=0)


def test_the_gradient_is_that_of_finite_differences() -> None:
    rgb, target = half_clipped()
    assert (target == 0).any() and (target == 1).any()
    mask = random(3, HEIGHT, WIDTH) > 0.3
    case = comparison(rgb, target, mask)
    rgb.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Tobit(noise=NOISE)(replace(case, rgb=x)), rgb)


def test_the_gradient_is_mses_against_what_the_clipped_numbers_may_have_been() -> None:
    # Fisher's identity; the mean beyond an end is integrated here by brute force.
    rgb, target = half_clipped()
    low, high = clipped(target)
    guess = target.clone()
    for where, sign in ((high, 1.0), (low, -1.0)):
        for row, column, channel in where.nonzero().tolist():
            value = rgb[row, column, channel].item()
            end = (1 - value) if sign > 0 else value
            n = torch.linspace(end, end + 12 * NOISE, 400_001, dtype=torch.float64)
            density = (-0.5 * (n / NOISE) ** 2).exp()
            guess[row, column, channel] = value + sign * (n * density).sum() / density.sum()
    x = rgb.clone().requires_grad_()
    (by_tobit,) = torch.autograd.grad(Tobit(noise=NOISE)(comparison(x, target)), x)
    (by_mse,) = torch.autograd.grad(MSE()(comparison(x, guess)), x)
    torch.testing.assert_close(by_tobit, by_mse, rtol=1e-3, atol=1e-6)  # the integral's steps of 3e-6 s


def test_little_noise_leaves_the_square_of_what_is_missing_to_the_end() -> None:
    rgb = torch.tensor([0.9, 1.3, -0.2]).double().view(1, 1, 3)
    target = torch.tensor([1.0, 1.0, 0.0]).double().view(1, 1, 3)
    loss = Tobit(noise=1e-5)(comparison(rgb, target))
    torch.testing.assert_close(loss.item(), 0.1**2 / 3, rtol=1e-5, atol=0)  # log(s) terms of size s^2


@pytest.mark.parametrize("below", [-0.5, 0.0, 0.05, 0.4, 30.0])
def test_the_mean_beyond_an_end_is_finite_and_beyond_it(below: float) -> None:
    mean = beyond(torch.tensor(below, dtype=torch.float64), NOISE).item()
    assert max(below, 0) <= mean <= max(below, 0) + NOISE * math.sqrt(2 / math.pi) + 1e-12


@pytest.mark.parametrize("value", [0.5, 1.0, 0.0])
def test_the_noise_is_found_in_what_is_not_clipped(value: float) -> None:
    noise = NOISE * torch.randn(200, 200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    photograph = (value + noise).clamp(0, 1)
    found = noise_of(torch.full_like(photograph, value), photograph, None)
    assert found == pytest.approx(NOISE, rel=0.02)  # half a step of 8 bits, of the smallest noise, counts as clipped


def test_masked_pixels_say_nothing_of_the_noise_and_no_pixel_at_all_is_no_noise() -> None:
    rgb, target = torch.full((HEIGHT, WIDTH, 3), 0.5), torch.full((HEIGHT, WIDTH, 3), 0.6)
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    assert 0 < noise_of(rgb, target, mask) < 1 / 255
    mask[0, 0], target[1:] = True, 0.9
    assert noise_of(rgb, target, mask) == pytest.approx(0.1, rel=1e-5)  # float32
