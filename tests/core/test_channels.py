"""Channels side by side and apart again, against torch's own concatenation and split."""

import pytest
import torch

from nfc_gs.core import channels
from nfc_gs.kernels.threads import set_thread_count, thread_count

WIDTHS = [[3], [3, 1], [3, 12, 4], [1, 24]]


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("count", [0, 1, 30_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_join_is_concatenation_and_gives_back_its_gradient(widths, count, dtype):
    generator = torch.Generator().manual_seed(count)
    parts = [torch.randn(count, width, generator=generator, dtype=dtype).requires_grad_() for width in widths]
    pull = torch.randn(count, sum(widths), generator=generator, dtype=dtype)
    joined = channels.join(parts)
    joined.backward(pull)
    assert torch.equal(joined, torch.cat(parts, 1))
    for part, wanted in zip(parts, pull.split(widths, 1), strict=True):
        assert torch.equal(part.grad, wanted)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("size", [(0, 4), (1, 1), (150, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cut_is_split_and_gives_back_its_gradient(widths, size, dtype):
    generator = torch.Generator().manual_seed(0)
    joined = torch.randn(*size, sum(widths), generator=generator, dtype=dtype, requires_grad=True)
    parts = channels.cut(joined, widths)
    for part, wanted in zip(parts, joined.split(widths, -1), strict=True):
        assert torch.equal(part, wanted)
    pulls = [torch.randn(part.shape, generator=generator, dtype=dtype) for part in parts]
    torch.autograd.backward(parts, pulls)
    assert torch.equal(joined.grad, torch.cat(pulls, -1))


def test_a_part_that_no_loss_looks_at_has_no_gradient():
    joined = torch.ones(2, 3, 4, requires_grad=True)
    channels.cut(joined, [3, 1])[0].sum().backward()
    assert torch.equal(joined.grad, torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(2, 3, 4))


def test_gradients_that_are_not_contiguous_are_read_as_they_are():
    joined = torch.zeros(5, 4, 6, requires_grad=True)
    pull = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).permute(2, 1, 0)
    channels.cut(joined, [3, 3])[1].backward(pull)
    assert torch.equal(joined.grad, torch.cat([torch.zeros(5, 4, 3), pull], -1))


def test_any_number_of_threads_gives_the_same_bits():
    parts = [torch.randn(50_001, width, generator=torch.Generator().manual_seed(width)) for width in (3, 5)]
    before = thread_count()
    try:
        set_thread_count(1)
        one = channels.join(parts)
        set_thread_count(3)
        assert torch.equal(channels.join(parts), one)
    finally:
        set_thread_count(before)
