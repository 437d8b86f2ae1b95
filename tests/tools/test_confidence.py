"""The tool that asks what knows where renders are wrong: against pairs counted one by one, and trainings of moments."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from nfc_gs import cli
from nfc_gs.codes.thermometer import Thermometer
from nfc_gs.core.scene import Photograph
from tests.conftest import REPOSITORY
from tests.evaluation.scene import HEIGHT, WIDTH, flat, model, view
from tests.tools.conftest import _load

# Sums of a thousand float32 weights.
SUMMED = 1e-4
SMALL = [
    "dataset.size=40", "dataset.num_train=6", "dataset.num_test=2", "dataset.points=300", "steps=30",
    "schedule.sh_every=15", "strategy.cap_max=400", "strategy.every=10", "evaluation.every=30",
    "callbacks.export=null", "callbacks.tensorboard=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def confidence():
    return _load("confidence")


@pytest.mark.parametrize("values", [2, 5, 1000])
def test_the_area_is_the_share_of_pairs_in_the_right_order_ties_counting_half(confidence, values):
    random = np.random.default_rng(values)
    for _ in range(20):
        signal, wanted = random.integers(0, values, (7, 9)).astype(float), random.random((7, 9)) < 0.3
        pairs = [(a > b) + (a == b) / 2 for a in signal[wanted] for b in signal[~wanted]]
        # Halves of small integers, added and divided in float64.
        assert confidence.auc(signal, wanted) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_the_area_of_known_signals(confidence):
    wanted = np.array([0, 1, 1, 0, 1], bool)
    assert confidence.auc(wanted.astype(float), wanted) == 1
    assert confidence.auc(-wanted.astype(float), wanted) == 0
    assert confidence.auc(np.ones(5), wanted) == 0.5
    assert confidence.auc(np.arange(5.0), wanted) == pytest.approx(4 / 6)  # 1, 2 above 0, and 4 above 0 and 3
    assert np.isnan(confidence.auc(np.arange(5.0), np.zeros(5)))


def test_the_worst_tenth_holds_the_largest_errors_and_no_pixel_without_one(confidence):
    errors = np.random.default_rng(0).permutation(200).astype(float)
    assert sorted(errors[confidence.worst(errors)]) == list(range(180, 200))
    few = np.zeros(200)
    few[[3, 7]] = 1
    assert confidence.worst(few).nonzero()[0].tolist() == [3, 7]
    assert confidence.worst(np.ones(200)).all()  # equal errors are not told apart by where they are


def test_entropies_of_coins(confidence):
    quarter = 2 - 0.75 * np.log2(3)
    expected = torch.tensor([0, quarter, 1, quarter, 0], dtype=torch.float64)
    torch.testing.assert_close(confidence.entropy(torch.linspace(0, 1, 5)), expected, rtol=0, atol=1e-12)
    assert confidence.own_entropies(model(count=2)) == {}
    words = replace(
        model(), code=Thermometer(bits=2), gaussians=replace(model().gaussians, colour_logits=torch.zeros(1, 3, 2))
    )
    found = confidence.own_entropies(words)
    assert list(found) == ["own colour bits"] and found["own colour bits"].tolist() == [1.0]


def test_labels_are_the_mean_words_of_the_pixels_that_a_gaussian_covers(confidence):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, : WIDTH // 2] = True
    random = np.random.default_rng(3)
    rgb = [random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(2)]
    taken = [Photograph(rgb=rgb[0]), Photograph(rgb=rgb[1], mask=mask)]
    drawn, camera = model(count=2), view("a", taken[0]).camera
    facts = confidence.known(drawn, [camera, camera], taken.__getitem__)

    # A Gaussian's weight in a pixel is what the pixel gains when that Gaussian's value, and no other's, is one.
    picture = drawn.render(camera)
    rendering = drawn.rasterizer(replace(picture.splats, values=torch.eye(3)), camera, torch.zeros(3))
    once = rendering.channels.double().numpy()
    weights = np.stack([once, once * mask[..., None]])
    colours = np.stack(rgb).astype(int)
    words = {
        "labels, thermometer 4": np.clip(4 * colours[..., None] / 255 - np.arange(4), 0, 1),
        "labels, binary 8": colours[..., None] >> np.arange(7, -1, -1) & 1,
    }
    words["labels, binary 8, first 3 bits"] = words["labels, binary 8"][..., :3]
    for name, word in words.items():
        for gaussian in range(2):
            weight = weights[..., gaussian, None, None]
            label = (weight * word).sum((0, 1, 2)) / weight.sum()
            entropy = -(label * np.log2(label) + (1 - label) * np.log2(1 - label)).mean()
            assert float(facts.entropies[name][gaussian]) == pytest.approx(entropy, abs=SUMMED), name
        assert facts.entropies[name][2] == 0  # the one behind the camera
    np.testing.assert_allclose(facts.greatest, weights.sum((1, 2)).max(0), rtol=SUMMED)
    np.testing.assert_allclose(facts.found.weights, weights.sum((0, 1, 2)), rtol=SUMMED)


def test_the_controls_see_an_edge_where_it_is(confidence):
    rgb = np.zeros((20, 20, 3))
    rgb[:, 10:] = 0.5
    found = confidence.edges(rgb)
    # Central differences of .5 over two pixels, in three channels.
    assert found[:, 9:11] == pytest.approx(np.sqrt(3) * 0.25) and not found[:, :9].any() and not found[:, 11:].any()
    contrast = confidence.contrast(rgb)
    # A window that has 3 of its 7 columns beyond the edge: the deviation of a coin of 3/7, times .5.
    assert contrast[10, 9] == pytest.approx(0.5 * np.sqrt(3 / 7 * 4 / 7)) and contrast[10, 2] == pytest.approx(0)
    assert confidence.ranks(np.array([[3.0, 1.0], [3.0, 0.0]])) == pytest.approx(np.array([[3.5, 2], [3.5, 1]]) / 4)


def test_signals_are_means_over_what_a_pixel_shows(confidence):
    drawn, camera = model(count=1), view("a", flat(0)).camera
    doubt = {"spread of colours": torch.tensor([0.25, 9.0]), "other": torch.tensor([1.0, 9.0])}
    picture = drawn.render(camera)
    found = confidence.signals_of(drawn, picture, camera, doubt)
    alpha = picture.rendering.alpha.double().numpy()
    shown = alpha >= 1 / 255
    # One Gaussian alone is what a pixel shows, whatever its alpha; the one behind the camera shows nowhere.
    np.testing.assert_allclose(found["spread of colours"][shown], 0.25, rtol=1e-4)
    np.testing.assert_allclose(found["other"][shown], 1, rtol=1e-4)
    assert shown.any() and (found["other"][~shown] == 0).all()
    np.testing.assert_allclose(found["control: transparency (1 - alpha)"], 1 - alpha, atol=1e-6)
    # One colour along every ray; a root of a float32 difference.
    np.testing.assert_allclose(found["control: spread of colours along the ray"], 0, atol=1e-3)


def test_a_share_is_left_out_and_what_nobody_sees_is_missed_by_nobody(confidence):
    drawn, taken = model(count=3), flat(100)
    shown = view("a", taken)
    facts = confidence.known(drawn, [shown.camera], lambda i: taken)
    orders = confidence.orders(drawn, facts, seed=0)
    kept = confidence.without(drawn, orders["weight W, all views"], 0.25)
    assert torch.equal(kept.gaussians.means, drawn.gaussians.means[:3])
    whole, fewer = (confidence.quality(each, [shown], lambda i: taken) for each in (drawn, kept))
    assert whole == fewer
    ordered = torch.tensor([2.0, 0.0, 1.0, 0.0])
    assert torch.equal(confidence.without(drawn, ordered, 0.5).gaussians.means, drawn.gaussians.means[[0, 2]])
    assert len(confidence.without(drawn, ordered, 0.0).gaussians) == 4


def test_trained_runs_become_a_page_that_the_json_alone_gives_again(confidence, tmp_path, monkeypatch, capsys):
    runs = []
    for method in ("regression", "nfc"):
        name = f"toy_{method}_s0"
        runs.append(tmp_path / name)
        words = [REPOSITORY / "configs/toy.yaml", REPOSITORY / f"configs/methods/{method}.yaml", *SMALL]
        assert cli.main(["train", *map(str, words), f"output={tmp_path}", f"name={name}"]) == 0
    page = tmp_path / "page.md"
    monkeypatch.setattr("sys.argv", ["confidence", *map(str, runs), "--output", str(page)])
    confidence.MEASUREMENT.main()
    records = json.loads((tmp_path / "page.json").read_text())["runs"]
    for record, run in zip(records, runs, strict=True):
        metrics = json.loads((run / "metrics.json").read_text())
        # The same pictures of the same model, measured by the same functions.
        assert (record["psnr"], record["ssim"]) == (metrics["psnr"], metrics["ssim"])
        assert record["num_gaussians"] == metrics["num_gaussians"]
        assert all(0 <= area <= 1 for where in record["auc"].values() for area in where.values())
    assert ["own colour bits" in record["auc"]["all"] for record in records] == [False, True]
    first = page.read_text()
    assert "| own colour bits | – | 0." in first and "### toy nfc" in first
    again = tmp_path / "again.md"
    monkeypatch.setattr("sys.argv", ["confidence", str(tmp_path / "page.json"), "--output", str(again)])
    confidence.MEASUREMENT.main()
    assert again.read_text().splitlines()[4:] == first.splitlines()[4:]

    capsys.readouterr()
    (tmp_path / "page.json").write_text("{}")
    for number, runs in enumerate(("", ', "runs": []', ', "runs": [{}]')):
        (tmp_path / f"odd{number}.json").write_text(f'{{"format": 1{runs}}}')
    for wrong in (tmp_path / "page.json", tmp_path / "nowhere", tmp_path / "nowhere.json", *tmp_path.glob("odd?.json")):
        monkeypatch.setattr("sys.argv", ["confidence", str(wrong), "--output", str(again)])
        with pytest.raises(SystemExit) as ended:
            confidence.MEASUREMENT.main()
        assert ended.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1

    kept = (tmp_path / "again.json").read_text()
    # The tables would be written over the numbers.
    for output in (tmp_path / "again.json", tmp_path / "nowhere/page.md"):
        monkeypatch.setattr("sys.argv", ["confidence", str(tmp_path / "again.json"), "--output", str(output)])
        with pytest.raises(SystemExit) as ended:
            confidence.MEASUREMENT.main()
        assert ended.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert (tmp_path / "again.json").read_text() == kept
