"""The tool that compares few bits that were learned with rounding: trainings of moments, and integers."""

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nfc_gs import cli
from nfc_gs.codes.binary import Binary
from nfc_gs.config import UserError
from nfc_gs.core.rounding import Rounding
from tests.conftest import REPOSITORY
from tests.evaluation.scene import model
from tests.tools.conftest import _load

SMALL = [
    "dataset.size=40", "dataset.num_train=6", "dataset.num_test=2", "dataset.points=300", "steps=30",
    "schedule.sh_every=15", "strategy.cap_max=400", "strategy.every=10", "evaluation.every=30",
    "callbacks.export=null", "callbacks.tensorboard=null",
]  # fmt: skip
ROUNDED = ["rounding.colour_bits=3", "rounding.opacity_bits=3"]
BINARY = [
    str(REPOSITORY / "configs/methods/nfc.yaml"),
    "code.kind=binary",
    "code.bits=3",
    "opacity_code.bits=3",
    "losses.code_bce=null",
]


@pytest.fixture(scope="module")
def few_bits():
    return _load("few_bits")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    arms = {"plain": [], "after": [*ROUNDED, "rounding.start=1.0"], "learned": ROUNDED, "binary": BINARY}
    for name, words in arms.items():
        files = [word for word in words if word.endswith(".yaml")]
        rest = [word for word in words if word not in files]
        toy = str(REPOSITORY / "configs/toy.yaml")
        assert cli.main(["train", toy, *files, f"output={folder}", f"name={name}", *SMALL, *rest]) == 0
    return {name: folder / name for name in arms}


@pytest.fixture(scope="module")
def page(few_bits, runs):
    path = runs["plain"].parent / "page.md"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["few_bits", *map(str, runs.values()), "--output", str(path)])
        few_bits.MEASUREMENT.main()
    return path


def test_rounding_one_training_afterwards_is_a_training_that_rounds_at_its_end(runs, page):
    plain, after = (load_file(runs[name] / "checkpoints/last.safetensors") for name in ("plain", "after"))
    assert plain.keys() == after.keys() and all(torch.equal(plain[name], after[name]) for name in plain)
    records = json.loads(page.with_suffix(".json").read_text())["records"]
    scores = {(record["run"], record["how"], record["bits"]): (record["psnr"], record["ssim"]) for record in records}
    for name, how, bits in (("plain", "float32", 0), ("after", "rounded afterwards", 3), ("learned", "learned", 3)):
        metrics = json.loads((runs[name] / "metrics.json").read_text())
        assert scores[name, how, bits] == (metrics["psnr"], metrics["ssim"])
    assert scores["plain", "rounded afterwards", 3] == scores["after", "rounded afterwards", 3]
    assert scores["learned", "learned", 3] != scores["after", "rounded afterwards", 3]
    assert {bits for run, _, bits in scores if run == "plain"} == {0, 2, 3, 4, 5, 6, 7, 8}
    assert ("plain", "codebook afterwards", 2) in scores
    assert ("binary", "bits thresholded", 3) in scores


def test_the_page_is_made_of_the_json_alone(few_bits, page, monkeypatch, capsys):
    first, again = page.read_text(), page.with_name("again.md")
    assert (
        "| regression, learned | regression, rounded afterwards | 3 | 1 |" in first
        and page.with_suffix(".png").is_file()
    )
    assert "| binary words of 3, bits thresholded | regression, rounded afterwards | 3 | 1 |" in first
    monkeypatch.setattr("sys.argv", ["few_bits", str(page.with_suffix(".json")), "--output", str(again)])
    few_bits.MEASUREMENT.main()
    assert again.read_text().splitlines()[6:] == first.splitlines()[6:]
    capsys.readouterr()
    broken = page.with_name("broken.json")
    broken.write_text("[]")
    for wrong in (broken, page.with_name("nowhere"), page.with_name("nowhere.json")):
        monkeypatch.setattr("sys.argv", ["few_bits", str(wrong), "--output", str(again)])
        with pytest.raises(SystemExit) as ended:
            few_bits.MEASUREMENT.main()
        assert ended.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_the_words_that_are_counted_give_every_number_back(few_bits, bits):
    drawn = model(count=40)
    random = torch.Generator().manual_seed(bits)
    drawn = replace(
        drawn,
        gaussians=replace(
            drawn.gaussians,
            colour_logits=torch.randn(41, 3, 1, generator=random),
            opacity_logits=2 * torch.randn(41, 1, generator=random),
        ),
        rounding=Rounding(colour_bits=bits, opacity_bits=bits),
    )
    words = few_bits.words(drawn, bits)
    assert words.shape == (4 * 41,) and words.max() < 2**bits
    values = torch.from_numpy(words).float() / (2**bits - 1)
    assert torch.equal(values[: 3 * 41].view(3, 41).T, drawn.base_colours(drawn.gaussians))
    assert torch.equal(values[3 * 41 :], drawn.opacities())
    assert len(zlib.compress(words.tobytes(), 9)) == few_bits.deflated(words)
    with pytest.raises(UserError, match="no words of"):
        few_bits.words(replace(drawn, rounding=Rounding()), bits)


@pytest.mark.parametrize("bits", [2, 3])
def test_a_codebook_is_no_worse_than_any_it_can_reach_by_one_exchange(few_bits, bits):
    values = np.random.default_rng(bits).beta(0.5, 2, 400)
    table, words = few_bits.codebook(values, bits)
    assert len(table) == 2**bits and (np.diff(table) > 0).all()
    error = ((values - table[words]) ** 2).sum()
    # Lloyd's two conditions: everyone has the nearest number, and every number is the mean of its own.
    assert (np.abs(values[:, None] - table).argmin(1) == words).all()
    for number in range(len(table)):
        assert table[number] == pytest.approx(values[words == number].mean(), abs=1e-3)
    even = np.abs(values[:, None] - np.linspace(0, 1, 2**bits)).min(1)
    assert error < (even**2).sum()
    # Where there are no more values than numbers, each is kept.
    few = np.repeat([0.1, 0.35, 0.8], 20)
    table, words = few_bits.codebook(few, bits)
    np.testing.assert_allclose(table[words], few, rtol=0, atol=1e-12)


def test_a_model_with_codebooks_holds_their_numbers(few_bits):
    drawn = model(count=40)
    random = torch.Generator().manual_seed(0)
    gaussians = replace(
        drawn.gaussians,
        colour_logits=torch.randn(41, 3, 1, generator=random),
        opacity_logits=torch.randn(41, 1, generator=random),
    )
    drawn = replace(drawn, gaussians=gaussians)
    coded, words = few_bits.with_codebook(drawn, 3)
    assert words.shape == (4 * 41,) and words.max() <= 7
    colours, opacities = drawn.base_colours(gaussians).double().numpy(), drawn.opacities().double().numpy()
    table, mine = few_bits.codebook(colours[:, 1], 3)
    np.testing.assert_allclose(coded.base_colours(coded.gaussians)[:, 1], table[mine], atol=1e-6)  # float32
    table, mine = few_bits.codebook(opacities, 3)
    np.testing.assert_allclose(coded.opacities(), table[mine], atol=1e-6)
    assert (words[3 * 41 :] == mine).all()


def test_thresholded_words_are_those_of_the_bits_that_are_more_likely_than_not(few_bits):
    drawn = model(count=30)
    random = torch.Generator().manual_seed(0)
    logits, opacity = torch.randn(31, 3, 4, generator=random), torch.randn(31, 4, generator=random)
    drawn = replace(
        drawn,
        code=Binary(bits=4),
        opacity_code=Binary(bits=4),
        gaussians=replace(drawn.gaussians, colour_logits=logits, opacity_logits=opacity),
    )
    places = np.array([8, 4, 2, 1])
    levels = np.concatenate([((logits.numpy() > 0) @ places).T.ravel(), (opacity.numpy() > 0) @ places])
    assert (few_bits.words(few_bits.thresholded(drawn), 4) == levels).all()
