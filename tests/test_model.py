"""What a photograph becomes before it is compared with a picture."""

import numpy as np
import pytest
import torch

from nfc_gs.core.scene import Photograph
from nfc_gs.kernels.threads import thread_count
from nfc_gs.model import target_of
from nfc_gs.training.run import use_threads

EXACT = {"rtol": 0, "atol": 0}  # one rounding of each operation, whoever does it


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = thread_count()
    yield
    use_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("transparent", [False, True])
def test_a_photograph_is_255ths_over_the_background_whatever_the_threads(threads: int, transparent: bool) -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (17, 23, 3), dtype=np.uint8)
    alpha = rng.integers(0, 256, (17, 23), dtype=np.uint8) if transparent else None
    background = rng.random(3, dtype=np.float32)
    expected = rgb.astype(np.float32) / np.float32(255)
    if alpha is not None:
        expected = expected + (1 - alpha.astype(np.float32) / np.float32(255))[..., None] * background
    use_threads(threads)
    target = target_of(Photograph(rgb=rgb, alpha=alpha), torch.from_numpy(background))
    torch.testing.assert_close(target.rgb, torch.from_numpy(expected), **EXACT)
    assert (target.alpha is None) == (alpha is None)
    if alpha is not None:
        torch.testing.assert_close(target.alpha, torch.from_numpy(alpha.astype(np.float32) / np.float32(255)), **EXACT)


def test_a_photograph_in_double_precision_is_the_same_picture() -> None:
    rng = np.random.default_rng(1)
    photograph = Photograph(
        rgb=rng.integers(0, 256, (5, 4, 3), dtype=np.uint8), alpha=rng.integers(0, 256, (5, 4), dtype=np.uint8)
    )
    background = torch.tensor([0.1, 0.5, 1.0])
    plain = target_of(photograph, background.double()).rgb
    # Three roundings of numbers below two.
    torch.testing.assert_close(target_of(photograph, background).rgb.double(), plain.double(), rtol=0, atol=4e-7)
