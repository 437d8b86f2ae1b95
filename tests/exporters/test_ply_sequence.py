import json
import logging
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from plyfile import PlyData
from pydantic import ValidationError

from nfc_gs.exporters.base import FileError
from nfc_gs.exporters.ply import Ply, load
from nfc_gs.exporters.ply_sequence import PlySequence
from nfc_gs.rasterizers.reference import Reference
from tests.evaluation import moving

SAME_PICTURE = 60.0  # dB: below a quarter of one of the 256 steps, so nobody can see a difference
SCENE = moving.scene()


def cameras():
    return [view.camera for view in SCENE.train]


def test_frames_read_back_show_what_the_model_shows_at_their_times(tmp_path):
    model = moving.model()
    PlySequence(frames=5).write(model, tmp_path / "clip", cameras)
    scale, offset = model.to_world.scale, torch.tensor(model.to_world.translation)
    for i in range(5):
        seen = replace(SCENE.test[0].camera, time=i / 4)
        pose = seen.world_to_camera.clone()
        pose[:3, 3] = scale * pose[:3, 3] - pose[:3, :3] @ offset
        still = load(tmp_path / f"clip/frame_{i:05d}.ply", Reference())
        background = torch.tensor(model.background)
        ours = model.render(seen).rgb.double()
        theirs = still.render(replace(seen, world_to_camera=pose, time=0.0), background=background).rgb.double()
        assert float(ours.std()) > 0.05
        assert float(-10 * (ours - theirs).square().mean().log10()) >= SAME_PICTURE


def test_every_frame_has_the_same_gaussians_in_the_same_order_moved_by_the_known_way(tmp_path):
    PlySequence(frames=3).write(moving.model(resting=4), tmp_path / "clip", cameras)
    tables = [PlyData.read(str(tmp_path / f"clip/frame_{i:05d}.ply"))["vertex"].data for i in range(3)]
    # World units are twice the scene's.
    np.testing.assert_allclose(tables[2]["x"][:8] - tables[0]["x"][:8], 1.2, atol=1e-5)
    np.testing.assert_allclose(tables[1]["x"][:8] - tables[0]["x"][:8], 0.6, atol=1e-5)
    for name in tables[0].dtype.names:
        np.testing.assert_array_equal(tables[0][name][8:], tables[2][name][8:], err_msg=name)


def test_the_manifest_says_how_to_play_the_clip(tmp_path):
    model = moving.model()
    line = PlySequence(fps=24).write(model, tmp_path / "clip", cameras)
    manifest = json.loads((tmp_path / "clip/manifest.json").read_text())
    assert "8 frames of 12 Gaussians at 24 a second" in line
    assert (manifest["frames"], manifest["fps"], manifest["gaussians"]) == (8, 24, 12)
    assert manifest["time_range"] == [0, 1] and manifest["times"][-1] == 1 and len(manifest["times"]) == 8
    np.testing.assert_allclose(manifest["up"], [0, 0, 1], atol=1e-4)
    ends = torch.cat([model.to_world(model.at(time)[0].means) for time in (0.0, 1.0)])
    np.testing.assert_allclose(
        manifest["bounds"], [ends.min(0).values.tolist(), ends.max(0).values.tolist()], atol=1e-5
    )
    assert sorted(os.listdir(tmp_path / "clip")) == [*(f"frame_{i:05d}.ply" for i in range(8)), "manifest.json"]


def test_a_part_of_the_clip_can_be_written(tmp_path):
    PlySequence(frames=3, start=0.5, stop=0.7).write(moving.model(), tmp_path / "clip")
    manifest = json.loads((tmp_path / "clip/manifest.json").read_text())
    np.testing.assert_allclose(manifest["times"], [0.5, 0.6, 0.7])
    assert manifest["up"] is None
    with pytest.raises(ValidationError, match="must not come after"):
        PlySequence(start=0.7, stop=0.5)


def test_an_earlier_clip_is_replaced_and_anything_else_is_left_alone(tmp_path):
    PlySequence(frames=5).write(moving.model(), tmp_path / "clip")
    PlySequence(frames=2).write(moving.model(), tmp_path / "clip")
    assert len(os.listdir(tmp_path / "clip")) == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("")
    (tmp_path / "file").write_text("")
    for name in ("mine", "file"):
        with pytest.raises(FileError, match="choose a new folder"):
            PlySequence(frames=2).write(moving.model(), tmp_path / name)
    with pytest.raises(FileError, match="cannot be written"):
        PlySequence(frames=2).write(moving.model(), tmp_path / "file" / "clip")


def test_a_clip_that_breaks_off_leaves_nothing_half_there(tmp_path):
    model = moving.model()
    model.gaussians.means[3, 1] = torch.nan
    with pytest.raises(FileError, match="1 of 12 Gaussians"):
        PlySequence(frames=2).write(model, tmp_path / "clip")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("fps", [math.inf, 1e-3, 1e9])
def test_a_rate_that_no_player_has_is_refused(fps):
    with pytest.raises(ValidationError, match=r"fps must be from 0\.1 to 1000"):
        PlySequence(fps=fps)


def test_without_cameras_somebody_must_say_how_many_frames(tmp_path):
    with pytest.raises(FileError, match="give frames="):
        PlySequence().write(moving.model(), tmp_path / "clip")


def test_a_still_run_is_a_clip_too_and_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        PlySequence(frames=1).write(moving.model(still=True), tmp_path / "clip")
    assert "still" in caplog.text and (tmp_path / "clip/frame_00000.ply").is_file()


def test_canonical_gaussians_come_with_a_warning_and_a_moment_is_named(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        line = Ply(time=0.5).write(moving.model(), tmp_path / "moment.ply")
        assert "one moment t = 0.5" in line and not caplog.records
        Ply(time=None).write(moving.model(), tmp_path / "canonical.ply")
        assert "alone look blurred" in caplog.text
    moment, canonical = (
        load(tmp_path / f"{name}.ply", Reference()).gaussians.means for name in ("moment", "canonical")
    )
    torch.testing.assert_close(moment - canonical, torch.tensor([[0.6, 0.0, 0.0]]).expand(12, 3))
