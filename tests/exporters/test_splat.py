"""The .splat of web viewers, read byte by byte as its layout says."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nfc_gs.codes.binary import Binary
from nfc_gs.codes.identity import Identity
from nfc_gs.codes.thermometer import Thermometer
from nfc_gs.core.rounding import Rounding
from nfc_gs.core.scene import Similarity
from nfc_gs.exporters.base import FileError
from nfc_gs.exporters.ply import Ply
from nfc_gs.exporters.splat import Splat
from tests.exporters.test_ply import CAMERA, model

FLOAT32 = 1e-6  # numbers between 1/20 and 30, rounded to float32


def read(path):
    """Positions, standard deviations, colours, opacities and orientations."""
    content = path.read_bytes()
    rows = [struct.unpack_from("<6f8B", content, start) for start in range(0, len(content), 32)]
    table = np.array(rows)
    return table[:, :3], table[:, 3:6], table[:, 6:9] / 255, table[:, 9] / 255, (table[:, 10:] - 128) / 128


def order_of(drawn):
    """The largest and most opaque first."""
    volumes = drawn.gaussians.log_scales.double().sum(1).exp().numpy()
    return np.argsort(-volumes * drawn.opacities().detach().double().numpy(), kind="stable")


def test_the_file_holds_the_model_in_the_coordinates_of_the_data(tmp_path):
    drawn = model(
        code=Thermometer(), opacity_code=Binary(), to_world=Similarity(scale=3.0, translation=(1.0, -2.0, 0.5))
    )
    said = Splat(widen=1.5).write(drawn, tmp_path / "a.splat")
    assert said.endswith("30 Gaussians, 0.0 MB; the view-dependent part of its colours is left out")
    assert (tmp_path / "a.splat").stat().st_size == 30 * 32
    order = order_of(drawn)
    positions, scales, colours, opacities, quats = read(tmp_path / "a.splat")
    gaussians = drawn.gaussians.map(lambda tensor: tensor[torch.from_numpy(order)].double())
    np.testing.assert_allclose(positions, 3 * gaussians.means.numpy() + [1, -2, 0.5], atol=10 * FLOAT32)
    np.testing.assert_allclose(scales, 4.5 * gaussians.log_scales.exp().numpy(), rtol=FLOAT32)
    # Half a byte.
    np.testing.assert_allclose(colours, drawn.base_colours(drawn.gaussians)[order].numpy(), atol=0.5 / 255 + FLOAT32)
    np.testing.assert_allclose(opacities, drawn.opacities()[order].numpy(), atol=0.5 / 255 + FLOAT32)
    unit = (gaussians.quats / gaussians.quats.norm(dim=1, keepdim=True)).numpy()
    # Half a byte, and 1 itself is 255 - 128 of 128.
    np.testing.assert_allclose(quats, unit, atol=1 / 128)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("code", [Identity(), Thermometer(), Binary()])
def test_words_of_few_bits_come_back_from_their_bytes(bits, code, tmp_path):
    drawn = replace(model(code=code, count=300), rounding=Rounding(colour_bits=bits, opacity_bits=bits))
    Splat().write(drawn, tmp_path / "a.splat")
    _, _, colours, opacities, _ = read(tmp_path / "a.splat")
    order, last = order_of(drawn), 2**bits - 1
    for stored, held in ((colours, drawn.base_colours(drawn.gaussians)), (opacities, drawn.opacities())):
        levels = (held[order].double() * last).round().numpy()
        assert len(np.unique(levels)) > 2
        assert ((stored * last).round() == levels).all()
        if 255 % last == 0:
            # Such a level is a byte: nothing is lost at all.
            np.testing.assert_allclose(stored, levels / last, rtol=0, atol=1e-15)


def test_eight_bit_words_of_a_run_without_rounding_are_their_nearest_bytes(tmp_path):
    code = Binary(bits=8)
    drawn = model(code=code, opacity_code=code)
    hard = drawn.gaussians.map(lambda tensor: tensor)
    hard = replace(hard, colour_logits=400 * hard.colour_logits.sign(), opacity_logits=400 * hard.opacity_logits.sign())
    drawn = replace(drawn, gaussians=hard)
    Splat().write(drawn, tmp_path / "a.splat")
    _, _, colours, opacities, _ = read(tmp_path / "a.splat")
    order, places = order_of(drawn), 2 ** np.arange(7, -1, -1)
    words = (hard.colour_logits[order].numpy() > 0) @ places
    assert ((colours * 255).round() == words).all()
    assert ((opacities * 255).round() == (hard.opacity_logits[order].numpy() > 0) @ places).all()


def test_a_rounded_picture_without_view_dependence_is_the_same_from_the_file(tmp_path):
    drawn = replace(model(degree=0), rounding=Rounding(colour_bits=4, opacity_bits=4))
    # Orientations have 8 bits; round Gaussians show none.
    gaussians = replace(drawn.gaussians, log_scales=drawn.gaussians.log_scales[:, :1].expand(-1, 3).contiguous())
    drawn = replace(drawn, gaussians=gaussians)
    Splat().write(drawn, tmp_path / "a.splat")
    positions, scales, colours, opacities, _ = (
        torch.from_numpy(values).float() for values in read(tmp_path / "a.splat")
    )
    again = replace(
        drawn,
        gaussians=replace(
            gaussians,
            means=positions,
            log_scales=scales.log(),
            colour_logits=Identity().logits(colours, unit=False),
            opacity_logits=Identity().logits(opacities, unit=True),
        ),
        rounding=Rounding(),
    )
    # Logarithms and float32 opacities: four digits below one of 256 steps.
    torch.testing.assert_close(again.render(CAMERA).rgb, drawn.render(CAMERA).rgb, rtol=0, atol=1e-5)


def test_what_cannot_be_written_is_told_and_nothing_is_left(tmp_path):
    drawn = model()
    broken = replace(drawn, gaussians=replace(drawn.gaussians, means=drawn.gaussians.means / 0))
    with pytest.raises(FileError, match="30 of 30 Gaussians have numbers that are NaN or infinite"):
        Splat().write(broken, tmp_path / "a.splat")
    for name in ("colour_logits", "opacity_logits", "quats"):
        # What becomes bytes would come back as some number.
        odd = getattr(drawn.gaussians, name).clone()
        odd[3] = float("nan")
        with pytest.raises(FileError, match="1 of 30 Gaussians have numbers that are NaN or infinite"):
            Splat().write(replace(drawn, gaussians=replace(drawn.gaussians, **{name: odd})), tmp_path / "a.splat")
    empty = replace(drawn, gaussians=drawn.gaussians.map(lambda tensor: tensor[:0]))
    with pytest.raises(FileError, match="holds no Gaussians"):
        Splat().write(empty, tmp_path / "a.splat")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        Splat().write(drawn, tmp_path / "file/a.splat")
    for exporter in (Splat(), Ply()):
        with pytest.raises(FileError, match="is a folder"):
            exporter.write(drawn, Path("."))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
