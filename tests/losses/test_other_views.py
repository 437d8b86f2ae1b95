"""What the other views say of each Gaussian: the sums over views, pixels and Gaussians written out."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nfc_gs.codes.base import TargetCode
from nfc_gs.codes.identity import Identity
from nfc_gs.codes.thermometer import Thermometer
from nfc_gs.losses.base import Comparison
from nfc_gs.losses.other_views import HARDLY, OtherViews
from tests.losses.comparisons import HEIGHT, NUM_GAUSSIANS, WIDTH, blend, compositing, random, seen

EXACT = {"rtol": 0, "atol": 1e-12}  # float64 sums of few terms
BACKGROUND = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
VIEWS = 3
PHOTOGRAPHS = [random(20 + view, HEIGHT, WIDTH, 3) for view in range(VIEWS)]
CODES = [Thermometer(bits=2), Identity()]


def words_of(code: TargetCode) -> TargetCode:
    """The code of the labels, which a model without one takes from the loss."""
    return Thermometer() if isinstance(code, Identity) else code


def memory_of(loss: OtherViews, code: TargetCode) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in loss.init(NUM_GAUSSIANS, code).items()}


def look(
    loss: OtherViews, code: TargetCode, memory: dict[str, Tensor], view: int, step: int, mask: Tensor | None = None
) -> Comparison:
    """A comparison with one view's photograph, with the planes of `loss` composited, as the trainer makes it."""
    logits = code.logits(random(7, NUM_GAUSSIANS, 3), False)
    case = seen(code, logits, PHOTOGRAPHS[view], BACKGROUND)
    everything = {"other_views": memory}
    looks = replace(case.appearance, step=step, view=view, memory=everything)
    planes = blend(loss.planes(looks), loss.background(BACKGROUND, looks))
    return replace(case, appearance=looks, memory=everything, planes={"other_views": planes}, mask=mask)


def after_all_views(loss: OtherViews, code: TargetCode, mask: Tensor | None = None) -> dict[str, Tensor]:
    """The memory after every view has been looked at with every bit."""
    memory = memory_of(loss, code)
    for view in range(VIEWS):
        for step in range(words_of(code).width):
            loss(look(loss, code, memory, view, step, mask))
    return memory


@pytest.mark.parametrize("code", CODES, ids=repr)
@pytest.mark.parametrize("masked", [False, True])
def test_a_label_is_the_mean_word_of_the_pixels_that_the_other_views_show(code: TargetCode, masked: bool) -> None:
    loss, words = OtherViews(views=VIEWS, doubt=0.2), words_of(code)
    mask = random(2, HEIGHT, WIDTH) > 0.4 if masked else None
    memory, view, bit = after_all_views(loss, code, mask), 1, 1
    found = loss.planes(look(loss, code, memory, view, step=bit + words.width).appearance)

    for gaussian in range(NUM_GAUSSIANS - 1):
        sums, weight = torch.zeros(3, dtype=torch.float64), 0.0
        own, own_weight = torch.zeros(3, dtype=torch.float64), 0.0
        for other in range(VIEWS):
            for row in range(HEIGHT):
                for column in range(WIDTH):
                    if mask is None or mask[row, column]:
                        w = float(compositing()[row, column, gaussian])
                        word = words.encode(PHOTOGRAPHS[other][row, column])[:, bit]
                        if other == view:
                            own, own_weight = own + w * word, own_weight + w
                        else:
                            sums, weight = sums + w * word, weight + w
        expected = (sums + 0.2 * own / own_weight) / (weight + 0.2)
        # Of its own label, a thousandth of a pixel's weight is everybody's.
        slack = 0.2 / (weight + 0.2) * HARDLY / own_weight
        torch.testing.assert_close(found[gaussian], expected, rtol=0, atol=slack)


@pytest.mark.parametrize("code", CODES, ids=repr)
@pytest.mark.parametrize("measure", ["entropy", "squared"])
def test_the_loss_is_that_of_the_composited_labels(code: TargetCode, measure: str) -> None:
    loss = OtherViews(views=VIEWS, measure=measure)  # type: ignore[arg-type]
    memory = after_all_views(loss, code)
    case = look(loss, code, memory, view=2, step=words_of(code).width)
    labels = words_of(code).encode(PHOTOGRAPHS[2])[..., 0]
    planes = case.planes["other_views"]
    assert (planes > 0.02).all() and (planes < 0.98).all()
    if measure == "entropy":
        expected = torch.nn.functional.binary_cross_entropy(planes, labels)
    else:
        expected = torch.nn.functional.mse_loss(planes, labels)
    torch.testing.assert_close(loss(case), expected, **EXACT)


def test_its_own_photograph_has_no_say_where_others_see_the_gaussian() -> None:
    code, loss = Thermometer(), OtherViews(views=VIEWS, doubt=1e-9)
    memory = after_all_views(loss, code)

    def labels(view: int) -> Tensor:
        # Without the Gaussian that is never seen.
        return loss.planes(look(loss, code, memory, view, step=4).appearance)[:-1]

    before = [labels(0), labels(1)]
    memory["sums"][:, 0, 0] = 0.7 * memory["weights"][:, 0, 0, None]
    torch.testing.assert_close(labels(0), before[0], rtol=0, atol=1e-7)
    assert (labels(1) - before[1]).abs().max() > 0.01


def test_what_no_other_view_sees_keeps_the_label_of_this_one() -> None:
    code, loss = Thermometer(), OtherViews(views=VIEWS)
    memory = memory_of(loss, code)
    loss(look(loss, code, memory, view=1, step=0))
    found = loss.planes(look(loss, code, memory, view=1, step=4).appearance)[:-1]
    seen_here = memory["sums"][:-1, 0, 1] / memory["weights"][:-1, 0, 1, None]
    # A thousandth of a pixel's weight is everybody's mean.
    torch.testing.assert_close(found, seen_here, rtol=0, atol=HARDLY / float(memory["weights"][:-1, 0, 1].min()))


def test_nothing_is_lost_before_anything_is_known() -> None:
    code, loss = Thermometer(), OtherViews(views=VIEWS)
    memory = memory_of(loss, code)
    assert float(loss(look(loss, code, memory, view=0, step=0))) == 0
    assert float(loss(look(loss, code, memory, view=1, step=4))) > 0
    assert float(loss(look(loss, code, memory, view=1, step=5))) == 0
