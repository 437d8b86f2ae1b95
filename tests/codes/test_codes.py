"""What holds for every code."""

import pytest
import torch
from hypothesis import given
from hypothesis.strategies import floats, lists
from torch import Tensor

from nfc_gs.codes.base import TargetCode
from nfc_gs.codes.binary import Binary
from nfc_gs.codes.gray import Gray
from nfc_gs.codes.identity import Identity
from nfc_gs.codes.thermometer import Thermometer

EXACT = {"rtol": 0, "atol": 1e-12}  # float64 sums of at most 256 terms
PROMISED = {"rtol": 0, "atol": 1e-4}  # what `logits` promises

WORDS = [Binary(bits=8), Binary(bits=1), Gray(bits=8), Gray(bits=3), Thermometer(bits=8, soft=False)]
SOFT = [Binary(soft=2), Gray(soft=1), Thermometer(bits=4), Thermometer(bits=64)]
BOUNDED = [*WORDS, *SOFT, Binary(bits=16), Gray(bits=16), Gray(margin=0.5), Thermometer(bits=4, margin=6.0)]
LINEAR = [Binary(bits=6), Thermometer(bits=4), Identity()]


def levels(code: TargetCode) -> Tensor:
    """The values that hard words stand for."""
    steps = code.width if isinstance(code, Thermometer) else 2**code.width - 1
    return torch.arange(steps + 1, dtype=torch.float64) / steps


@pytest.mark.parametrize("code", [*WORDS, Thermometer(bits=4), Binary(bits=16), Gray(bits=16)], ids=repr)
def test_every_level_comes_back_from_its_word(code: TargetCode) -> None:
    torch.testing.assert_close(code.decode(code.encode(levels(code))), levels(code), **EXACT)


@pytest.mark.parametrize("code", [*WORDS, *SOFT], ids=repr)
def test_hard_words_are_bits_and_decode_to_the_nearest_level(code: TargetCode) -> None:
    values = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    words = code.words(values)
    assert set(words.unique().tolist()) <= {0.0, 1.0}
    nearest = (values[:, None] - levels(code)).abs().min(1).values
    torch.testing.assert_close((code.decode(words) - values).abs(), nearest, **EXACT)


@pytest.mark.parametrize("code", [Binary(bits=4), Gray(bits=4), Thermometer(bits=4, soft=False)], ids=repr)
@given(probabilities=lists(floats(0, 1), min_size=4, max_size=4))
def test_decoding_gives_the_expected_value_over_all_words(code: TargetCode, probabilities: list[float]) -> None:
    chances = torch.tensor(probabilities, dtype=torch.float64)
    words = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4)
    places = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64) / 15
    if isinstance(code, Thermometer):
        meaning = words.sum(1) / 4
    elif isinstance(code, Gray):
        meaning = (words.cumsum(1) % 2) @ places  # binary bit i is the parity of the first i + 1 Gray bits
    else:
        meaning = words @ places
    likelihood = torch.where(words == 1, chances, 1 - chances).prod(1)
    torch.testing.assert_close(code.decode(chances), likelihood @ meaning, **EXACT)


@pytest.mark.parametrize("code", BOUNDED, ids=repr)
@pytest.mark.parametrize("unit", [True, False])
def test_logits_mean_exactly_the_value_they_were_made_from(code: TargetCode, unit: bool) -> None:
    values = torch.cat([torch.linspace(0, 1, 256), torch.rand(200, generator=torch.Generator().manual_seed(1))])
    logits = code.logits(values.view(4, -1), unit)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(code.values(logits, unit).flatten(), values.clamp(1 / 512, 1 - 1 / 512), **PROMISED)
    # A logit of 20 is certain in float32 and would never learn.
    assert logits.abs().max() < 20


@pytest.mark.parametrize("code", [code for code in BOUNDED if code.width > 1], ids=repr)
def test_the_bits_of_a_new_word_never_all_agree(code: TargetCode) -> None:
    logits = code.logits(torch.linspace(0, 1, 256), False)
    assert (logits.max(-1).values - logits.min(-1).values).min() > 0.01


@pytest.mark.parametrize("code", LINEAR, ids=repr)
def test_decoding_commutes_with_compositing_for_linear_codes(code: TargetCode) -> None:
    assert code.linear
    blended, decoded = composite(code)
    torch.testing.assert_close(blended, decoded, **EXACT)


def test_decoding_does_not_commute_with_compositing_for_gray() -> None:
    assert not Gray().linear
    blended, decoded = composite(Gray(bits=6))
    assert (blended - decoded).abs().max() > 0.05


def composite(code: TargetCode) -> tuple[Tensor, Tensor]:
    """decode(sum w p) and sum w decode(p) for weights that sum to one, as over a background."""
    generator = torch.Generator().manual_seed(2)
    weights = torch.rand(50, 5, dtype=torch.float64, generator=generator)
    weights /= weights.sum(1, keepdim=True)
    chances = torch.rand(50, 5, code.width, dtype=torch.float64, generator=generator)
    return code.decode((weights[..., None] * chances).sum(1)), (weights * code.decode(chances)).sum(1)


@pytest.mark.parametrize("code", [Binary(bits=5), Gray(bits=5), Thermometer(bits=5), Identity()], ids=repr)
@pytest.mark.parametrize("unit", [True, False])
def test_values_have_the_gradient_of_finite_differences(code: TargetCode, unit: bool) -> None:
    logits = torch.randn(4, code.width, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: code.values(x, unit), logits)


@pytest.mark.parametrize("code", [*WORDS, *SOFT], ids=repr)
def test_extreme_logits_give_finite_values_and_gradients(code: TargetCode) -> None:
    logits = torch.tensor([-1e4, 1e4]).repeat_interleave(code.width).view(2, -1).requires_grad_()
    values = code.values(logits, True)
    values.sum().backward()
    assert values.isfinite().all() and logits.grad is not None and logits.grad.isfinite().all()


def train(logits: Tensor, code: TargetCode, steps: int) -> Tensor:
    """`steps` of 3DGS's Adam on the squared error of decoded values towards a target that moves."""
    logits = logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.02, eps=1e-15)
    targets = torch.rand(steps, len(logits), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for target in targets:
        optimizer.zero_grad()
        (code.values(logits, True) - target).square().sum().backward()
        optimizer.step()
    return logits.detach()


def test_equal_logits_move_in_lock_step_and_are_one_sigmoid() -> None:
    start = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    code, one = Binary(bits=8), Binary(bits=1)
    bits, single = train(start.repeat(1, 8), code, 300), train(start, one, 300)
    # Adam forgets the place values but for its epsilon, 1e-15 against gradients of 1e-3.
    torch.testing.assert_close(bits, single.repeat(1, 8), rtol=0, atol=1e-6)
    torch.testing.assert_close(code.values(bits, True), one.values(single, True), rtol=0, atol=1e-6)


@pytest.mark.parametrize("code", [Binary(bits=8), Thermometer(bits=4)], ids=repr)
def test_bits_that_start_as_words_do_not_move_in_lock_step(code: TargetCode) -> None:
    start = code.logits(torch.linspace(0, 1, 7, dtype=torch.float64), True)
    moved = train(start, code, 300) - start
    assert (moved.max(-1).values - moved.min(-1).values).min() > 0.01
