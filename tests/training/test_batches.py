"""A batch whose views are drawn in one pass trains as one whose views are drawn one after the other; gsplat's place is taken."""

from contextlib import contextmanager

import pytest
import torch

from nfc_gs.captures.feed import smaller
from nfc_gs.config import load
from nfc_gs.losses.label_bce import LabelBCE
from nfc_gs.rasterizers import gsplat
from nfc_gs.rasterizers.gsplat import Gsplat
from nfc_gs.training import run
from nfc_gs.training.experiment import Experiment
from tests.conftest import REPOSITORY
from tests.rasterizers import stand_in

SMALL = [
    "dataset.size=24", "dataset.num_train=6", "dataset.num_test=1", "dataset.points=150", "steps=20", "threads=1",
    "rasterizer.kind=gsplat", "batch=4",
]  # fmt: skip
STRATEGIES = {
    "growth": ["strategy.kind=growth"],
    "classic": ["strategy.kind=classic", "strategy.absgrad=true"],
}
METHODS = {"regression": [], "nfc": ["configs/methods/nfc.yaml"], "variance": ["losses.ray_variance.weight=0.5"]}


@pytest.fixture
def calls(monkeypatch):
    """How many cameras each call of gsplat's function had."""
    counted = []

    def rasterization(**arguments):
        counted.append(len(arguments["viewmats"]))
        return stand_in.rasterization(**arguments)

    package = stand_in.package()
    package.rasterization = rasterization
    monkeypatch.setattr(gsplat, "_gsplat", lambda: package)
    monkeypatch.setattr(Gsplat, "device", "cpu")
    gsplat._intrinsics.cache_clear()
    return counted


@contextmanager
def trainer_of(*settings, config="configs/toy.yaml"):
    files = [config, *(text for text in settings if text.endswith(".yaml"))]
    rest = [text for text in settings if not text.endswith(".yaml")]
    trainer = run.build(load(Experiment, [REPOSITORY / file for file in files], [*SMALL, *rest]))
    yield trainer
    for store in (trainer.photographs, trainer.held_out):
        store.close()
    trainer.feed.close()


def stepped(monkeypatch, settings, odd=False):
    """Gradients, statistics, terms and who was drawn, of the first step."""
    found = {}

    def noted(self, step, radii):
        found["gradients"] = {name: value.grad for name, value in self.gaussians.items() if value.grad is not None}
        found["drawn"] = (radii > 0).all(1)

    monkeypatch.setattr("nfc_gs.training.optimizer.GaussianOptimizer.step", noted)
    with trainer_of(*settings) as trainer:
        with torch.no_grad():
            # Round ones have no orientation, and its gradient would be rounding alone.
            sizes = trainer.model.gaussians.log_scales
            sizes += torch.randn(sizes.shape, generator=torch.Generator().manual_seed(0)) * 0.5
        if odd:
            get, other = trainer.photographs.get, trainer.view_number(1)
            halved = lambda view: smaller(get(view), 2) if view == other else get(view)  # noqa: E731
            monkeypatch.setattr(trainer.photographs, "get", halved)
            monkeypatch.setattr(trainer.feed, "_read", halved)
        found["terms"] = {kind: float(term) for kind, term in trainer.step().terms.items()}
        return found | {"statistics": trainer.statistics}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("odd", [False, True], ids=["one size", "two sizes"])
def test_a_batch_in_one_pass_steps_as_one_view_after_the_other(monkeypatch, calls, method, strategy, packed, odd):
    settings = [*METHODS[method], *STRATEGIES[strategy], f"rasterizer.packed={packed}"]
    ours = stepped(monkeypatch, settings, odd)
    assert calls == ([3, 1] if odd else [4])
    calls.clear()
    theirs = stepped(monkeypatch, [*settings, "rasterizer.batched=false"], odd)
    assert calls == [1, 1, 1, 1]
    assert ours["gradients"].keys() == theirs["gradients"].keys()
    for name, gradient in theirs["gradients"].items():
        # float32: sums of the same numbers in another order.
        assert (ours["gradients"][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-12, name
    for name, numbers in theirs["statistics"].items():
        torch.testing.assert_close(ours["statistics"][name], numbers, rtol=1e-4, atol=1e-9)
    assert ours["drawn"].equal(theirs["drawn"])
    assert ours["terms"] == pytest.approx(theirs["terms"], rel=1e-5)


def test_views_of_other_times_and_losses_that_remember_are_drawn_one_after_the_other(calls):
    with trainer_of() as trainer:
        assert trainer._together(range(4), {}) == [[0, 1, 2, 3]]
        # As a process of two has them.
        assert trainer._together(range(1, 4, 2), {}) == [[1, 3]]
        assert trainer._together(range(4), {"label_bce": LabelBCE()}) == [[0], [1], [2], [3]]
    with trainer_of(config="configs/dynamic/toy.yaml") as trainer:
        times = [trainer.scene.train[trainer.view_number(look)].camera.time for look in range(4)]
        assert len(set(times)) == 4
        assert trainer._together(range(4), {}) == [[0], [1], [2], [3]]


def test_a_batch_on_a_rasterizer_of_one_camera_is_drawn_one_after_the_other():
    with trainer_of("rasterizer.kind=cpu") as trainer:
        assert trainer._together(range(4), {}) == [[0], [1], [2], [3]]
