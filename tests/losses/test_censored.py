"""Clipped photographs: what is fitted to them is too dark, unless a loss knows that 1 means "at least 1"."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nfc_gs.codes.base import TargetCode
from nfc_gs.codes.binary import Binary
from nfc_gs.codes.identity import Identity
from nfc_gs.codes.thermometer import Thermometer
from nfc_gs.config import ConfigError
from nfc_gs.losses.base import LossTerm, mean_cross_entropy
from nfc_gs.losses.code_bce import CodeBCE
from nfc_gs.losses.mse import MSE
from nfc_gs.losses.tobit import Tobit
from tests.losses.comparisons import HEIGHT, NUM_GAUSSIANS, WIDTH, appearance, comparison, random, seen

EXACT = {"rtol": 0, "atol": 1e-12}  # float64 sums of few terms
NOISE = 0.1
SIDE = 16
HALVINGS = 16
# Logits are at an end only in the limit, and the middles of 256 shares lack what is rarer; a fifth of the bias sought.
FITTED = 0.008


def mean_after_clipping(value: float) -> float:
    """E[clip(value + n, 0, 1)] with normal n: the oracle, by the integral over noise that nobody clipped."""
    n = torch.linspace(-8 * NOISE, 8 * NOISE, 100_001, dtype=torch.float64)
    density = (-0.5 * (n / NOISE) ** 2).exp()
    return float(((value + n).clamp(0, 1) * density).sum() / density.sum())


def photographs(value: float) -> Tensor:
    """Photographs of one value, spoilt by noise of all sizes as often as they occur: the middles of equal shares of it."""
    shares = (torch.arange(SIDE * SIDE, dtype=torch.float64) + 0.5) / SIDE**2
    return (value + NOISE * torch.special.ndtri(shares)).clamp(0, 1).view(SIDE, SIDE, 1).expand(-1, -1, 3)


def fitted(loss: LossTerm, code: TargetCode, value: float) -> float:
    """What one Gaussian that fills the picture learns of photographs of `value`, as what is shown.

    Each of its logits has a minimum of its own, found by bisection of the slope, among colours near `value`.
    """
    target = photographs(value)
    plain = comparison(target, target, code=code)
    if isinstance(code, Identity):
        near = (min(value, 0.8), max(value, 0.2)) if value in (0.0, 1.0) else (0.8, 1.0)
        low, high = (code.logits(torch.full((1, 3), end, dtype=torch.float64), False) for end in near)
    else:
        low, high = (torch.full((1, 3, code.width), end, dtype=torch.float64) for end in (-8.0, 8.0))
    for _ in range(HALVINGS):
        logits = ((low + high) / 2).requires_grad_()
        looks = appearance(code, logits)
        rgb = looks.colours.expand(SIDE, SIDE, 3)
        planes = loss.planes(looks).expand(SIDE, SIDE, -1) if isinstance(loss, CodeBCE) else rgb
        case = replace(plain, rgb=rgb, appearance=looks, planes={"code_bce": planes})
        (slope,) = torch.autograd.grad(loss(case), logits)
        middle = logits.detach()
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    return float(code.values(low, False).mean())


CLASSIFIERS = [
    (CodeBCE(turns=False), Thermometer()),
    (CodeBCE(turns=False), Identity()),
    (CodeBCE(code=Thermometer(bits=2), turns=False), Identity()),
]
CENSORED = [(Tobit(), Identity()), *((replace(loss, censored=True), code) for loss, code in CLASSIFIERS)]


@pytest.mark.parametrize(("loss", "code"), [(MSE(), Identity()), *CLASSIFIERS], ids=repr)
@pytest.mark.parametrize("white", [True, False])
def test_white_and_black_under_clipped_noise_become_as_grey_as_the_clipped_mean(
    loss: LossTerm, code: TargetCode, white: bool
) -> None:
    grey = mean_after_clipping(float(white))
    assert abs(grey - white) == pytest.approx(NOISE / math.sqrt(2 * math.pi), abs=1e-6)
    assert fitted(loss, code, float(white)) == pytest.approx(grey, abs=FITTED)


@pytest.mark.parametrize(("loss", "code"), CENSORED, ids=repr)
@pytest.mark.parametrize("white", [True, False])
def test_censored_losses_find_white_and_black(loss: LossTerm, code: TargetCode, white: bool) -> None:
    assert fitted(loss, code, float(white)) == pytest.approx(float(white), abs=FITTED)


@pytest.mark.parametrize(("loss", "code"), [CENSORED[0], CENSORED[1], CENSORED[3]], ids=repr)
def test_censored_losses_find_what_is_clipped_now_and_then(loss: LossTerm, code: TargetCode) -> None:
    assert mean_after_clipping(0.95) < 0.931
    assert fitted(replace(loss, noise=NOISE), code, 0.95) == pytest.approx(0.95, abs=0.002)
    # With noise that it must find out itself, which it then finds a little too small.
    assert fitted(loss, code, 0.95) == pytest.approx(0.95, abs=FITTED)


def test_a_clipped_pixels_end_level_has_the_label_that_a_pencil_says() -> None:
    # A rendered top level of 1 - K s, one standard deviation below the end: hazard phi(1) / (1 - Phi(1)) = 1.525135.
    case = replace(
        comparison(
            torch.full((1, 1, 3), 0.9, dtype=torch.float64), torch.tensor([[[1.0, 0.0, 0.3]]], dtype=torch.float64)
        ),
        appearance=appearance(Thermometer(), Thermometer().logits(random(1, 2, 3), False)),
    )
    loss = CodeBCE(turns=False, censored=True, noise=0.1)
    planes = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1, 0.9, 0.4, 0.2, 0.1], dtype=torch.float64)
    labels = torch.tensor(
        [1, 1, 1, 0.6 + 0.4 * 1.5251352761609812, 0.4 - 0.4 * 1.5251352761609812, 0, 0, 0, 1, 0.2, 0, 0],
        dtype=torch.float64,
    )
    expected = -(labels * planes.log() + (1 - labels) * (1 - planes).log()).mean()
    torch.testing.assert_close(loss(replace(case, planes={"code_bce": planes.view(1, 1, 12)})), expected, **EXACT)


@pytest.mark.parametrize("code", [Thermometer(), Identity()], ids=repr)
@pytest.mark.parametrize("turns", [False, True])
def test_the_gradient_is_that_of_finite_differences_with_fixed_labels(code: TargetCode, turns: bool) -> None:
    target = (2 * random(2, HEIGHT, WIDTH, 3) - 0.5).clamp(0, 1)
    loss, width = CodeBCE(turns=turns, censored=True, noise=NOISE), 4
    for step in range(width if turns else 1):
        case = seen(code, code.logits(random(7, NUM_GAUSSIANS, 3), False), target, torch.zeros(3).double())
        case = replace(case, appearance=replace(case.appearance, step=step))
        planes = 0.05 + 0.9 * random(8 + step, HEIGHT, WIDTH, 3 if turns else 3 * width)
        labels = _labels(planes, target, width, step if turns else None)
        planes.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(replace(case, planes={"code_bce": planes})), planes)
        expected = _differences(lambda x, t=labels: mean_cross_entropy(x, t, None, 0.02), planes.detach())
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)  # central differences


def _labels(planes: Tensor, target: Tensor, width: int, bit: int | None) -> Tensor:
    """The labels by their definition, number by number."""
    labels = torch.empty(HEIGHT, WIDTH, 3, width, dtype=torch.float64)
    levels = planes[..., None].expand(*planes.shape, width) if bit is not None else planes.view(*labels.shape)
    spread = NOISE * width
    for index in torch.cartesian_prod(*(torch.arange(n) for n in labels.shape)).tolist():
        *pixel, j = index
        y, p = float(target[tuple(pixel)]), float(levels[tuple(index)])
        labels[tuple(index)] = min(max(width * y - j, 0), 1)
        if y == 1 and j == width - 1:
            labels[tuple(index)] = p + spread * _hazard((1 - p) / spread)
        elif y == 0 and j == 0:
            labels[tuple(index)] = p - spread * _hazard(p / spread)
    return labels[..., bit] if bit is not None else labels.flatten(2)


def _hazard(a: float) -> float:
    return math.exp(-0.5 * a * a) / math.sqrt(2 * math.pi) / (0.5 * math.erfc(a / math.sqrt(2)))


def _differences(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    slopes = torch.empty_like(at).flatten()
    for i in range(at.numel()):
        step = torch.zeros_like(slopes)
        step[i] = 1e-5
        step = step.view_as(at)
        slopes[i] = (function(at + step) - function(at - step)) / 2e-5
    return slopes.view_as(at)


def test_where_nothing_is_clipped_censoring_changes_nothing() -> None:
    target = 0.1 + 0.8 * random(2, HEIGHT, WIDTH, 3)
    case = seen(
        Thermometer(), Thermometer().logits(random(7, NUM_GAUSSIANS, 3), False), target, torch.zeros(3).double()
    )
    case = replace(case, planes={"code_bce": random(8, HEIGHT, WIDTH, 12)})
    assert CodeBCE(turns=False, censored=True)(case) == CodeBCE(turns=False)(case)


def test_without_noise_a_clipped_label_is_the_end_itself() -> None:
    target = torch.ones(HEIGHT, WIDTH, 3, dtype=torch.float64)
    case = seen(
        Thermometer(), Thermometer().logits(random(7, NUM_GAUSSIANS, 3), False), target, torch.zeros(3).double()
    )
    case = replace(case, planes={"code_bce": 0.9 * random(8, HEIGHT, WIDTH, 12)})
    plain, censored = CodeBCE(turns=False)(case), CodeBCE(turns=False, censored=True, noise=1e-7)(case)
    torch.testing.assert_close(plain, censored, rtol=0, atol=1e-6)  # of the order of the noise


@pytest.mark.parametrize("code", [Binary(bits=4), Thermometer(soft=False)], ids=repr)
def test_codes_without_a_level_that_goes_on_are_refused(code: TargetCode) -> None:
    logits = code.logits(random(7, NUM_GAUSSIANS, 3), False)
    with pytest.raises(ConfigError, match=r"losses\.code_bce: censored=true needs a code of soft levels"):
        CodeBCE(censored=True).planes(appearance(code, logits))
