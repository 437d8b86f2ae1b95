"""Short trainings with each field: resumed exactly in every phase, and better than standing still."""

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


def trainer(field: str, *overrides: str) -> Trainer:
    files = [REPOSITORY / "configs/dynamic/dnerf.yaml", REPOSITORY / f"configs/dynamic/fields/{field}.yaml"]
    return run.build(load(Experiment, files, [*SMALL, *FIELDS.get(field, []), *overrides]))


def tensors(of: Trainer) -> dict[str, torch.Tensor]:
    values = dict(of.model.gaussians.items()) | of.model.field.state_dict() | of.optimizer.tensors()
    return {name: value.clone() for name, value in values.items()}


# One break in the warm-up, one at its end, one in the joint phase, and for bases one after the weights became sparse.
@pytest.mark.parametrize("broken_at", [5, 8, 13, 26])
@pytest.mark.parametrize("field", FIELDS)
def test_a_training_broken_off_in_any_phase_goes_on_exactly(field, broken_at, tmp_path):
    whole, first = trainer(field), trainer(field)
    for _ in range(32):
        whole.step()
    for _ in range(broken_at):
        first.step()
    checkpoint.save(first, tmp_path / "checkpoint.safetensors")
    second = trainer(field)
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
