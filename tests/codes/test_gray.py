"""Gray words."""

import torch

from nfc_gs.codes.gray import Gray

EXACT = {"rtol": 0, "atol": 1e-12}  # float64 sums of few terms


def test_gray_neighbours_differ_in_one_bit() -> None:
    words = Gray(bits=8).encode(torch.arange(256) / 255)
    assert (words.diff(dim=0).abs().sum(1) == 1).all()
    assert len(words.unique(dim=0)) == 256


def test_the_words_of_two_bits_are_the_textbook_ones() -> None:
    assert Gray(bits=2).encode(torch.arange(4) / 3).tolist() == [[0, 0], [0, 1], [1, 1], [1, 0]]


def test_soft_labels_are_uncertain_only_where_neighbours_differ() -> None:
    # Levels 3, 4, 5 of 8: 010, 110, 111.
    label = Gray(bits=3, soft=1).encode(torch.tensor(4 / 7, dtype=torch.float64))
    torch.testing.assert_close(label, torch.tensor([2 / 3, 1, 1 / 3], dtype=torch.float64), **EXACT)
