import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from nfc_gs.core.rig import look_at, rig_of
from nfc_gs.evaluation.paths import PATHS, PathError, walk
from tests.evaluation import moving

FLOAT32 = {"rtol": 0, "atol": 1e-4}  # camera matrices are float32
CAMERAS = [moving.camera(2 * math.pi * i / 12, height=0.8) for i in range(12)]
RIG = rig_of(CAMERAS, torch.zeros(3))


def positions(cameras) -> torch.Tensor:
    return torch.stack([camera.position for camera in cameras])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("count", [1, 2, 37])
def test_every_path_has_as_many_frames_as_asked_for_and_proper_rotations(path, count):
    frames = walk(path, CAMERAS, RIG, count)
    assert len(frames) == count
    rotations = torch.stack([camera.world_to_camera[:3, :3] for camera in frames])
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).expand(count, 3, 3), **FLOAT32)
    assert bool((torch.linalg.det(rotations) > 0).all())


def test_an_orbit_of_a_ring_is_that_ring():
    frames = walk("orbit", CAMERAS, RIG, 12)
    torch.testing.assert_close(positions(frames), positions(CAMERAS), **FLOAT32)
    assert all((c.project(torch.zeros(3))[0] - torch.tensor([24.0, 18.0])).abs().max() < 1e-2 for c in frames)


def test_an_orbit_does_not_go_where_no_camera_has_been():
    frames = walk("orbit", CAMERAS[2:6], RIG, 40)
    angles = torch.atan2(*positions(frames)[:, [1, 0]].T)
    assert math.isclose(float(angles.min()), math.pi / 3, abs_tol=1e-3)
    assert math.isclose(float(angles.max()), 5 * math.pi / 6, abs_tol=1e-3)


def test_a_spiral_stays_near_a_camera_and_looks_at_the_same_point():
    frames = walk("spiral", CAMERAS, RIG, 40)
    apart = torch.cdist(positions(frames), positions(CAMERAS)).min(1).values
    assert float(apart.max()) < 0.5 * math.hypot(3, 0.8)
    assert float((positions(frames) - positions(frames)[0]).norm(dim=1).max()) > 0.2
    assert all((c.project(torch.zeros(3))[0] - torch.tensor([24.0, 18.0])).abs().max() < 1e-2 for c in frames)


def test_a_flight_through_cameras_on_a_ring_stays_on_the_ring():
    frames = walk("interpolate", CAMERAS, RIG, 200)
    radii = positions(frames)[:, :2].norm(dim=1)
    # Between knots 30 degrees apart a cubic leaves the circle by far less than its chord does (0.1).
    np.testing.assert_allclose(radii, 3, atol=0.02)
    torch.testing.assert_close(frames[0].world_to_camera, CAMERAS[0].world_to_camera, **FLOAT32)
    torch.testing.assert_close(frames[-1].world_to_camera, CAMERAS[-1].world_to_camera, **FLOAT32)
    steps = positions(frames).diff(dim=0).norm(dim=1)
    assert float(steps.max()) < 1.3 * float(steps.min()), "an even pace"


@pytest.mark.parametrize("count", [5, 24])
def test_what_cameras_look_at_stays_in_the_middle_however_far_apart_they_are(count):
    apart = [moving.camera(angle, height) for angle, height in ((0.0, 0.8), (2.2, 2.5), (4.1, 0.1), (6.0, 1.5))]
    for frame in walk("interpolate", apart, rig_of(apart, torch.zeros(3)), count):
        pixel, depth = frame.project(torch.zeros(3))
        assert float(depth) > 1
        assert float((pixel - torch.tensor([24.0, 18.0])).abs().max()) < 0.05


def test_cameras_that_look_away_from_each_other_are_flown_through_by_their_places():
    outward = [replace(c, world_to_camera=look_at(c.position, 2 * c.position, RIG.up.float())) for c in CAMERAS]
    radii = positions(walk("interpolate", outward, RIG, 200)).norm(dim=1)
    np.testing.assert_allclose(radii, math.hypot(3, 0.8), atol=0.02)


def test_a_capture_in_no_order_is_flown_through_from_neighbour_to_neighbour():
    shuffled = [CAMERAS[i] for i in (0, 7, 3, 10, 5, 1, 8, 2, 11, 6, 4, 9)]
    length = positions(walk("interpolate", shuffled, RIG, 200)).diff(dim=0).norm(dim=1).sum()
    assert float(length) < 2 * math.pi * 3


def test_the_data_sets_own_path_is_its_cameras_at_their_times():
    cameras = [view.camera for view in moving.scene().train]
    assert walk("dataset", cameras, RIG, len(cameras)) == cameras


def test_unknown_paths_and_too_few_cameras_are_one_line():
    with pytest.raises(PathError, match="'spirale': one of orbit, spiral, interpolate, dataset"):
        walk("spirale", CAMERAS, RIG, 3)
    for cameras in (CAMERAS[:1], [CAMERAS[0]] * 3):
        with pytest.raises(PathError, match="use orbit or spiral"):
            walk("interpolate", cameras, RIG, 30)
