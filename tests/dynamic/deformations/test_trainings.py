"""Short trainings with each field: resumed exactly in every phase, and better than standing still."""

from pathlib import Path

import pytest
import torch

from nfc_gs.config import load
from nfc_gs.training import checkpoint, run
from nfc_gs.training.experiment import Experiment
from nfc_gs.training.trainer import Trainer
from tests.conftest import REPOSITORY

FIELDS = {
    "bases": ["deformation.bones=6", "deformation.keep=2"],
    "hexplane": ["deformation.resolution=8", "deformation.width_of_network=8", "deformation.head_width=8",
                 "deformation.residuals.colour=0.1", "deformation.residuals.opacity_logits=1"],
    "mlp": ["deformation.width_of_network=8", "time.jitter=0.5"],
}  # fmt: skip
SMALL = [
    "steps=40", "threads=1", "dataset.kind=dynamic.datasets.toy", "dataset.size=32", "dataset.num_train=8",
    "dataset.num_test=2", "initial.random=150", "strategy.cap_max=250", "strategy.every=5", "rasterizer.kind=cpu",
    "deformation.warm_up=0.2",
]  # fmt: skip


def trainer(field: str, *overlays: str) -> Trainer:
    files = ["dynamic/dnerf", f"dynamic/fields/{field}", *overlays]
    paths = [REPOSITORY / f"configs/{file}.yaml" for file in files]
    return run.build(load(Experiment, paths, [*SMALL, *FIELDS[field]]))


def tensors(of: Trainer) -> dict[str, torch.Tensor]:
    values = dict(of.model.gaussians.items()) | of.model.field.state_dict() | of.optimizer.tensors()
    for memory in of.memory.values():
        values |= memory
    return {name: value.clone() for name, value in values.items()}


# Classification in 4D, with static codes and with the ablations: the field and what lies over it.
CLASSIFIED = {
    "static_codes": ("bases", ["methods/nfc"]),
    "labels": ("bases", ["methods/nfc", "dynamic/nfc/labels"]),
    "residual": ("mlp", ["methods/nfc", "dynamic/nfc/residual"]),
    "offsets": ("mlp", ["methods/nfc", "dynamic/nfc/offsets"]),
}


# One break in the warm-up, one at its end, one in the joint phase, and for bases one after the weights became sparse.
@pytest.mark.parametrize("broken_at", [5, 8, 13, 26])
@pytest.mark.parametrize("field", FIELDS)
def test_a_training_broken_off_in_any_phase_goes_on_exactly(field, broken_at, tmp_path):
    assert_goes_on(field, [], broken_at, tmp_path)


# Broken off while the composited codes are still classified: the loss stops at step 24 of 40.
@pytest.mark.parametrize("way", CLASSIFIED)
def test_a_classified_training_broken_off_goes_on_exactly(way, tmp_path):
    assert_goes_on(*CLASSIFIED[way], 18, tmp_path)


def assert_goes_on(field: str, overlays: list[str], broken_at: int, tmp_path: Path) -> None:
    whole, first = trainer(field, *overlays), trainer(field, *overlays)
    for _ in range(32):
        whole.step()
    for _ in range(broken_at):
        first.step()
    checkpoint.save(first, tmp_path / "checkpoint.safetensors")
    second = trainer(field, *overlays)
    checkpoint.restore(second, tmp_path / "checkpoint.safetensors")
    while second.done < 32:
        second.step()
    wanted, got = tensors(whole), tensors(second)
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        assert torch.equal(value, got[name]), name


@pytest.mark.parametrize("field", FIELDS)
def test_nothing_of_the_field_is_learned_in_the_warm_up_and_something_after_it(field):
    learning = trainer(field)
    born = {name: value.clone() for name, value in learning.model.field.named_parameters()}
    for _ in range(8):
        learning.step()
    for name, value in learning.model.field.named_parameters():
        assert torch.equal(value, born[name]), name
    for _ in range(8):
        learning.step()
    assert any(not torch.equal(value, born[name]) for name, value in learning.model.field.named_parameters())


@pytest.mark.parametrize("way", CLASSIFIED)
def test_classification_reaches_the_bits_of_a_scene_that_moves_and_only_networks_change_colours(way):
    field, overlays = CLASSIFIED[way]
    learning = trainer(field, *overlays)
    kind = "label_bce" if way == "labels" else "code_bce"
    seen = [learning.step().terms.get(kind) for _ in range(20)]
    assert any(term is not None and term > 0 for term in seen)
    model = learning.model
    assert model.gaussians.colour_logits.shape[1:] == (3, 4)
    (first, before), (last, after) = model.at(0.1), model.at(0.9)
    assert not torch.equal(first.means, last.means)
    assert torch.equal(first.colour_logits, last.colour_logits) == (way != "offsets")
    assert torch.equal(before, after) == (way in ("static_codes", "labels"))
    if way == "residual":
        still = model.code.values(model.gaussians.colour_logits, unit=False)
        # Float32 rounding of the sum.
        assert float((after - still).abs().max()) <= 0.1 + 1e-6
