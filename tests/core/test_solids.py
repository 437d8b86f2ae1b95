import numpy as np
import pytest
import torch

from nfc_gs.core.camera import Camera
from nfc_gs.core.solids import Box, Carried, Disc, Pattern, Sphere, look_at, sample_surfaces, surface_colours, trace

# Distances of about 5 in float32, through a square root.
TOLERANCE = 1e-5
PLAIN = Pattern(kind="stripes", first=(1.0, 0.5, 0.25), second=(1.0, 0.5, 0.25), waves=1.0)


def hit(solid, origin, direction):
    unit = np.array(direction) / np.linalg.norm(direction)
    return solid.distances(np.array(origin, dtype=np.float32), unit[None].astype(np.float32))[0]


def test_a_ray_at_a_spheres_middle_stops_one_radius_before_it():
    sphere = Sphere(centre=(1.0, 2.0, 3.0), radius=0.5, pattern=PLAIN)
    assert hit(sphere, (1, 2, -2), (0, 0, 1)) == pytest.approx(4.5, abs=TOLERANCE)


def test_a_ray_off_a_spheres_middle_stops_where_pythagoras_says():
    sphere = Sphere(centre=(0.0, 0.0, 0.0), radius=1.0, pattern=PLAIN)
    assert hit(sphere, (0.6, 0, -5), (0, 0, 1)) == pytest.approx(5 - 0.8, abs=TOLERANCE)
    assert hit(sphere, (1.01, 0, -5), (0, 0, 1)) == np.inf
    assert hit(sphere, (0, 0, 5), (0, 0, 1)) == np.inf


def test_a_ray_meets_a_turned_boxes_edge():
    box = Box(centre=(0.0, 0.0, 0.0), half=(1.0, 1.0, 1.0), turn=np.pi / 4, pattern=PLAIN)
    assert hit(box, (-5, 1e-4, 0), (1, 0, 0)) == pytest.approx(5 - np.sqrt(2), abs=2e-4)
    assert hit(box, (0.2, 0.3, 5), (0, 0, -1)) == pytest.approx(4, abs=TOLERANCE)
    assert hit(box, (-5, 1.5, 0), (1, 0, 0)) == np.inf
    assert hit(box, (-5, 0.1, 1.5), (1, 0, 0)) == np.inf


def test_a_ray_meets_a_disc_only_within_its_rim():
    disc = Disc(height=1.0, radius=2.0, pattern=PLAIN)
    assert hit(disc, (0, 0, 4), (1, 0, -1)) == np.inf
    assert hit(disc, (-2, 0, 4), (1, 0, -1)) == pytest.approx(3 * np.sqrt(2), abs=TOLERANCE)


@pytest.mark.parametrize(
    "solid",
    [
        Sphere(centre=(0.1, 0.2, 0.3), radius=0.7, pattern=PLAIN),
        Box(centre=(0.1, 0.2, 0.3), half=(0.3, 0.5, 0.8), turn=0.6, pattern=PLAIN),
        Disc(height=0.2, radius=0.9, pattern=PLAIN),
    ],
)
def test_sampled_points_are_where_rays_along_the_normal_meet_the_surface(solid):
    points = solid.sample(200, np.random.default_rng(0))
    normals = solid.normals(points)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=TOLERANCE)
    for point, normal in zip(points, normals, strict=True):
        assert hit(solid, point + 2 * normal, -normal) == pytest.approx(2, abs=TOLERANCE)


def test_a_traced_spheres_coverage_is_the_area_of_its_outline():
    """The outline of a sphere on the optical axis is a circle of focal * r / sqrt(d^2 - r^2)."""
    sphere = Sphere(centre=(0.0, 0.0, 0.0), radius=0.5, pattern=PLAIN)
    camera = Camera(
        world_to_camera=look_at(np.array([0.0, -3.0, 0.0]), np.zeros(3)),
        focal=(100.0, 100.0),
        centre=(32.0, 32.0),
        width=64,
        height=64,
    )
    _, coverage = trace([sphere], camera, 4)
    radius = 100 * 0.5 / np.sqrt(9 - 0.25)
    # 16 rays a pixel along an outline of about 100 pixels: Gauss's circle problem, well below 0.5 %.
    assert coverage.sum() == pytest.approx(np.pi * radius**2, rel=5e-3)


def test_a_traced_pixel_shows_the_colour_of_the_point_that_projects_there():
    solids = [
        Disc(height=0.0, radius=1.0, pattern=PLAIN),
        Sphere(centre=(0.0, 0.0, 0.4), radius=0.4, pattern=PLAIN),
    ]
    camera = Camera(
        world_to_camera=look_at(np.array([2.0, 1.0, 2.0]), np.zeros(3)),
        focal=(100.0, 100.0),
        centre=(32.0, 32.0),
        width=64,
        height=64,
    )
    colours, coverage = trace(solids, camera, 1)
    top = np.array([[0.1, 0.05, np.sqrt(0.16 - 0.0125) + 0.4]], dtype=np.float32)
    pixel, _ = camera.project(torch.from_numpy(top))
    column, row = pixel[0].floor().long().tolist()
    assert coverage[row, column] == 1
    # One pixel is 0.03 of the sphere, over which its smooth shading changes by less.
    np.testing.assert_allclose(colours[row, column], surface_colours(solids, 1, top)[0], atol=0.02)


def test_shading_darkens_where_a_ball_covers_the_sky():
    disc = Disc(height=0.0, radius=5.0, pattern=PLAIN)
    ball = Sphere(centre=(0.0, 0.0, 0.5), radius=0.5, pattern=PLAIN)
    points = np.array([[0.05, 0, 0], [4, 0, 0]], dtype=np.float32)
    near, far = surface_colours([disc, ball], 0, points)
    assert (near < 0.7 * far).all()


def test_more_points_fall_on_larger_surfaces():
    large, small = (Sphere(centre=(x, 0.0, 0.0), radius=r, pattern=PLAIN) for x, r in ((0.0, 1.0), (5.0, 0.5)))
    points, colours = sample_surfaces([large, small], 5000, np.random.default_rng(0))
    # Four fifths by area; the standard deviation of the share is 0.0057.
    assert (points[:, 0] < 2.5).mean() == pytest.approx(0.8, abs=0.025)
    assert colours.min() >= 0
    assert colours.max() <= 1


def test_a_box_carried_by_a_turn_is_the_turned_box():
    angle, place = 0.7, (0.3, -0.2, 0.4)
    half = (0.5, 0.3, 0.4)
    resting = Box(centre=(0.0, 0.0, 0.0), half=half, turn=0.0, pattern=PLAIN)
    c, s = np.cos(angle), np.sin(angle)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=np.float32)
    carried = Carried(rest=resting, rotation=rotation, translation=np.array(place, dtype=np.float32))
    turned = Box(centre=place, half=half, turn=angle, pattern=PLAIN)
    directions = np.random.default_rng(0).normal(size=(500, 3))
    directions = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
    origin = np.array([0.3, -0.2, 2.0], dtype=np.float32)
    distances = turned.distances(origin, directions)
    assert np.isfinite(distances).sum() > 10
    met = np.isfinite(distances) & np.isfinite(carried.distances(origin, directions))
    # A ray along an edge may miss one of the two.
    assert (met == np.isfinite(distances)).mean() > 0.99
    assert carried.distances(origin, directions)[met] == pytest.approx(distances[met], abs=TOLERANCE)
    points = origin + distances[met, None] * directions[met]
    assert carried.normals(points) == pytest.approx(turned.normals(points), abs=TOLERANCE)
    assert carried.own(points) == pytest.approx(turned.own(points), abs=TOLERANCE)
    assert carried.ball[0] == pytest.approx(turned.ball[0])
    assert carried.from_rest(carried.to_rest(points)) == pytest.approx(points, abs=TOLERANCE)


def test_a_picture_may_be_painted_otherwise():
    sphere = Sphere(centre=(0.0, 0.0, 0.0), radius=0.5, pattern=PLAIN)
    camera = Camera(
        world_to_camera=look_at(np.array([0.0, -3.0, 0.0]), np.zeros(3)),
        focal=(8.0, 8.0),
        centre=(4.0, 4.0),
        width=8,
        height=8,
    )
    seen, coverage = trace([sphere], camera, 2, lambda solids, which, points: np.full_like(points, 0.25))
    assert seen == pytest.approx(np.repeat(0.25 * coverage[..., None], 3, axis=2))
