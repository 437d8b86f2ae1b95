"""docs/library.md does what it says: its own blocks are run."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[1] / "docs" / "library.md"
# Everything learnt must come this near to the known scene, in dB, from a side it has not seen; a black picture and the
# best plain colour are asserted to be far below.
NEAR, FAR = 22.0, 14.0
# Sums of some 1,700 numbers in float32, in another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def page(blocks):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    names: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    torch.manual_seed(1)
    names["unseen"] = names["view"]()
    yield names
    torch.set_num_threads(threads)


def decibels(render, truth):
    return float(-10 * (render - truth).square().mean().log10())


RENDERS = {
    "network, regressor": lambda page: page["regressed"](page["unseen"]),
    "network, classifier": lambda page: page["code"].decode(page["probabilities"](page["unseen"])),
    "voxels, regressor": lambda page: page["regressed_voxels"](page["unseen"]),
    "voxels, classifier": lambda page: page["code"].decode(page["voxel_probabilities"](page["unseen"])),
}


@torch.no_grad()
@pytest.mark.parametrize("field", RENDERS)
def test_every_field_learns_the_known_scene_as_seen_from_elsewhere(page, field):
    truth = page["composite"](*page["scene"](page["unseen"]))
    assert decibels(torch.zeros_like(truth), truth) < FAR
    assert decibels(truth.mean(0), truth) < FAR
    assert decibels(RENDERS[field](page), truth) > NEAR


@torch.no_grad()
def test_probabilities_decode_to_the_mean_of_the_thresholds_passed(page):
    words = page["probabilities"](page["unseen"])
    torch.testing.assert_close(page["code"].decode(words), words.sum(-1) / 4, **ROUNDING)


def test_a_classifier_takes_ten_lines(blocks):
    turned = [block for block in blocks if block.startswith("code = ")]
    assert len(turned) == 2
    for block in turned:
        assert len([line for line in block.splitlines() if line.strip()]) <= 10


@torch.no_grad()
def test_losses_of_configs_are_the_means_of_their_formulas(page):
    p, c = page["words"].double(), page["rgb"].double()
    # The soft word, written out: how far each colour is above each quarter.
    t = (4 * c[..., None] - torch.arange(4)).clamp(0, 1)
    inner = p.clamp(0.02, 0.98)
    slope = (inner - t) / (inner * (1 - inner))
    entropy = -t * inner.log() - (1 - t) * (1 - inner).log() + (p - inner) * slope
    torch.testing.assert_close(page["by_word"].double(), entropy.mean(), **ROUNDING)
    assert torch.isfinite(page["by_value"])
