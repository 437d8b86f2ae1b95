"""Words of logits decoded by the compiled kernel."""

import pytest
import torch

from nfc_gs.codes.base import chance, expected
from nfc_gs.kernels.threads import set_thread_count, thread_count

# Float32 sums of at most 16 sigmoids, each good to some roundings of 6e-8.
CLOSE = {"rtol": 2e-6, "atol": 1e-6}


@pytest.mark.parametrize("width", [1, 3, 4, 8, 16])
@pytest.mark.parametrize("shape", [(), (5,), (7, 3), (60_000, 3)])
def test_values_and_gradients_are_those_of_float64(shape, width):
    generator = torch.Generator().manual_seed(width)
    logits = 6 * torch.randn(*shape, width, generator=generator)
    weights = torch.rand(width, dtype=torch.float64, generator=generator)
    pull = torch.randn(shape, generator=generator)
    one, other = logits.clone().requires_grad_(), logits.double().requires_grad_()
    value, wanted = expected(one, weights), (other.sigmoid() * weights).sum(-1)
    value.backward(pull)
    wanted.backward(pull.double())
    torch.testing.assert_close(value.double(), wanted, **CLOSE)
    torch.testing.assert_close(one.grad.double(), other.grad, **CLOSE)


def test_logits_far_out_and_empty_ones_are_well():
    logits = torch.tensor([[-1e30, 1e30], [-200.0, 200.0], [-80.0, 0.0]], requires_grad=True)
    value = expected(logits, torch.tensor([1.0, 1.0], dtype=torch.float64))
    value.sum().backward()
    torch.testing.assert_close(value, torch.tensor([1.0, 1.0, 0.5]), rtol=0, atol=1e-6)
    assert logits.grad.isfinite().all() and float(logits.grad[2, 1]) == 0.25
    assert expected(torch.zeros(0, 3, 4), torch.ones(4)).shape == (0, 3)


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("place", range(17))
def test_a_logit_that_is_no_number_gives_a_value_that_is_none(place, width):
    logits = torch.zeros(17, width, requires_grad=True)
    with torch.no_grad():
        logits[place, place % width] = torch.nan
    values = expected(logits, torch.ones(width))
    assert torch.equal(values.isnan(), torch.arange(17) == place)
    values.sum().backward()
    assert int(logits.grad.isnan().sum()) == 1 and logits.grad[place, place % width].isnan()


def test_a_row_that_is_not_contiguous_is_read_as_it_is():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).T.requires_grad_()
    torch.testing.assert_close(expected(logits, torch.ones(4)), logits.sigmoid().sum(-1), **CLOSE)


@pytest.mark.parametrize("width", [3, 4, 8])
def test_any_number_of_threads_gives_the_same_bits(width):
    logits = torch.randn(200_001, width, generator=torch.Generator().manual_seed(0))
    before, results = thread_count(), []
    for threads in (1, 3):
        set_thread_count(threads)
        one = logits.clone().requires_grad_()
        value = expected(one, torch.full((width,), 0.25))
        value.cos().sum().backward()
        results.append((value, one.grad))
    set_thread_count(before)
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("width", "bit"), [(1, 0), (3, 2), (4, 0), (8, 5)])
@pytest.mark.parametrize("shape", [(0, 3), (), (5,), (60_001, 3)])
def test_one_bit_and_its_gradient_are_those_of_float64(shape, width, bit, threads):
    generator = torch.Generator().manual_seed(width)
    logits, pull = 6 * torch.randn(*shape, width, generator=generator), torch.randn(shape, generator=generator)
    one, other = logits.clone().requires_grad_(), logits.double().requires_grad_()
    before = thread_count()
    set_thread_count(threads)
    found, wanted = chance(one, bit), other[..., bit].sigmoid()
    found.backward(pull)
    set_thread_count(before)
    wanted.backward(pull.double())
    torch.testing.assert_close(found.double(), wanted, **CLOSE)
    torch.testing.assert_close(one.grad.double(), other.grad, **CLOSE)
