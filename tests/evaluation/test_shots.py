import logging
import os
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from nfc_gs.evaluation.motion import Trails, draw_speeds, speeds, top_speed
from nfc_gs.evaluation.paths import PathError
from nfc_gs.evaluation.pictures import PictureError, to_bytes
from nfc_gs.evaluation.shots import MODES, Film, plan, shoot
from tests.evaluation import moving

SCENE = moving.scene()


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path))[..., ::-1]


def test_frames_are_the_models_own_pictures_at_their_times(tmp_path):
    model = moving.model()
    shoot(Film(times=(0.0, 0.25, 1.0), view="side"), SCENE, model, "rgb", tmp_path / "film")
    for i, time in enumerate((0.0, 0.25, 1.0)):
        seen = replace(SCENE.test[1].camera, time=time)
        np.testing.assert_array_equal(read(tmp_path / f"film/frame_{i:05d}.png"), to_bytes(model.render(seen).rgb))
    assert len(os.listdir(tmp_path / "film")) == 4  # and the sheet


def test_a_sliding_scene_looks_like_the_still_one_from_a_camera_that_slides_the_other_way(tmp_path):
    # The oracle is a still model: moving everything by d is moving the camera by -d. Its harmonics look the same way.
    shoot(Film(times=(0.5, 1.0), view="top"), SCENE, moving.model(), "rgb", tmp_path)
    for i, time in enumerate((0.5, 1.0)):
        pose = SCENE.test[0].camera.world_to_camera.clone()
        pose[:3, 3] += pose[:3, :3] @ (time * torch.tensor(moving.SLIDE))
        still = moving.model(still=True).render(replace(SCENE.test[0].camera, world_to_camera=pose)).rgb
        difference = read(tmp_path / f"frame_{i:05d}.png").astype(int) - to_bytes(still)
        assert np.abs(difference).max() <= 1  # one step of rounding


def test_the_camera_stands_still_or_the_time_or_neither():
    model = moving.model()
    frozen_camera = plan(Film(times=5), SCENE, model)
    assert [c.time for c in frozen_camera] == [0, 0.25, 0.5, 0.75, 1]
    assert all(c.world_to_camera is SCENE.test[0].camera.world_to_camera for c in frozen_camera)
    frozen_time = plan(Film(time=0.3, path="orbit", num_frames=6), SCENE, model)
    assert [c.time for c in frozen_time] == [0.3] * 6
    assert len({tuple(c.position.tolist()) for c in frozen_time}) == 6
    both = plan(Film(path="orbit", num_frames=6), SCENE, model)
    assert (both[0].time, both[-1].time) == (0, 1)
    assert len({tuple(c.position.tolist()) for c in both}) == 6


def test_the_data_sets_path_has_its_own_times_unless_they_are_stopped():
    model = moving.model()
    assert [c.time for c in plan(Film(path="dataset"), SCENE, model)] == [0.25, 0.75]
    assert [c.time for c in plan(Film(path="dataset", split="train"), SCENE, model)][-1] == 1
    assert [c.time for c in plan(Film(time=0.4), SCENE, model)] == [0.4, 0.4]


def test_a_still_model_is_filmed_by_moving_the_camera(tmp_path, caplog):
    line = shoot(Film(path="orbit", num_frames=10), SCENE, moving.model(still=True), "rgb", tmp_path / "film.mp4")
    assert "10 frames, 48x36" in line and not caplog.records
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert len(list(container.decode(video=0))) == 10
    with caplog.at_level(logging.WARNING):
        plan(Film(time=0.5, path="orbit"), SCENE, moving.model(still=True))
    assert "still" in caplog.text


def test_another_size_shows_at_least_what_was_seen_and_stretches_nothing(tmp_path):
    big = plan(Film(times=2, size=(200, 72)), SCENE, moving.model())[0]
    assert (big.width, big.height, big.focal, big.centre) == (200, 72, (120.0, 120.0), (100.0, 36.0))
    line = shoot(Film(times=3, size=(51, 33)), SCENE, moving.model(), "rgb", tmp_path / "film.mp4")
    assert "50x32 (cut to even sides)" in line


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_makes_a_film_and_a_sheet(tmp_path, mode):
    assert "3 frames" in shoot(Film(times=3), SCENE, moving.model(), mode, tmp_path / "film.gif")
    assert "3 frames" in shoot(Film(times=3), SCENE, moving.model(), mode, tmp_path / "sheet.png")
    assert sorted(os.listdir(tmp_path)) == ["film.gif", "sheet.png"]


def test_the_speed_of_a_slide_is_its_length():
    for time in (0.0, 0.4, 1.0):
        # A difference of positions near 1 in float32, over a time of 1/400 at least.
        torch.testing.assert_close(speeds(moving.model(), time), torch.full((12,), 0.6), rtol=0, atol=1e-3)
    assert abs(top_speed(moving.model()) - 0.6) < 1e-3
    assert top_speed(moving.model(still=True)) == 0


def test_heat_is_where_something_moves_and_nowhere_else():
    model = moving.model(resting=6)
    camera = replace(SCENE.test[0].camera, time=0.5)
    heat = draw_speeds(model, camera, top_speed(model)).astype(int)
    alone = model.gaussians.map(lambda values: values[:6])
    shown = moving.model()
    shown.gaussians = alone
    covered = (shown.render(camera).rendering.alpha > 0.9).numpy()
    coloured = (heat.max(2) - heat.min(2)) > 30
    assert covered.sum() > 20
    # What hides a moving blob is grey: most of what moves is seen here.
    assert (coloured & covered).sum() > 0.6 * covered.sum()
    assert not coloured[(shown.render(camera).rendering.alpha < 0.004).numpy()].any()
    still = draw_speeds(moving.model(still=True), camera, 0.0)
    assert (still.max(2) - still.min(2)).max() <= 4  # the colour map begins at (0, 0, 4)


def test_a_trail_lies_where_its_gaussian_has_been():
    model = moving.model(resting=11)
    camera = replace(SCENE.test[1].camera, time=0.5)
    trails = Trails.of(model)
    assert trails.chosen.tolist() == [0]
    picture = trails.draw(camera).astype(int)
    rows, columns = np.nonzero(picture.max(2) - picture.min(2) > 20)
    ends, _ = camera.project(torch.stack([model.at(time)[0].means[0] for time in (0.35, 0.5)]))
    low, high = ends.min(0).values.numpy() - 2, ends.max(0).values.numpy() + 2
    assert len(rows) > 3
    assert (
        (columns >= low[0]).all() and (columns <= high[0]).all() and (rows >= low[1]).all() and (rows <= high[1]).all()
    )
    assert len(Trails.of(moving.model(still=True)).chosen) == 0


@pytest.mark.parametrize(
    ("film", "message"),
    [
        (Film(times=3, time=0.5), "--time stops the time and --times moves it"),
        (Film(path="orbit", view="top"), "--view stops the camera and --path moves it"),
        (Film(path="circle"), "'circle': one of orbit"),
        (Film(view="topp"), "did you mean 'top.png'"),
        (Film(times=(0.1, 0.2), num_frames=3), "2 frames and --frames for 3"),
    ],
)
def test_wishes_that_cannot_be_met_are_one_line(film, message):
    with pytest.raises(PathError, match=message) as error:
        plan(film, SCENE, moving.model())
    assert "\n" not in str(error.value)


def test_a_film_in_which_nothing_moves_is_refused():
    with pytest.raises(PathError, match="neither the scene nor the camera"):
        plan(Film(num_frames=10), SCENE, moving.model(still=True))


def test_modes_and_formats_that_are_none_are_one_line(tmp_path):
    with pytest.raises(PictureError, match="cannot show 'heat'"):
        shoot(Film(times=3), SCENE, moving.model(), "heat", tmp_path)
    for mode in ("error", "confidence"):
        with pytest.raises(PictureError, match=f"^{mode} is drawn as pictures of a split's views, not as a film"):
            shoot(Film(times=3), SCENE, moving.model(), mode, tmp_path)
    for name in ("film.mov", "sheet.JPG", "frames.bmp"):
        with pytest.raises(PictureError, match="is written: a film is"):
            shoot(Film(times=3), SCENE, moving.model(), "rgb", tmp_path / name)
    assert not list(tmp_path.iterdir())
