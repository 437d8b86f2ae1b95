import dataclasses

import numpy as np
import pytest
import torch

from dynamic.datasets.toy import APPEARS_AT, BALL_RADIUS, BALL_RISE, BOUNCES, Toy
from nfc_gs.core.camera import Camera
from nfc_gs.core.solids import to_bytes

MOTIONS = ("articulated", "bouncing", "appearing")
# Places of about one unit in float32, after a product of a few rotations.
PLACE_TOLERANCE = 1e-5


def small(motion="articulated", **settings):
    return Toy(**{"motion": motion, "size": 32, "num_train": 6, "num_test": 2, "supersample": 2} | settings)


def rows_of_parts(world, num, seed):
    """Which part each row of `tracks` sticks to, by the rule that rows come part by part."""
    solids = [part.at(0.0) for part in world.parts]
    return np.repeat(np.arange(len(solids)), [len(some) for some in world._sample(solids, num, seed)])


def test_there_is_one_picture_at_each_time_and_judges_come_in_pairs():
    scene = small(num_train=5, num_test=3).load(0)
    assert [view.camera.time for view in scene.train] == [0.0, 0.25, 0.5, 0.75, 1.0]
    at, between = scene.test[:3], scene.test[3:]
    for one, other in zip(at, between, strict=True):
        assert one.name.replace("at", "between") == other.name
        assert torch.equal(one.camera.world_to_camera, other.camera.world_to_camera)
        assert one.camera.time in scene.times
        assert other.camera.time == one.camera.time + 0.125


def test_neighbouring_times_are_seen_from_anywhere():
    scene = Toy().load(0)
    heights = np.array([float(view.camera.position[2]) for view in scene.train])
    # Heights in the order of the dome would correlate perfectly with time.
    assert abs(np.corrcoef(heights, np.arange(len(heights)))[0, 1]) < 0.4


def test_the_same_seed_makes_the_same_clip_and_another_one_another():
    first, again, other = (small().load(seed) for seed in (0, 0, 1))
    assert np.array_equal(first.train[2].read().rgb, again.train[2].read().rgb)
    assert not np.array_equal(first.train[2].read().rgb, other.train[2].read().rgb)


def test_a_clip_of_one_time_is_still():
    scene = small(num_train=1).load(0)
    assert scene.times == (0.0,)
    assert len(scene.test) == 2


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_part_moves_rigidly(motion):
    world = small(motion).world(3)
    tracks = world.tracks([0.0, 0.3, 0.77, 1.0], 120, seed=0).astype(np.float64)
    parts = rows_of_parts(world, 120, 0)
    for part in np.unique(parts):
        mine = tracks[:, parts == part]
        distances = np.linalg.norm(mine[:, :, None] - mine[:, None], axis=-1)
        assert np.abs(distances - distances[:1]).max() < PLACE_TOLERANCE


def test_links_of_the_arm_hold_together():
    world = small("articulated").world(5)
    for time in np.linspace(0, 1, 7):
        *_, first, second, third, hand = world.solids(float(time))
        for lower, upper in ((first, second), (second, third)):
            top = np.array([[0.0, 0.0, 2 * lower.rest.half[2]]], dtype=np.float32)
            foot = np.zeros((1, 3), dtype=np.float32)
            assert np.allclose(lower.from_rest(top), upper.from_rest(foot), atol=PLACE_TOLERANCE)
        end = np.array([[0.0, 0.0, 2 * third.rest.half[2]]], dtype=np.float32)
        assert np.allclose(third.from_rest(end)[0], hand.ball[0], atol=PLACE_TOLERANCE)


def test_the_ball_falls_with_one_acceleration_and_lands_on_the_table():
    world = Toy(motion="bouncing").world(0)
    times = np.linspace(0, 1, 2001)
    heights = np.array([world.parts[-1].motion(float(t))[1][2] for t in times])
    acceleration = np.diff(heights, 2) / (times[1] - times[0]) ** 2
    flying = acceleration < 0
    # z = r + 4 h u (1 - u) with u = n t: z'' = -8 h n^2. Only the steps across a landing see anything else.
    assert np.allclose(acceleration[flying], -8 * BALL_RISE * BOUNCES**2, atol=1e-6)
    assert (~flying).sum() <= 2 * BOUNCES
    # Within half a step of a landing, at the speed 4 h n of landing.
    assert heights.min() >= BALL_RADIUS
    assert heights.min() - BALL_RADIUS < 4 * BALL_RISE * BOUNCES * (times[1] - times[0])


def test_the_ball_is_small_and_fast():
    toy = Toy(motion="bouncing")
    centres = np.array([toy.world(0).parts[-1].motion(t)[1] for t in toy.load(0).times])
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    assert 0.3 < np.median(steps) / (2 * BALL_RADIUS) < 1.5


def test_the_late_object_is_there_all_at_once():
    toy = small("appearing", num_train=11)
    camera = toy.load(0).test[0].camera
    world = toy.world(0)
    assert len(world.solids(APPEARS_AT - 1e-6)) + 1 == len(world.solids(APPEARS_AT))
    before, just, after = (shot(toy, world, camera, t) for t in (0.0, APPEARS_AT - 1e-6, APPEARS_AT))
    assert np.array_equal(before, just)
    assert not np.array_equal(just, after)


def shot(toy, world, camera: Camera, time):
    """The picture of a moment, by a view of its own."""
    place = camera.position.numpy().astype(np.float64)
    return toy._view(world, "one", place, float(time)).read().rgb


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_true_surface_lies_on_covered_pixels(motion):
    toy = small(motion, size=64)
    world = toy.world(1)
    for view in toy.load(1).test:
        points = torch.from_numpy(world.surface(view.camera.time, 500, seed=0)[0])
        pixels, depth = view.camera.project(points)
        assert (depth > 0).all()
        column, row = pixels.floor().long().unbind(-1)
        # Only points on the very outline share their pixel with the background.
        assert (view.read().alpha[row, column] > 0).mean() > 0.98


def test_surface_points_keep_their_colours_and_pictures_show_them():
    toy = small("articulated", size=128, supersample=3)
    world = toy.world(2)
    colours = [world.surface(t, 400, seed=0)[1] for t in (0.0, 0.5)]
    # A place on a seam of the pattern may fall on either side of it: rare, and to none of both pictures' disadvantage.
    assert (np.abs(colours[0] - colours[1]).max(axis=1) < 1e-3).mean() > 0.97
    view = toy.load(2).test[1]
    points, colour = world.surface(view.camera.time, 4000, seed=0)
    pixels, depth = view.camera.project(torch.from_numpy(points))
    column, row = pixels.floor().long().unbind(-1)
    photograph = view.read()
    # The nearest point of each pixel is the one seen, wherever there are enough points.
    order = np.argsort(-depth.numpy())
    nearest = np.full(photograph.alpha.shape, -1)
    nearest[row.numpy()[order], column.numpy()[order]] = order
    rows, columns = np.nonzero((nearest >= 0) & (photograph.alpha == 255))
    error = np.abs(photograph.rgb[rows, columns].astype(int) - to_bytes(colour)[nearest[rows, columns]]).max(axis=1)
    # Seams of patterns, and points seen through gaps between nearer ones, are the rest.
    assert np.median(error) < 12


def test_fixed_light_differs_from_carried_light():
    carried, fixed = (small(light=light, num_train=3).load(0).train[1].read() for light in ("carried", "fixed"))
    assert np.array_equal(carried.alpha, fixed.alpha)
    assert np.abs(carried.rgb.astype(int) - fixed.rgb).max() > 20


@pytest.mark.parametrize("motion", MOTIONS)
def test_whatever_the_seed_all_stays_in_the_bounds_in_the_picture_and_above_the_table(motion):
    for seed in range(8):
        toy = small(motion, size=24, supersample=1, num_train=4)
        scene, world = toy.load(seed), toy.world(seed)
        tracks = torch.from_numpy(world.tracks(np.linspace(0, 1, 21).tolist(), 300, seed=0))
        assert (tracks >= scene.bounds[0]).all()
        assert (tracks <= scene.bounds[1]).all()
        assert tracks[..., 2].min() > -PLACE_TOLERANCE
        for view in scene.train:
            pixels, _ = view.camera.project(tracks)
            assert pixels.min() > 0
            assert pixels.max() < 24


def test_points_stand_on_the_surface_of_the_first_moment():
    scene = small(points=50).load(0)
    assert scene.points.xyz.shape == (50, 3)
    assert small().load(0).points is None


def test_the_controls_hold_for_the_toy_as_well():
    toy = small(num_train=9)
    shuffled = dataclasses.replace(toy, shuffle_times=True).load(0)
    assert sorted(view.camera.time for view in shuffled.train) == list(toy.load(0).times)
    thinned = dataclasses.replace(toy, train_stride=2).load(0)
    assert thinned.times == (0.0, 0.25, 0.5, 0.75, 1.0)
    # The pictures are still those of the true times.
    assert np.array_equal(shuffled.train[3].read().rgb, toy.load(0).train[3].read().rgb)
