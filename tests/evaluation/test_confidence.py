"""Confidence, against means and variances written out pixel by pixel."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from nfc_gs.core.scene import Photograph
from nfc_gs.evaluation.confidence import ConfidenceError, draw_confidence, evidence, trusted, write_confidence
from tests.evaluation.scene import HEIGHT, WIDTH, flat, model, view

# Sums of a thousand float32 weights; a standard deviation is the root of a difference of them.
SUMMED, DEVIATED = 1e-4, 2e-3


def photograph(seed: int, mask=None) -> Photograph:
    rgb = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Photograph(rgb=rgb, mask=mask, alpha=None)


def test_weight_and_spread_are_those_of_the_pixels_that_a_gaussian_covers() -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, : WIDTH // 2] = True
    drawn, taken = model(count=2), [photograph(0), photograph(1, mask)]
    views = [view(str(i), each) for i, each in enumerate(taken)]
    found = evidence(drawn, [each.camera for each in views], lambda i: taken[i])

    # A Gaussian's weight in a pixel is what the pixel gains when that Gaussian's value, and no other's, is one.
    picture = drawn.render(views[0].camera)
    pixels, levels, counted = [], [], []
    ones = torch.eye(3)
    rendering = drawn.rasterizer(replace(picture.splats, values=ones), views[0].camera, torch.zeros(3))
    for each in taken:
        pixels.append(rendering.channels.reshape(-1, 3).double().numpy())
        levels.append(each.rgb.reshape(-1, 3) / 255)
        counted.append(np.ones(HEIGHT * WIDTH) if each.mask is None else each.mask.ravel())
    weights = np.concatenate(pixels) * np.concatenate(counted)[:, None]
    colours = np.concatenate(levels)
    np.testing.assert_allclose(found.weights, weights.sum(0), rtol=SUMMED)
    for gaussian in range(2):
        means = np.average(colours, axis=0, weights=weights[:, gaussian])
        variances = np.average((colours - means) ** 2, axis=0, weights=weights[:, gaussian])
        np.testing.assert_allclose(found.spread[gaussian], np.sqrt(variances.mean()), atol=DEVIATED)
        np.testing.assert_allclose(found.confidence[gaussian], 1 - 2 * np.sqrt(variances.mean()), atol=2 * DEVIATED)
    assert found.weights[2] == 0 and found.confidence[2] == 0  # the one behind the camera


def test_one_colour_is_trusted_wholly_and_black_and_white_in_turn_not_at_all() -> None:
    drawn, one, other = model(count=2), flat(255), flat(0)
    camera = view("a", one).camera
    sure = evidence(drawn, [camera], lambda i: one).confidence
    np.testing.assert_allclose(sure[:2], 1, atol=2 * DEVIATED)
    unsure = evidence(drawn, [camera, camera], lambda i: (one, other)[i]).confidence
    np.testing.assert_allclose(unsure[:2], 0, atol=2 * DEVIATED)


def test_a_picture_of_confidence_is_brighter_where_it_is_greater_and_black_where_nothing_is(tmp_path) -> None:
    drawn, shown = model(count=1), view("a", flat(0))
    bright, dark = (draw_confidence(drawn, torch.full((2,), level), shown.camera).astype(int) for level in (1.0, 0.0))
    middle = (HEIGHT // 2, WIDTH // 2)
    assert bright[middle].sum() > dark[middle].sum() > 0
    assert (draw_confidence(model(), torch.ones(1), shown.camera) == 0).all()
    (path,) = write_confidence(drawn, torch.ones(2), [shown], tmp_path)
    assert (np.asarray(Image.open(path)) == bright).all()


def test_what_is_left_out_is_told_and_what_is_kept_looks_the_same() -> None:
    drawn, taken = model(count=2), flat(100)
    camera = view("a", taken).camera
    found = evidence(drawn, [camera], lambda i: taken)
    kept, line = trusted(drawn, found, 1.0, 0.5)
    assert line == "left out 1 of 3 Gaussians: 1 of weight below 1, 0 others of confidence below 0.5"
    assert torch.equal(kept.gaussians.means, drawn.gaussians.means[:2])
    assert torch.equal(kept.render(camera).rgb, drawn.render(camera).rgb)
    with pytest.raises(
        ConfidenceError, match="no Gaussian of 3 has a weight of 1e\\+06 and a confidence of 0; the greatest"
    ):
        trusted(drawn, found, 1e6, 0.0)
