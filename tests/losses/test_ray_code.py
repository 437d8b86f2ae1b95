"""Every Gaussian's code against the pixel's, by the double sum over pixels and Gaussians written out."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nfc_gs.codes.base import TargetCode
from nfc_gs.codes.binary import Binary
from nfc_gs.codes.identity import Identity
from nfc_gs.codes.thermometer import Thermometer
from nfc_gs.losses.base import Comparison
from nfc_gs.losses.ray_code import RayCode
from tests.losses.comparisons import HEIGHT, NUM_GAUSSIANS, WIDTH, blend, compositing, random, seen

EXACT = {"rtol": 0, "atol": 1e-12}  # float64 sums of few terms
TARGET = random(1, HEIGHT, WIDTH, 3)
BACKGROUND = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
CODES = [Thermometer(), Binary(bits=3, soft=1), Identity()]
LOSSES = [RayCode(turns=False), RayCode(turns=False, measure="error"), RayCode(), RayCode(measure="error")]


def drawn(loss: RayCode, code: TargetCode, logits: Tensor, step: int = 1) -> Comparison:
    """A comparison with the planes of `loss` composited, as the model does it."""
    case = seen(code, logits, TARGET, BACKGROUND)
    case = replace(case, appearance=replace(case.appearance, step=step))
    return replace(
        case, planes={"ray_code": blend(loss.planes(case.appearance), loss.background(BACKGROUND, case.appearance))}
    )


def logits_of(code: TargetCode) -> Tensor:
    return code.logits(random(7, NUM_GAUSSIANS, 3), False)


@pytest.mark.parametrize("measure", ["entropy", "error"])
@pytest.mark.parametrize("code", CODES, ids=repr)
def test_it_is_the_double_sum_over_pixels_and_gaussians(code: TargetCode, measure: str) -> None:
    loss = RayCode(turns=False, measure=measure)  # type: ignore[arg-type]
    logits = logits_of(code)
    words = Thermometer() if isinstance(code, Identity) else code
    case = drawn(loss, code, logits)
    chances = words.encode(case.appearance.base) if isinstance(code, Identity) else torch.sigmoid(logits)
    labels, behind, total = words.encode(TARGET), words.encode(BACKGROUND), 0.0

    def apart(p: Tensor, t: Tensor) -> float:
        if measure == "error":
            # Of two coins: one shows heads and the other tails.
            return float((p * (1 - t) + (1 - p) * t).sum())
        return float(torch.nn.functional.binary_cross_entropy(0.02 + 0.96 * p, t, reduction="sum"))

    for row in range(HEIGHT):
        for column in range(WIDTH):
            pixel = compositing()[row, column]
            for gaussian in range(NUM_GAUSSIANS):
                total += float(pixel[gaussian]) * apart(chances[gaussian], labels[row, column])
            total += float(1 - pixel.sum()) * apart(behind, labels[row, column])
    torch.testing.assert_close(float(loss(case)), total / labels.numel(), **EXACT)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("code", CODES, ids=repr)
def test_the_gradient_is_that_of_finite_differences(loss: RayCode, code: TargetCode) -> None:
    logits = logits_of(code).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(drawn(loss, code, x)), logits)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_pixels_outside_the_mask_do_not_count(loss: RayCode) -> None:
    mask = random(2, HEIGHT, WIDTH) > 0.4
    case = drawn(loss, Thermometer(), logits_of(Thermometer()))
    cut = replace(
        case,
        rgb=case.rgb[mask][None],
        target_rgb=case.target_rgb[mask][None],
        alpha=case.alpha[mask][None],
        planes={"ray_code": case.planes["ray_code"][mask][None]},
    )
    torch.testing.assert_close(loss(replace(case, mask=mask)), loss(cut), **EXACT)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("measure", ["entropy", "error"])
def test_bits_that_take_turns_are_the_whole_loss_in_the_mean(measure: str, every: int) -> None:
    code, loss = Thermometer(), RayCode(measure=measure, every=every)  # type: ignore[arg-type]
    whole = RayCode(measure=measure, turns=False)  # type: ignore[arg-type]
    steps = [step for step in range(7, 7 + 4 * every) if loss.acts(0.0, step)]
    turns = torch.stack([loss(drawn(loss, code, logits_of(code), step)) for step in steps])
    assert len(turns) == 4
    torch.testing.assert_close(turns.mean(), whole(drawn(whole, code, logits_of(code))), **EXACT)


def test_the_error_with_many_thresholds_is_the_mean_distance_along_the_ray() -> None:
    loss, code = RayCode(measure="error", turns=False, code=Thermometer(bits=64)), Identity()
    case = drawn(loss, code, logits_of(code))
    distance = 0.0
    for row in range(HEIGHT):
        for column in range(WIDTH):
            pixel = compositing()[row, column]
            apart = (case.appearance.base - TARGET[row, column]).abs()
            distance += float((pixel[:, None] * apart).sum())
            distance += float((1 - pixel.sum()) * (BACKGROUND - TARGET[row, column]).abs().sum())
    # Two values that share a step differ by up to 1/128 more than their distance says.
    assert float(loss(case)) == pytest.approx(distance / TARGET.numel(), abs=1 / 128)
