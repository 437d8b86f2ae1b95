import torch

from nfc_gs.core.camera import Camera
from nfc_gs.core.scene import View, camera_extent


def view_from(x: float) -> View:
    world_to_camera = torch.eye(4)
    world_to_camera[0, 3] = -x
    camera = Camera(world_to_camera=world_to_camera, focal=(8.0, 8.0), centre=(4.0, 4.0), width=8, height=8)
    return View(name="", camera=camera, read=lambda: None)  # type: ignore[arg-type, return-value]


def test_the_extent_is_a_tenth_more_than_the_farthest_camera_is_from_the_mean():
    # Places 0, 3 and 6 about their mean 3.
    assert abs(camera_extent((view_from(0), view_from(3), view_from(6))) - 3.3) < 1e-6


def test_a_lone_camera_gives_the_unit_extent():
    assert camera_extent((view_from(5),)) == 1.0
    assert camera_extent((view_from(5), view_from(5))) == 1.0
