import numpy as np
import torch

from nfc_gs.datasets.toy import HALF_SIZE, Toy, still_life

SMALL = Toy(size=32, num_train=6, num_test=2, supersample=2, points=300)


def test_the_same_seed_makes_the_same_scene_and_another_one_another():
    first, again, other = (SMALL.load(seed) for seed in (0, 0, 1))
    assert np.array_equal(first.train[2].read().rgb, again.train[2].read().rgb)
    assert torch.equal(first.points.xyz, again.points.xyz)
    assert not np.array_equal(first.train[2].read().rgb, other.train[2].read().rgb)


def test_a_view_is_traced_once():
    view = SMALL.load(0).train[0]
    assert view.read() is view.read()


def test_counts_and_sizes_are_those_asked_for():
    scene = SMALL.load(0)
    photograph = scene.train[0].read()
    assert (len(scene.train), len(scene.test), len(scene.points.xyz)) == (6, 2, 300)
    assert photograph.rgb.shape == (32, 32, 3)
    assert Toy(size=32, points=0).load(0).points is None


def test_transparent_pictures_are_premultiplied_and_whole():
    scene = SMALL.load(3)
    assert scene.background == (1, 1, 1)
    for view in scene.train + scene.test:
        photograph = view.read()
        # Both were rounded to 8 bits.
        assert (photograph.rgb <= photograph.alpha[..., None].astype(int) + 1).all()
        # The whole subject is in the picture: nothing reaches the frame.
        assert photograph.alpha[0].max() == photograph.alpha[-1].max() == 0
        assert photograph.alpha[:, 0].max() == photograph.alpha[:, -1].max() == 0
        assert photograph.alpha.max() == 255


def test_with_a_sky_there_is_no_transparency():
    photograph = Toy(size=16, num_train=1, num_test=1, supersample=1, alpha=False).load(0).train[0].read()
    assert photograph.alpha is None
    assert photograph.rgb[0].min() > 50


def test_the_points_lie_on_opaque_pixels_and_within_the_bounds():
    scene = SMALL.load(5)
    assert (scene.points.xyz >= scene.bounds[0]).all()
    assert (scene.points.xyz <= scene.bounds[1]).all()
    for view in scene.test:
        pixels, depth = view.camera.project(scene.points.xyz)
        assert (depth > 0).all()
        column, row = pixels.floor().long().unbind(-1)
        # Only points on the very outline share their pixel with the background.
        assert (view.read().alpha[row, column] > 0).mean() > 0.99


def test_solids_of_every_seed_are_apart_and_inside():
    for seed in range(50):
        balls = [solid.ball for solid in still_life(seed) if solid.ball[1]]
        for index, (centre, radius) in enumerate(balls):
            assert np.hypot(*centre[:2]) + radius < HALF_SIZE
            for other, other_radius in balls[:index]:
                assert np.linalg.norm(centre - other) > radius + other_radius


def test_test_cameras_are_none_of_the_training_cameras():
    scene = Toy().load(0)
    train = torch.stack([view.camera.position for view in scene.train])
    for view in scene.test:
        assert (train - view.camera.position).norm(dim=1).min() > 0.1
