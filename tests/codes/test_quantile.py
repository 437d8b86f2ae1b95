"""Thermometer words whose steps are a scene's quantiles, against numpy and against the uniform thermometer."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file

from nfc_gs import cli
from nfc_gs.codes.quantile import Quantile
from nfc_gs.codes.thermometer import Thermometer
from nfc_gs.config import ConfigError
from nfc_gs.training.run import open_run
from tests.conftest import REPOSITORY

EXACT = {"rtol": 0, "atol": 1e-12}  # float64 sums of few terms
PROMISED = {"rtol": 0, "atol": 1e-4}  # what `logits` promises
SMALL = [
    "dataset.size=40", "dataset.num_train=6", "dataset.num_test=2", "dataset.points=300", "steps=20",
    "schedule.sh_every=15", "strategy.cap_max=400", "strategy.every=10", "evaluation.every=20",
    "callbacks.export=null", "callbacks.tensorboard=null", "callbacks.checkpoints.every=10", "code.kind=quantile", "code.bits=4",
]  # fmt: skip


def skewed(count: int) -> torch.Tensor:
    """Dark colours, each channel in its own way, before much white."""
    random = torch.Generator().manual_seed(0)
    colours = torch.rand(count, 3, generator=random, dtype=torch.float64) ** torch.tensor([1.0, 3.0, 6.0])
    return torch.cat([colours, torch.ones(3 * count, 3), torch.zeros(count, 3)])


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_knots_are_the_quantiles_of_what_is_neither_black_nor_white(bits):
    colours = skewed(999)
    code = Quantile(bits=bits).fit(colours)
    even = np.linspace(0, 1, bits + 1)
    for channel, knots in enumerate(code.knots):
        quantiles = np.quantile(colours[:999, channel].numpy(), even)
        quantiles[[0, -1]] = 0, 1
        np.testing.assert_allclose(knots, 0.9 * quantiles + 0.1 * even, rtol=0, atol=1e-12)
        # A tenth of an equidistant step is left to each, so that none is empty.
        assert np.diff(knots).min() > 0.1 / bits - 1e-12
    assert Quantile(bits=bits).adapts and not code.adapts


def test_without_colours_between_black_and_white_the_steps_are_equal():
    even = tuple(np.linspace(0, 1, 5))
    for channel in Quantile(bits=4).fit(torch.ones(50, 3)).knots:
        assert channel == pytest.approx(even)


def test_equal_steps_are_the_thermometer():
    values = torch.rand(200, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.4 - 0.2
    one, other = Quantile(bits=5), Thermometer(bits=5)
    torch.testing.assert_close(one.encode(values), other.encode(values), **EXACT)
    assert torch.equal(one.words(values), other.words(values))
    for bit in range(5):
        torch.testing.assert_close(one.encode_bit(values, bit), other.encode_bit(values, bit), **EXACT)
    logits = torch.randn(40, 3, 5)
    torch.testing.assert_close(one.values(logits, False), other.values(logits, False), rtol=0, atol=1e-6)  # float32
    assert torch.equal(one.probability(logits, 2), other.probability(logits, 2))
    torch.testing.assert_close(one.decode(logits.double()), other.decode(logits.double()), **EXACT)


def test_labels_decode_to_any_value_exactly_and_fill_one_step_after_the_other():
    code = Quantile(bits=6).fit(skewed(500))
    values = torch.rand(300, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = code.encode(values)
    torch.testing.assert_close(code.decode(labels), values, **EXACT)
    assert ((labels[..., :-1] == 1) | (labels[..., 1:] == 0)).all()
    for bit in range(6):
        assert torch.equal(code.encode_bit(values, bit), labels[..., bit])
    hard = code.words(values)
    assert torch.equal(hard, (labels >= 0.5).double())
    inside = values[:8].clone().requires_grad_()
    assert torch.autograd.gradcheck(code.encode, inside)


def test_decoding_commutes_with_compositing():
    code = Quantile(bits=4).fit(skewed(500))
    chances, weights = torch.rand(7, 3, 4, dtype=torch.float64), torch.rand(7, dtype=torch.float64)
    blended = code.decode(torch.einsum("n,nck->ck", weights, chances))
    torch.testing.assert_close(blended, torch.einsum("n,nc->c", weights, code.decode(chances)), **EXACT)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_logits_mean_the_value_they_were_made_from_and_learn(bits):
    code = Quantile(bits=bits).fit(skewed(500))
    values = torch.linspace(0, 1, 255).view(-1, 3)
    logits = code.logits(values, False).requires_grad_()
    torch.testing.assert_close(code.values(logits, False), values.clamp(1 / 512, 1 - 1 / 512), **PROMISED)
    assert logits.abs().max() < 20  # certain in float32
    pull = torch.rand(values.shape)
    (found,) = torch.autograd.grad((code.values(logits, False) * pull).sum(), logits)
    widths = torch.tensor(np.diff(code.knots)).float()
    chances = torch.sigmoid(logits.detach())
    torch.testing.assert_close(found, pull[..., None] * widths * chances * (1 - chances), rtol=1e-5, atol=1e-7)


def test_knots_that_are_none_and_opacities_are_refused():
    for knots in (((0.0, 1.0),) * 3, ((0.0, 0.6, 0.5, 0.7, 1.0),) * 3, ((0.1, 0.2, 0.3, 0.4, 1.0),) * 3):
        with pytest.raises(ValidationError, match="knots must"):
            Quantile(bits=4, knots=knots)
    with pytest.raises(ConfigError, match="a code for colours"):
        Quantile().logits(torch.rand(4, 3), True)


def test_a_training_finds_its_knots_and_its_checkpoints_keep_them(tmp_path, monkeypatch, capsys):
    files = [str(REPOSITORY / name) for name in ("configs/toy.yaml", "configs/methods/nfc.yaml")]

    def train(name, *more):
        return cli.main(["train", *files, f"output={tmp_path}", f"name={name}", *SMALL, *more])

    assert train("whole") == 0
    found = open_run(tmp_path / "whole").model.code
    assert isinstance(found, Quantile) and not found.adapts
    # The same photographs as floats, in another order of the same operations.
    np.testing.assert_allclose(found.knots, Quantile(bits=4).fit(_colours(tmp_path / "whole")).knots, rtol=0, atol=1e-6)
    with safe_open(tmp_path / "whole/checkpoints/last.safetensors", "pt") as file:
        assert '"fitted_code": {"kind": "quantile"' in file.metadata()["nfc_gs"]

    from nfc_gs.training.trainer import Trainer

    step = Trainer.step

    def interrupted(self):
        if self.done == 10:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        train("halves")
    assert cli.main(["train", "--resume", str(tmp_path / "halves")]) == 0
    one, other = (load_file(tmp_path / name / "checkpoints/last.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(one[name], other[name]) for name in one)

    capsys.readouterr()
    assert train("opacities", "opacity_code.kind=quantile", "opacity_code.bits=4") == 2
    assert "a code for colours" in capsys.readouterr().err


def _colours(folder):
    experiment = open_run(folder).experiment
    scene = experiment.dataset.load(experiment.seed)
    colours = []
    for photograph in (view.read() for view in scene.train):
        clear = 1 - photograph.alpha.reshape(-1, 1) / 255
        colours.append(photograph.rgb.reshape(-1, 3) / 255 + clear * np.array(scene.background))
    return torch.from_numpy(np.concatenate(colours)).float()
