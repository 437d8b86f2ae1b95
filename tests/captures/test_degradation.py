"""Spoilt photographs: each damage against its own closed form."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from nfc_gs.captures.degradation import Degradation
from nfc_gs.captures.pictures import DatasetError
from nfc_gs.core.camera import Camera
from nfc_gs.core.scene import Photograph, Scene, View

GREY = np.full((120, 160, 3), 0.5, np.float32)
CAMERA = Camera(world_to_camera=torch.eye(4), focal=(50.0, 50.0), centre=(4.0, 4.0), width=8, height=8)
# A standard deviation of 57,600 numbers is known to 0.3 %; rounding to 8 bits adds 1/sqrt(12) of a step.
SPREAD = 0.02


def picture(**settings: float) -> np.ndarray:
    """Grey, spoilt."""
    return Degradation(**settings).spoil(GREY, (0, 1)) / 255.0


def test_noise_has_the_standard_deviation_it_says() -> None:
    assert picture(noise=0.1).std() == pytest.approx(0.1, rel=SPREAD)
    assert picture(noise=0.1).mean() == pytest.approx(0.5, abs=0.002)


def test_shot_noise_has_the_variance_of_a_count() -> None:
    # n photons make white, so n / 2 make grey: a count of mean and variance n / 2, divided by n.
    assert picture(photons=200).std() == pytest.approx(np.sqrt(100) / 200, rel=SPREAD)


def test_gains_are_stops_one_for_a_picture_and_one_for_each_channel() -> None:
    stops = np.log2([Degradation(exposure=0.3).spoil(GREY / 4, (0, n))[0, 0, 0] / 255 / 0.125 for n in range(400)])
    assert stops.std() == pytest.approx(0.3, rel=0.15)  # of 400 numbers
    tinted = Degradation(tint=0.3).spoil(GREY, (0, 1))
    assert (tinted == tinted[0, 0]).all() and len(set(tinted[0, 0])) == 3


def test_blur_is_a_gaussian() -> None:
    rgb = np.random.default_rng(0).random((40, 50, 3), dtype=np.float32)
    expected = gaussian_filter(rgb.astype(np.float64), (2, 2, 0), mode="nearest")
    # OpenCV cuts an 8-bit-like kernel at three standard deviations: 0.3 % of its mass.
    assert np.abs(Degradation(blur=2).spoil(rgb, (0,)) / 255.0 - expected).max() < 0.01


def test_jpeg_is_jpeg() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 30])
    expected = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(Degradation(jpeg=30).spoil(rgb.astype(np.float32) / 255, (0,)), expected)


def test_blocks_cover_part_of_the_picture_and_leave_the_rest() -> None:
    changed = (picture(blocks=1) != np.floor(0.5 * 255 + 0.5) / 255).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert changed.sum() == len(rows) * len(columns), "one rectangle"
    assert 0.04 * 120 <= len(rows) <= 0.25 * 120 + 1 and 0.04 * 160 <= len(columns) <= 0.25 * 160 + 1


def test_values_are_clipped_as_a_camera_clips() -> None:
    white = Degradation(noise=0.1).spoil(np.ones_like(GREY), (0,))
    assert (white == 255).mean() == pytest.approx(0.5, abs=0.03) and white.min() < 255


def scene() -> Scene:
    """Two transparent views over white."""
    rgb, alpha = np.full((8, 8, 3), 50, np.uint8), np.full((8, 8), 100, np.uint8)
    views = tuple(
        View(name=name, camera=CAMERA, read=lambda: Photograph(rgb=rgb, alpha=alpha)) for name in ("one", "two")
    )
    return Scene(train=views, test=views[:1], points=None, extent=1.0, background=(1.0, 1.0, 1.0))


def test_only_training_views_are_spoilt_each_in_its_own_way_and_always_alike() -> None:
    spoilt = Degradation(noise=0.05)(scene(), 3)
    first, second = (view.read() for view in spoilt.train)
    assert spoilt.test[0].read().alpha is not None
    assert first.alpha is None and (first.rgb != second.rgb).any()
    np.testing.assert_array_equal(first.rgb, spoilt.train[0].read().rgb)
    assert (first.rgb != Degradation(noise=0.05)(scene(), 4).train[0].read().rgb).any()
    # 50 + (1 - 100 / 255) 255 = 205
    assert first.rgb.mean() == pytest.approx(205, abs=3)


def test_no_degradation_changes_nothing() -> None:
    untouched = scene()
    assert Degradation()(untouched, 0) is untouched


def test_a_random_background_cannot_be_spoilt() -> None:
    with pytest.raises(DatasetError, match=r"set dataset\.background=white"):
        Degradation(noise=0.1)(replace(scene(), random_background=True), 0)


def test_a_quality_above_100_is_refused() -> None:
    with pytest.raises(ValueError, match="quality from 1 to 100"):
        Degradation(jpeg=101)


def errors(degradation: Degradation, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """How far cameras were turned, in degrees about their axes, and moved, along them, by scipy's reckoning."""
    pose = torch.eye(4)
    pose[:3, :3] = torch.from_numpy(Rotation.from_rotvec([0.4, -0.2, 0.9]).as_matrix())
    pose[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    camera = replace(CAMERA, world_to_camera=pose)
    views = tuple(replace(scene().train[0], name=str(number), camera=camera) for number in range(count))
    moved = degradation(replace(scene(), train=views, extent=2.0), 0)
    rotation = pose[:3, :3].double().numpy()
    turns, shifts = [], []
    for view in moved.train:
        after = view.camera.world_to_camera[:3, :3].double().numpy()
        turns.append(Rotation.from_matrix(after @ rotation.T).as_rotvec(degrees=True))
        shifts.append(rotation @ (view.camera.position - camera.position).double().numpy())
    return np.array(turns), np.array(shifts)


def test_poses_are_turned_by_degrees_about_their_own_centres() -> None:
    turns, shifts = errors(Degradation(rotation=2.0))
    assert turns.std() == pytest.approx(2.0, rel=0.1)  # of 1,200 numbers
    assert np.abs(shifts).max() < 1e-5  # float32 of places near 4


def test_poses_are_moved_by_shares_of_the_extent() -> None:
    turns, shifts = errors(Degradation(translation=0.05))
    assert shifts.std() == pytest.approx(0.05 * 2.0, rel=0.1)
    assert np.abs(turns).max() < 1e-4


def test_wrong_poses_leave_the_photographs_and_the_held_out_views_alone() -> None:
    before = replace(scene(), random_background=True)
    after = Degradation(rotation=1.0)(before, 0)
    assert after.test is before.test and after.train[0].read is before.train[0].read
    assert not torch.equal(after.train[0].camera.world_to_camera, after.train[1].camera.world_to_camera)


def test_patches_are_parts_of_the_picture_itself_upside_down() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    found = Degradation(patches=1).spoil(rgb.astype(np.float32) / 255, (0, 1))
    changed = (found != rgb).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    patch = found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1][::-1, ::-1]
    tall, wide = patch.shape[:2]
    assert changed.mean() < 0.07 and tall > 2 and wide > 3
    places = [
        (y, x) for y in range(61 - tall) for x in range(81 - wide) if (rgb[y : y + tall, x : x + wide] == patch).all()
    ]
    assert len(places) == 1, "of random numbers there is one part like it"
