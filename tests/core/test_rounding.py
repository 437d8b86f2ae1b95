"""Rounding to few bits, against integers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from plyfile import PlyData

from nfc_gs.codes.identity import SH_C0
from nfc_gs.core.rounding import UNROUNDED, Rounding, rounded
from nfc_gs.exporters.ply import Ply
from tests.evaluation.scene import flat, model, view


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_values_become_the_nearest_level_and_gradients_pass(bits: int) -> None:
    last = 2**bits - 1
    levels = torch.arange(last + 1, dtype=torch.float64) / last
    values = torch.linspace(-0.2, 1.2, 1001, dtype=torch.float64, requires_grad=True)
    result = rounded(values, bits)
    nearest = levels[(values.detach()[:, None] - levels).abs().argmin(1)]
    assert torch.equal(result.detach(), nearest)
    (gradient,) = torch.autograd.grad((result * torch.arange(1001)).sum(), values)
    assert torch.equal(gradient, torch.arange(1001, dtype=torch.float64))
    # Levels are kept: whoever stores the word of K bits stores the number.
    assert torch.equal(rounded(levels, bits), levels)


def test_no_bits_are_no_rounding() -> None:
    values = torch.rand(7)
    assert rounded(values, 0) is values


def test_rounding_begins_when_it_is_due() -> None:
    rounding = Rounding(colour_bits=4, start=0.7)
    assert rounding.at(0.69) is UNROUNDED and rounding.at(0.7) is rounding
    assert Rounding(colour_bits=4, start=1.0).at(0.999) is UNROUNDED


def test_what_is_rendered_and_exported_are_levels(tmp_path) -> None:
    drawn = model(count=3)
    drawn = replace(
        drawn,
        gaussians=replace(
            drawn.gaussians, colour_logits=torch.linspace(-1.5, 1.5, 12).view(4, 3, 1), opacity_logits=torch.randn(4, 1)
        ),
        rounding=Rounding(colour_bits=3, opacity_bits=2),
    )
    picture = drawn.render(view("a", flat(0)).camera)
    for values, last in ((picture.appearance.base, 7), (picture.splats.opacities, 3)):
        torch.testing.assert_close(values * last, (values * last).round(), rtol=0, atol=1e-6)  # float32
    assert len(picture.splats.opacities.unique()) <= 4
    Ply().write(drawn, tmp_path / "a.ply")
    rows = PlyData.read(tmp_path / "a.ply")["vertex"].data
    words = (np.stack([rows[f"f_dc_{i}"] for i in range(3)], 1) * SH_C0 + 0.5) * 7
    np.testing.assert_allclose(words, words.round(), atol=1e-5)  # float32
    # The eight levels of a 3-bit word fall on different bytes, from which they come back.
    stored = (words / 7 * 255).round().astype(np.uint8)
    assert ((stored / 255 * 7).round() == words.round()).all()
