"""Per-Gaussian labels, against the double sum over pixels and Gaussians written out."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nfc_gs.codes.base import TargetCode
from nfc_gs.codes.binary import Binary
from nfc_gs.codes.gray import Gray
from nfc_gs.codes.identity import Identity
from nfc_gs.codes.thermometer import Thermometer
from nfc_gs.config import ConfigError
from nfc_gs.losses.base import Comparison
from nfc_gs.losses.label_bce import LabelBCE
from tests.losses.comparisons import HEIGHT, NUM_GAUSSIANS, WIDTH, compositing, random, seen

EXACT = {"rtol": 0, "atol": 1e-12}  # float64 sums of few terms
TARGET = random(1, HEIGHT, WIDTH, 3)
MASK = random(2, HEIGHT, WIDTH) > 0.4


def looked_at(code: TargetCode, logits: Tensor, step: int = 0, mask: Tensor | None = None) -> Comparison:
    """A comparison with an empty memory."""
    memory = {name: tensor.double() for name, tensor in LabelBCE().init(NUM_GAUSSIANS, code).items()}
    case = seen(code, logits, TARGET, torch.zeros(3, dtype=torch.float64))
    return replace(case, memory={"label_bce": memory}, step=step, mask=mask)


@pytest.mark.parametrize("code", [Binary(bits=4), Gray(bits=4), Thermometer(), Binary(bits=4, soft=1)], ids=repr)
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_the_first_gradient_is_that_of_the_double_sum(code: TargetCode, mask: Tensor | None) -> None:
    logits = code.logits(random(7, NUM_GAUSSIANS, 3), False).requires_grad_()
    (gradient,) = torch.autograd.grad(LabelBCE(every=1)(looked_at(code, logits, mask=mask)), logits)

    words, chances = code.encode(TARGET), torch.sigmoid(logits)
    total = torch.zeros((), dtype=torch.float64)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            if mask is None or mask[row, column]:
                for gaussian in range(NUM_GAUSSIANS):
                    total = total + compositing()[row, column, gaussian] * torch.nn.functional.binary_cross_entropy(
                        chances[gaussian], words[row, column], reduction="sum"
                    )
    (expected,) = torch.autograd.grad(total / (HEIGHT * WIDTH * 3 * code.width), logits)
    torch.testing.assert_close(gradient, expected, **EXACT)
    assert (gradient[-1] == 0).all()  # the Gaussian that is not seen


def test_labels_are_faded_means_over_the_views_in_which_a_gaussian_was_seen() -> None:
    code = Binary(bits=2)
    logits = code.logits(random(7, NUM_GAUSSIANS, 3), False).requires_grad_()
    loss, case = LabelBCE(decay=0.5, every=1), looked_at(code, logits)
    loss(case)
    second = replace(case, target_rgb=1 - TARGET)
    (gradient,) = torch.autograd.grad(loss(second), logits)

    weights = compositing().sum((0, 1))
    sums = [torch.einsum("hwn,hwck->nck", compositing(), code.encode(t)) for t in (TARGET, 1 - TARGET)]
    labels = (0.5 * sums[0] + sums[1]) / (1.5 * weights)[:, None, None]
    expected = weights[:, None, None] * (torch.sigmoid(logits) - labels) / (HEIGHT * WIDTH * 3 * 2)
    torch.testing.assert_close(gradient[:-1], expected[:-1], **EXACT)


def test_it_acts_every_second_step_and_twice_as_strongly() -> None:
    code = Thermometer()
    logits = code.logits(random(7, NUM_GAUSSIANS, 3), False)
    assert LabelBCE()(looked_at(code, logits, step=3)) == 0
    each = LabelBCE(every=1)(looked_at(code, logits, step=4))
    torch.testing.assert_close(LabelBCE()(looked_at(code, logits, step=4)), 2 * each, **EXACT)


def test_confident_wrong_bits_give_a_bounded_gradient() -> None:
    code = Binary(bits=4)
    logits = torch.full((NUM_GAUSSIANS, 3, 4), 50.0, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(LabelBCE(every=1)(looked_at(code, logits)), logits)
    bound = compositing().sum((0, 1))[:, None, None] / (HEIGHT * WIDTH * 12)
    assert (gradient.abs() <= bound + 1e-12).all() and gradient.abs().max() > 0


def test_it_starts_when_there_is_something_to_label_and_needs_bits() -> None:
    assert not LabelBCE().active(0.05) and LabelBCE().active(0.1)
    with pytest.raises(ConfigError, match=r"losses\.label_bce: code identity has no bits"):
        LabelBCE().init(3, Identity())
