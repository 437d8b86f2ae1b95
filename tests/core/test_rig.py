import math
from dataclasses import replace

import pytest
import torch
from scipy.spatial.transform import Rotation

from nfc_gs.core.camera import Camera
from nfc_gs.core.rig import look_at, rig_of

FLOAT32 = {"rtol": 0, "atol": 2e-5}  # camera matrices are float32
TARGET = torch.tensor([0.4, -1.0, 2.0])
TILT = torch.from_numpy(Rotation.from_rotvec([0.5, -0.8, 0.3]).as_matrix()).float()
UP = TILT @ torch.tensor([0.0, 0.0, 1.0])


def camera(position, target) -> Camera:
    return Camera(
        world_to_camera=look_at(position, target, UP), focal=(50.0, 50.0), centre=(20.0, 15.0), width=40, height=30
    )


def ring(arc: float) -> list[Camera]:
    angles = torch.arange(9) * (arc / 9)
    offsets = torch.stack([3 * angles.cos(), 3 * angles.sin(), 1 + 0.5 * (3 * angles).sin()], 1)
    return [camera(TARGET + TILT @ offset, TARGET) for offset in offsets]


@pytest.mark.parametrize("arc", [2 * math.pi, 1.0])
def test_level_cameras_about_a_point_say_which_point_and_which_way_is_up(arc):
    rig = rig_of(ring(arc), torch.zeros(3))
    torch.testing.assert_close(rig.target.float(), TARGET, **FLOAT32)
    torch.testing.assert_close(rig.up.float(), UP, **FLOAT32)


def test_cameras_that_all_look_the_same_way_look_at_what_is_before_them():
    forward = TILT @ torch.tensor([0.0, 1.0, 0.0])
    places = [torch.tensor([x, y, 0.0]) for x in (0.0, 0.5) for y in (0.0, 0.5)]
    rig = rig_of([camera(TILT @ place, TILT @ place + forward) for place in places], 4 * forward)
    torch.testing.assert_close(rig.up.float(), UP, **FLOAT32)
    middle = TILT @ torch.tensor([0.25, 0.25, 0.0])
    torch.testing.assert_close(rig.target.float(), middle + (4 * forward - middle) @ forward * forward, **FLOAT32)


def test_a_lone_camera_is_a_rig_too():
    rig = rig_of([replace(camera(torch.zeros(3), TARGET), time=0.5)], TARGET)
    torch.testing.assert_close(rig.target.float(), TARGET, **FLOAT32)


def test_a_camera_put_somewhere_sees_its_target_in_the_middle_and_up_above():
    matrix = look_at(torch.tensor([3.0, 1.0, 2.0]), TARGET, UP)
    seen = camera(torch.tensor([3.0, 1.0, 2.0]), TARGET)
    pixel, depth = seen.project(TARGET)
    torch.testing.assert_close(pixel, torch.tensor([20.0, 15.0]), rtol=0, atol=1e-3)
    assert depth > 0 and seen.project(TARGET + 0.1 * UP)[0][1] < 15
    torch.testing.assert_close(matrix[:3, :3] @ matrix[:3, :3].T, torch.eye(3), **FLOAT32)


def test_looking_straight_down_is_a_proper_rotation():
    matrix = look_at(TARGET + 2 * UP, TARGET, UP)
    assert float(torch.linalg.det(matrix[:3, :3])) == pytest.approx(1, abs=1e-5)
