"""The losses that composite more than colour: code_bce, bit_bce and ray_variance."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from nfc_gs.codes.base import TargetCode
from nfc_gs.codes.binary import Binary
from nfc_gs.codes.gray import Gray
from nfc_gs.codes.identity import Identity
from nfc_gs.codes.thermometer import Thermometer
from nfc_gs.config import ConfigError
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Splats
from nfc_gs.losses.base import Comparison, PlaneLoss, weighted
from nfc_gs.losses.bit_bce import BitBCE
from nfc_gs.losses.code_bce import CodeBCE
from nfc_gs.losses.ray_variance import RayVariance
from nfc_gs.rasterizers.reference import Reference
from tests.losses.comparisons import (
    HEIGHT,
    NUM_GAUSSIANS,
    WIDTH,
    appearance,
    blend,
    comparison,
    compositing,
    random,
    seen,
)

EXACT = {"rtol": 0, "atol": 1e-12}  # float64 sums of few terms
TARGET = random(1, HEIGHT, WIDTH, 3)
BACKGROUND = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)


def drawn(loss: PlaneLoss, kind: str, code: TargetCode, logits: Tensor, target: Tensor = TARGET) -> Comparison:
    """A comparison with the planes of `loss` composited, as the model does it."""
    case = seen(code, logits, target, BACKGROUND)
    return replace(
        case, planes={kind: blend(loss.planes(case.appearance), loss.background(BACKGROUND, case.appearance))}
    )


def logits_of(code: TargetCode) -> Tensor:
    return code.logits(random(7, NUM_GAUSSIANS, 3), False)


CASES = [
    (CodeBCE(turns=False), "code_bce", Thermometer()),
    (CodeBCE(turns=False), "code_bce", Binary(bits=3, soft=1)),
    (CodeBCE(turns=False), "code_bce", Identity()),
    (CodeBCE(), "code_bce", Thermometer(bits=3)),
    (CodeBCE(), "code_bce", Identity()),
    (CodeBCE(code=Thermometer(bits=3), turns=False), "code_bce", Binary(bits=4)),
    (CodeBCE(code=Identity(), turns=False), "code_bce", Thermometer()),
    (BitBCE(), "bit_bce", Binary(bits=4)),
    (BitBCE(weights="place"), "bit_bce", Gray(bits=3)),
    (RayVariance(), "ray_variance", Binary(bits=4)),
    (RayVariance(), "ray_variance", Identity()),
    (RayVariance(around="mean"), "ray_variance", Binary(bits=4)),
]


@pytest.mark.parametrize(("loss", "kind", "code"), CASES, ids=repr)
def test_the_gradient_is_that_of_finite_differences(loss: PlaneLoss, kind: str, code: TargetCode) -> None:
    logits = logits_of(code).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(drawn(loss, kind, code, x)), logits)


@pytest.mark.parametrize(("loss", "kind", "code"), CASES, ids=repr)
def test_pixels_outside_the_mask_do_not_count(loss: PlaneLoss, kind: str, code: TargetCode) -> None:
    mask = random(2, HEIGHT, WIDTH) > 0.4
    case = drawn(loss, kind, code, logits_of(code))
    cut = replace(
        case,
        rgb=case.rgb[mask][None],
        target_rgb=case.target_rgb[mask][None],
        alpha=case.alpha[mask][None],
        planes={kind: case.planes[kind][mask][None]},
    )
    torch.testing.assert_close(loss(replace(case, mask=mask)), loss(cut), **EXACT)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "width", [WIDTH, 16, 37]
)  # a row of 3 W numbers: fewer than sixteen, whole sixteens, and a rest
def test_labels_that_the_kernel_makes_of_the_photograph_are_those_of_double_precision(width: int, masked: bool) -> None:
    code = Thermometer()
    target = random(21, HEIGHT, width, 3) * 1.2 - 0.1  # also beyond both ends
    chances = random(22, HEIGHT, width, 3) * 1.4 - 0.2
    mask = random(23, HEIGHT, width) > 0.4 if masked else None
    for step in range(1, 5):
        looks = appearance(code, logits_of(code), step)
        case = replace(comparison(chances, target, mask), appearance=looks, planes={"code_bce": chances})
        leaf = chances.clone().requires_grad_()
        expected = CodeBCE()(replace(case, planes={"code_bce": leaf}))
        single = chances.float().requires_grad_()
        compiled = replace(case, target_rgb=target.float(), planes={"code_bce": single})
        _, found = weighted({"code_bce": CodeBCE(weight=1.0)}, compiled)
        # eps is 0.02, so that 24 bits of 1 - p are 3e-6 of it.
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
        slopes = torch.autograd.grad(found, single)[0].double(), torch.autograd.grad(expected, leaf)[0]
        torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-6)


def test_code_bce_of_one_pixel_is_what_a_pencil_says() -> None:
    # Target 0.3 in 4 thresholds is 1, 0.2, 0, 0.
    case = seen(Thermometer(), logits_of(Thermometer()), torch.full_like(TARGET, 0.3), BACKGROUND)
    planes = torch.tensor([0.9, 0.4, 0.2, 0.1], dtype=torch.float64).repeat(3).expand(HEIGHT, WIDTH, 12)
    chances = torch.tensor([0.9, 0.4**0.2 * 0.6**0.8, 0.8, 0.9], dtype=torch.float64)
    loss = CodeBCE(turns=False)(replace(case, planes={"code_bce": planes}))
    torch.testing.assert_close(loss, -chances.log().mean(), **EXACT)


def test_code_bce_of_a_code_uses_its_probabilities_and_the_code_of_the_background() -> None:
    code, loss = Thermometer(), CodeBCE(turns=False)
    looks = seen(code, logits_of(code), TARGET, BACKGROUND).appearance
    torch.testing.assert_close(loss.planes(looks).view(-1, 3, 4), torch.sigmoid(looks.colour_logits), **EXACT)
    expected = [0.4, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0.6]
    torch.testing.assert_close(loss.background(BACKGROUND, looks), torch.tensor(expected).double(), rtol=0, atol=1e-7)


def test_code_bce_without_a_code_is_thermometer_4_of_the_base_colours() -> None:
    code = Identity()
    looks = seen(code, logits_of(code), TARGET, BACKGROUND).appearance
    torch.testing.assert_close(
        CodeBCE(turns=False).planes(looks), Thermometer(bits=4).encode(looks.base).flatten(1), **EXACT
    )
    assert len(CodeBCE(turns=False).background(BACKGROUND, looks)) == 12


@pytest.mark.parametrize(
    "code", [Thermometer(bits=3), Thermometer(bits=5, soft=False), Binary(bits=4, soft=1), Identity()]
)
@pytest.mark.parametrize("every", [1, 2, 3, 4])
def test_bits_that_take_turns_are_the_whole_loss_in_the_mean(code: TargetCode, every: int) -> None:
    logits = logits_of(code).requires_grad_()
    whole = CodeBCE(turns=False)(drawn(CodeBCE(turns=False), "code_bce", code, logits))
    width = 4 if isinstance(code, Identity) else code.width
    loss = CodeBCE(every=every)
    turns = []
    for step in (step for step in range(7, 7 + every * width) if loss.acts(0.0, step)):
        case = seen(code, logits, TARGET, BACKGROUND)
        case = replace(case, appearance=replace(case.appearance, step=step))
        planes = blend(loss.planes(case.appearance), loss.background(BACKGROUND, case.appearance))
        assert planes.shape[-1] == 3
        turns.append(loss(replace(case, planes={"code_bce": planes})))
    assert len(turns) == width
    mean = torch.stack(turns).mean()
    torch.testing.assert_close(mean, whole, **EXACT)
    torch.testing.assert_close(torch.autograd.grad(mean, logits)[0], torch.autograd.grad(whole, logits)[0], **EXACT)


def test_code_bce_rewards_agreement_along_the_ray_where_colour_sees_none() -> None:
    # Black and white in equal parts are grey; so are two greys.
    def loss_of(*colours: float) -> float:
        codes = Thermometer().encode(torch.tensor(colours, dtype=torch.float64)).mean(0)
        grey = torch.full_like(TARGET, 0.5)
        case = replace(
            seen(Thermometer(), logits_of(Thermometer()), grey, BACKGROUND),
            planes={"code_bce": codes.repeat(3).expand(HEIGHT, WIDTH, 12)},
        )
        return CodeBCE(turns=False)(case).item()

    assert loss_of(0.5, 0.5) < 0.1 < loss_of(0.0, 1.0)


@pytest.mark.parametrize("code", [Binary(), Gray(), Thermometer(soft=False)], ids=repr)
def test_code_bce_refuses_labels_without_gradient(code: TargetCode) -> None:
    with pytest.raises(ValidationError, match="code must be a soft thermometer or identity"):
        CodeBCE(code=code)


def test_bit_bce_is_torchs_cross_entropy_with_hard_words() -> None:
    code = Binary(bits=4, soft=2)
    case = drawn(BitBCE(), "bit_bce", code, logits_of(code))
    levels = (TARGET * 15).round().int()
    words = torch.stack([levels // 8 % 2, levels // 4 % 2, levels // 2 % 2, levels % 2], -1).double().flatten(2)
    planes = case.planes["bit_bce"]
    assert (planes > 0.02).all() and (planes < 0.98).all()
    each = torch.nn.functional.binary_cross_entropy(planes, words, reduction="none")
    torch.testing.assert_close(BitBCE()(case), each.mean(), **EXACT)
    places = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64) * 4 / 15
    torch.testing.assert_close(BitBCE(weights="place")(case), (each * places.repeat(3)).mean(), **EXACT)


def test_bit_bce_needs_bits() -> None:
    code = Identity()
    with pytest.raises(ConfigError, match=r"losses\.bit_bce: code identity has no bits"):
        BitBCE().planes(seen(code, logits_of(code), TARGET, BACKGROUND).appearance)


def test_ray_variance_is_the_weighted_squared_error_of_all_that_is_on_the_ray() -> None:
    code = Thermometer()
    case = drawn(RayVariance(), "ray_variance", code, logits_of(code))
    weights, colours = compositing(), case.appearance.colours
    total = torch.zeros((), dtype=torch.float64)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            pixel = weights[row, column]
            total += (pixel[:, None] * (colours - TARGET[row, column]).square()).sum()
            total += (1 - pixel.sum()) * (BACKGROUND - TARGET[row, column]).square().sum()
    torch.testing.assert_close(RayVariance()(case), total / TARGET.numel(), **EXACT)


def test_ray_variance_is_zero_only_where_all_agree_with_the_target() -> None:
    target = BACKGROUND.expand(HEIGHT, WIDTH, 3)
    code = Identity()
    agreed = code.logits(BACKGROUND.expand(NUM_GAUSSIANS, 3), False)
    loss = RayVariance()(drawn(RayVariance(), "ray_variance", code, agreed, target))
    torch.testing.assert_close(loss.item(), 0.0, **EXACT)


def test_the_variance_alone_is_that_of_the_weighted_colours_of_every_ray() -> None:
    code, loss = Binary(bits=4), RayVariance(around="mean")
    case = drawn(loss, "ray_variance", code, logits_of(code))
    weights = torch.cat([compositing(), 1 - compositing().sum(-1, keepdim=True)], -1)
    colours = torch.cat([case.appearance.colours, BACKGROUND[None]])
    total = torch.zeros((), dtype=torch.float64)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            pixel = weights[row, column, :, None]
            mean = (pixel * colours).sum(0)
            total += (pixel * (colours - mean).square()).sum()
    torch.testing.assert_close(loss(case), total / TARGET.numel(), **EXACT)
    # It does not look at the photograph, and is what `around: photograph` has more than the squared error.
    other = replace(case, target_rgb=1 - TARGET)
    assert loss(other) == loss(case)
    torch.testing.assert_close(loss(case), RayVariance()(case) - (case.rgb - TARGET).square().mean(), **EXACT)


def test_the_variance_of_two_splats_and_a_background_on_one_ray() -> None:
    # Rendered, not composited by hand: weights .5, .5 x .4 and .3 over white at the splats' common middle.
    middle = {
        "means": [[0.0, 0.0, 2.0], [0.0, 0.0, 3.0]],
        "quats": [[1.0, 0.0, 0.0, 0.0]] * 2,
        "scales": [[0.1] * 3] * 2,
    }
    splats = {name: torch.tensor(values, dtype=torch.float64) for name, values in middle.items()}
    colours = torch.tensor([[0.2, 0.4, 0.9], [0.7, 0.1, 0.5]], dtype=torch.float64)
    loss, code, white = RayVariance(around="mean"), Identity(), torch.ones(3, dtype=torch.float64)
    looks = appearance(code, code.logits(colours, False))
    camera = Camera(world_to_camera=torch.eye(4), focal=(50.0, 50.0), centre=(1.5, 1.5), width=3, height=3)
    rendering = Reference()(
        Splats(
            **splats,
            opacities=torch.tensor([0.5, 0.4], dtype=torch.float64),
            values=torch.cat([looks.colours, loss.planes(looks)], 1),
        ),
        camera,
        torch.cat([white, loss.background(white, looks)]),
    )
    rgb, planes = (part[1:2, 1:2] for part in rendering.channels.split(3, -1))
    case = comparison(rgb, torch.zeros_like(rgb))
    weights = torch.tensor([[0.5], [0.2], [0.3]], dtype=torch.float64)
    every = torch.cat([colours, white[None]])
    expected = (weights * (every - (weights * every).sum(0)).square()).sum(0).mean()
    torch.testing.assert_close(loss(replace(case, planes={"ray_variance": planes})), expected, rtol=0, atol=1e-9)
