"""Thermometer words."""

import pytest
import torch
from pydantic import ValidationError

from nfc_gs.codes.thermometer import Thermometer

EXACT = {"rtol": 0, "atol": 1e-12}  # float64 sums of few terms


def test_soft_labels_fill_one_threshold_after_the_other() -> None:
    labels = Thermometer(bits=4).encode(torch.tensor([0.0, 0.3, 1.0, 2.0], dtype=torch.float64))
    expected = torch.tensor([[0, 0, 0, 0], [1, 0.2, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.float64)
    torch.testing.assert_close(labels, expected, **EXACT)


def test_soft_labels_decode_to_any_value_exactly() -> None:
    values = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Thermometer(bits=5).decode(Thermometer(bits=5).encode(values)), values, **EXACT)


def test_soft_labels_are_differentiable_in_the_value() -> None:
    values = torch.tensor([0.13, 0.61], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Thermometer(bits=4).encode, values)


def test_hard_words_are_ones_and_then_zeros() -> None:
    assert Thermometer(bits=4, soft=False).encode(torch.tensor([0.12, 0.13, 0.6])).tolist() == [
        [0, 0, 0, 0],
        [1, 0, 0, 0],
        [1, 1, 0, 0],
    ]


def test_the_code_of_a_blend_is_not_the_blend_of_the_codes() -> None:
    code = Thermometer(bits=4)
    colours = torch.tensor([0.0, 1.0])
    assert (code.encode(colours).mean(0) - code.encode(colours.mean())).abs().max() == 0.5


def test_widths_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValidationError, match="bits must be 1 to 64, found 65"):
        Thermometer(bits=65)
