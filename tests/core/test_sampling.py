import math

import numpy as np
import pytest
import torch

from nfc_gs.core.sampling import choose_with_repeats, choose_without_repeats


def generator():
    return torch.Generator().manual_seed(0)


def test_draws_with_repeats_follow_the_weights_and_never_take_a_weight_of_zero():
    draws = choose_with_repeats(torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0]), 10_000, generator())
    shares = np.bincount(draws, minlength=5) / 10_000
    np.testing.assert_allclose(shares, [0, 0.25, 0, 0.75, 0], atol=4 * 0.5 / 100)  # four standard errors
    assert shares[[0, 2, 4]].sum() == 0


def test_pairs_without_repeats_have_the_probabilities_of_successive_draws():
    weights, source = torch.tensor([1.0, 2.0, 3.0, 0.0]), generator()
    pairs = [tuple(sorted(choose_without_repeats(weights, 2, source).tolist())) for _ in range(4000)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        p, q = float(weights[a]) / 6, float(weights[b]) / 6
        expected = p * q / (1 - p) + q * p / (1 - q)
        assert pairs.count((a, b)) / 4000 == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(4000))


def test_nothing_is_drawn_from_nobody():
    assert choose_without_repeats(torch.zeros(0), 0, generator()).shape == (0,)
    assert choose_without_repeats(torch.zeros(3), 0, generator()).shape == (0,)
