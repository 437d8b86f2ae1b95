import json
import math
import os

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from nfc_gs.evaluation import Lpips, evaluate, metrics, write_metrics
from nfc_gs.evaluation.metrics import MetricsError, psnr
from tests.evaluation.scene import HEIGHT, WIDTH, flat, model, view

NO_LPIPS = Lpips(networks={}, reason="no weights: none wanted")
FLOAT32 = 1e-4  # dB: pictures are float32
SSIM_FLOAT32 = 1e-4  # a variance of flat pictures is what is left of two equal numbers, against C2 = 0.0009


def measure(photographs, background=(0.0, 0.0, 0.0), **settings):
    views = [view(f"{i}.png", photograph) for i, photograph in enumerate(photographs)]
    return evaluate(model(background), views, lambda i: views[i].read(), lpips=NO_LPIPS, **settings)


def flat_ssim(u: float, v: float) -> float:
    """SSIM of two flat grey pictures padded with zeros, in float64 by scipy's filters (Wang et al. 2004)."""

    def blur(picture):
        return gaussian_filter(picture, 1.5, radius=5, mode="constant")

    x, y = np.full((HEIGHT, WIDTH), u), np.full((HEIGHT, WIDTH), v)
    m, n = blur(x), blur(y)
    likeness = (2 * m * n + 1e-4) * (2 * (blur(x * y) - m * n) + 9e-4)
    return float((likeness / ((m * m + n * n + 1e-4) * (blur(x * x) + blur(y * y) - m * m - n * n + 9e-4))).mean())


def test_psnr_is_that_worked_out_by_hand():
    x, y = torch.zeros(2, 2, 3), torch.zeros(2, 2, 3)
    y[0, 0] = 0.2  # a quarter of the pixels is off by 0.2: the mean square is 0.01
    assert float(psnr(x, y)) == pytest.approx(20.0)
    mask = torch.tensor([[True, True], [False, False]])
    assert float(psnr(x, y, mask)) == pytest.approx(10 * math.log10(50))
    assert float(psnr(x, x)) == math.inf


def test_psnr_clamps_both_pictures():
    assert float(psnr(torch.full((2, 2, 3), 7.0), torch.full((2, 2, 3), 0.9))) == pytest.approx(20.0)


def test_a_flat_render_has_the_known_metrics():
    evaluation = measure([flat(51), flat(153)], background=(0.4, 0.4, 0.4))
    assert evaluation.psnr == pytest.approx(10 * math.log10(1 / 0.2**2), abs=FLOAT32)
    assert evaluation.scores[0].ssim == pytest.approx(flat_ssim(0.2, 0.4), abs=SSIM_FLOAT32)
    assert evaluation.ssim == pytest.approx((flat_ssim(0.2, 0.4) + flat_ssim(0.6, 0.4)) / 2, abs=SSIM_FLOAT32)


def test_masked_pixels_do_not_count():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, : WIDTH // 2] = True
    photograph = flat(51, mask)
    photograph.rgb[~mask] = 255
    evaluation = measure([photograph])
    assert evaluation.psnr == pytest.approx(10 * math.log10(1 / 0.2**2), abs=FLOAT32)
    other = flat(51, mask)
    other.rgb[~mask] = 0
    assert measure([other]).psnr == pytest.approx(evaluation.psnr)


def test_transparent_pixels_take_the_models_background():
    photograph = flat(0, alpha=np.zeros((HEIGHT, WIDTH), np.uint8))
    evaluation = measure([photograph], background=(0.25, 0.5, 1.0))
    assert evaluation.psnr == math.inf and evaluation.ssim == pytest.approx(1, abs=SSIM_FLOAT32)


def test_pictures_are_kept_and_shown():
    shown = []
    evaluation = measure([flat(10)] * 5, keep=2, shown=lambda view, picture, target: shown.append(view.name))
    assert [name for name, *_ in evaluation.kept] == ["0.png", "4.png"]
    assert shown == [f"{i}.png" for i in range(5)]
    _, sheet, render, photograph = evaluation.kept[0]
    assert sheet.shape[1] == 3 * WIDTH and render.shape == photograph.shape == (HEIGHT, WIDTH, 3)


def test_no_gradient_is_kept():
    scene = model(count=2)
    scene.gaussians = scene.gaussians.map(lambda tensor: tensor.requires_grad_())
    views = [view("a", flat(0))]
    evaluation = evaluate(scene, views, lambda i: views[i].read(), lpips=NO_LPIPS, keep=1)
    assert not evaluation.kept[0][2].requires_grad


def record(evaluation):
    return metrics(evaluation, model(), split="test", steps=70, train_seconds=1.5, num_bytes=123)


def test_the_record_says_what_was_measured_and_how(tmp_path):
    write_metrics(record(measure([flat(51)])), tmp_path / "metrics.json")
    read = json.loads((tmp_path / "metrics.json").read_text())
    assert read["lpips_alex"] is None and read["lpips_squeeze"] is None and read["lpips_reason"] == NO_LPIPS.reason
    assert (read["num_test_views"], read["steps"], read["train_seconds"], read["bytes"]) == (1, 70, 1.5, 123)
    assert (read["split"], read["resolution"], read["background"]) == ("test", f"{WIDTH}x{HEIGHT}", [0, 0, 0])
    assert read["psnr"] == read["per_view"][0]["psnr"] and read["per_view"][0]["name"] == "0.png"
    assert set(read["versions"]) == {"nfc_gs", "torch", "numba", "python"}
    assert read["ssim_variant"].startswith("Gaussian") and read["device"].startswith("cpu")
    assert read["seconds_per_frame"] > 0 and read["num_gaussians"] == 1
    assert read["commit"] is None or len(read["commit"]) == 40


def test_infinities_and_missing_means_are_null():
    assert record(measure([flat(0)]))["psnr"] is None
    assert record(measure([]))["ssim"] is None


def test_pictures_too_small_for_lpips_are_the_reason():
    class Blind(Lpips):
        def __call__(self, x, y):
            return {}

    views = [view("tiny.png", flat(0))]
    evaluation = evaluate(model(), views, lambda i: views[i].read(), lpips=Blind(networks={}))
    assert evaluation.lpips_alex is None and "tiny.png is smaller than" in str(evaluation.lpips_reason)


def test_a_record_that_cannot_be_written_is_one_line_and_leaves_the_older_one(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    path.write_text("older")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(MetricsError, match=r"metrics\.json: cannot be written: No space left on device"):
        write_metrics({"psnr": 1.0}, path)
    assert path.read_text() == "older" and os.listdir(tmp_path) == ["metrics.json"]
