"""A step makes the program wait for no device: see `tests.waiting`; gsplat's place is taken by something of its shapes."""

from types import SimpleNamespace

import pytest
import torch

from nfc_gs.captures.feed import smaller
from nfc_gs.config import load
from nfc_gs.core.scene import Pixels
from nfc_gs.deformations.base import DeformationField
from nfc_gs.rasterizers import gsplat
from nfc_gs.rasterizers.gsplat import Gsplat
from nfc_gs.training import run
from nfc_gs.training.experiment import Experiment
from tests.conftest import REPOSITORY
from tests.waiting import META, nobody_waits

SMALL = [
    "dataset.size=24", "dataset.num_train=6", "dataset.num_test=1", "dataset.points=150", "steps=20", "threads=1",
    "rasterizer.kind=gsplat",
]  # fmt: skip
STILL, MOVING = "configs/toy.yaml", "configs/dynamic/toy.yaml"
RUNS = {
    "regression": [STILL],
    "nfc": [STILL, "configs/methods/nfc.yaml"],
    "batch": [STILL, "batch=2"],
    "packed": [STILL, "rasterizer.packed=true", "batch=2"],
    "classic": [STILL, "strategy.kind=classic", "strategy.absgrad=true"],
    "mcmc": [STILL, "strategy.kind=mcmc"],
    "average": [STILL, "optimizer.average=1"],
    "rounding": [STILL, "rounding.colour_bits=4", "rounding.opacity_bits=4", "rounding.start=0"],
    "labels": [STILL, "code.kind=binary", "losses.label_bce.weight=0.3", "losses.label_bce.start=0"],
    "other views": [STILL, "losses.other_views.weight=0.3", "losses.other_views.start=0"],
    "bases": [MOVING, "deformation.rigidity=0.1"],
    "hexplane": [MOVING, "configs/dynamic/fields/hexplane.yaml"],
    "mlp": [MOVING, "configs/dynamic/fields/mlp.yaml"],
}


class _Drawing(torch.autograd.Function):
    """Pictures of the right shape, with gradients for all that is drawn."""

    @staticmethod
    def forward(ctx, means2d, values, cameras, width, height):
        ctx.likes = means2d, values
        return values.new_empty(cameras, height, width, values.shape[-1]), values.new_empty(cameras, height, width, 1)

    @staticmethod
    def backward(ctx, by_pictures, by_alphas):
        means2d, values = ctx.likes
        means2d.absgrad = torch.empty_like(means2d)
        return torch.empty_like(means2d), torch.empty_like(values), None, None, None


def rasterization(*, means, quats, scales, opacities, colors, viewmats, width, height, packed, **others):
    """What `gsplat.rasterization` returns, as far as shapes go."""
    cameras, count = len(viewmats), len(means)
    everything = torch.cat([means, quats, scales, opacities[:, None]], 1)
    projected = (everything[:, :2] + viewmats[:, None, 0, :2]) if not packed else everything[:, :2].repeat(cameras, 1)
    pictures, alphas = _Drawing.apply(projected, colors, cameras, width, height)
    shape = projected.shape[:-1]
    numbers = torch.empty(cameras * count, dtype=torch.int64, device=META) if packed else None
    return pictures, alphas, {
        "means2d": projected, "radii": torch.empty(*shape, 2, dtype=torch.int32, device=META),
        "gaussian_ids": numbers, "camera_ids": numbers,
    }  # fmt: skip


def spherical_harmonics(degree, directions, coefficients):
    return coefficients.sum(1) + directions


@pytest.fixture
def trainer_of(monkeypatch):
    """Makes trainers whose device is "meta"."""
    package = SimpleNamespace(rasterization=rasterization, spherical_harmonics=spherical_harmonics)
    monkeypatch.setattr(gsplat, "_gsplat", lambda: package)
    monkeypatch.setattr(Gsplat, "device", "meta")
    # On the device, but for what is drawn there with a generator of its own, and for what goes there by page-locked memory.
    for module in ("nfc_gs.strategies.mcmc", "nfc_gs.core.sampling"):
        monkeypatch.setattr(f"{module}.standard_normals", lambda like, generator: torch.empty_like(like))
    for module in ("nfc_gs.training.trainer", "dynamic.deformations.bases"):
        monkeypatch.setattr(f"{module}.sent", lambda tensor, device: torch.empty_like(tensor, device=device))
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *groups, fused, **settings: adam(*groups, **settings))
    moved = torch.nn.Module._apply

    def move(self, change):
        # One number cannot come back from "meta".
        return moved(self, lambda tensor: change(tensor) if tensor.ndim else tensor)

    monkeypatch.setattr(DeformationField, "_apply", move)
    made = []

    def make(*settings):
        files = [REPOSITORY / text for text in settings if text.endswith(".yaml")]
        rest = [text for text in settings if not text.endswith(".yaml")]
        trainer = run.build(load(Experiment, files, [*SMALL, *rest]))
        made.append(trainer)
        pictures = [smaller(trainer.photographs.get(view), 1) for view in range(len(trainer.scene.train))]
        there = [Pixels.of(picture).map(lambda tensor: tensor.to(META)) for picture in pictures]
        monkeypatch.setattr(trainer.feed, "get", lambda wanted: there[wanted.view])
        return trainer

    yield make
    for trainer in made:
        trainer.photographs.close()
        trainer.held_out.close()
        trainer.feed.close()


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_a_step_asks_the_device_for_nothing(trainer_of, settings):
    trainer = trainer_of(*settings)
    # In the first steps things are made and kept, and it is looked whether the loss is a number.
    if hasattr(trainer.model.field, "awake"):
        trainer.model.field.awake.fill_(True)
    trainer.done = 1
    trainer.step()
    with nobody_waits():
        for _ in range(3):
            report = trainer.step()
    assert trainer.done == 5 and report.picture.rgb.device == META
    assert all(value.device == META for _, value in trainer.model.gaussians.items())
