"""Binary words."""

import pytest
import torch
from pydantic import ValidationError

from nfc_gs.codes.binary import Binary

EXACT = {"rtol": 0, "atol": 1e-12}  # float64 sums of few terms


def test_203_is_the_word_of_the_paper() -> None:
    assert Binary(bits=8).encode(torch.tensor(203 / 255)).tolist() == [1, 1, 0, 0, 1, 0, 1, 1]


def test_words_are_the_binary_digits_of_the_level() -> None:
    words = Binary(bits=8).encode(torch.arange(256) / 255)
    assert ["".join(str(int(bit)) for bit in word) for word in words] == [f"{level:08b}" for level in range(256)]


def test_soft_labels_are_the_mean_of_the_neighbouring_words() -> None:
    # Level 1 of 8 and its neighbours 0 and 2: 001, 000, 010.
    label = Binary(bits=3, soft=1).encode(torch.tensor(1 / 7, dtype=torch.float64))
    torch.testing.assert_close(label, torch.tensor([0, 1 / 3, 1 / 3], dtype=torch.float64), **EXACT)


def test_values_outside_are_clamped() -> None:
    assert Binary(bits=2).encode(torch.tensor([-3.0, 7.0])).tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("bits", [0, 17])
def test_widths_that_do_not_exist_are_refused_with_the_range(bits: int) -> None:
    with pytest.raises(ValidationError, match=f"bits must be 1 to 16, found {bits}"):
        Binary(bits=bits)


def test_a_negative_softness_is_refused() -> None:
    with pytest.raises(ValidationError, match="soft must be 0"):
        Binary(soft=-1)
