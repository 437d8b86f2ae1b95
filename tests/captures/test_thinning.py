"""Which views are kept, and which points are left to them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nfc_gs.captures.pictures import DatasetError
from nfc_gs.captures.thinning import Thinning
from nfc_gs.core.camera import Camera
from nfc_gs.core.scene import Photograph, Points, Scene, View

# Places on a line, so that what is far from what can be said by hand.
PLACES = [0.0, 1.0, 2.0, 3.0, 4.0, 10.0, 5.5, 6.0, 7.0]
# Point 0 in views 0 and 8, point 1 in 0 and 1, point 2 twice in 8 alone, point 3 in none.
SIGHTINGS = np.array([[0, 0], [0, 8], [1, 0], [1, 1], [2, 8], [2, 8]])


def view(number: int, place: float, time: float = 0.0) -> View:
    pose = torch.eye(4)
    pose[0, 3] = -place
    camera = Camera(world_to_camera=pose, focal=(9.0, 9.0), centre=(4.0, 4.0), width=8, height=8, time=time)
    return View(name=f"{number}", camera=camera, read=lambda: Photograph(rgb=np.zeros((8, 8, 3), np.uint8)))


def scene(sightings: np.ndarray | None = SIGHTINGS) -> Scene:
    views = tuple(view(number, place) for number, place in enumerate(PLACES))
    points = Points(
        xyz=torch.arange(12.0).reshape(4, 3),
        rgb=torch.zeros(4, 3),
        sightings=None if sightings is None else lambda: sightings,
    )
    return Scene(train=views, test=views[:2], points=points, extent=7.0)


def kept(thinning: Thinning, seed: int = 0) -> list[int]:
    return [int(view.name) for view in thinning(scene(), seed).train]


def test_nothing_is_left_out_unless_asked() -> None:
    whole = scene()
    assert Thinning()(whole, 0) is whole


def test_views_in_order_are_spread_from_the_first_to_the_last() -> None:
    assert kept(Thinning(count=3)) == [0, 4, 8]
    assert kept(Thinning(count=1)) == [4]
    assert kept(Thinning(count=9)) == list(range(9))


def test_views_of_a_moving_scene_are_spread_over_its_time() -> None:
    # The last to be named is the earliest.
    backwards = tuple(view(number, 0.0, time=(8 - number) / 8) for number in (4, 0, 8, 2, 6))
    thinned = Thinning(count=3)(replace(scene(), train=backwards), 0)
    assert sorted(v.camera.time for v in thinned.train) == [0.0, 0.5, 1.0]


def test_far_views_are_each_the_farthest_from_those_before() -> None:
    # The mean is 4.28, so it begins at 4; 10 is farthest from it, then 0, and then 7, three from both 4 and 10.
    assert kept(Thinning(count=1, choice="far")) == [4]
    assert kept(Thinning(count=2, choice="far")) == [4, 5]
    assert kept(Thinning(count=3, choice="far")) == [0, 4, 5]
    assert kept(Thinning(count=4, choice="far")) == [0, 4, 5, 8]
    assert kept(Thinning(count=9, choice="far")) == list(range(9))


def test_random_views_depend_on_the_seed_and_nothing_else() -> None:
    chosen = Thinning(count=4, choice="random")
    assert kept(chosen, 1) == kept(chosen, 1) and len({tuple(kept(chosen, seed)) for seed in range(9)}) > 1
    assert len(set(kept(chosen, 1))) == 4


def test_the_held_out_views_stay_and_the_extent_is_the_kept_views() -> None:
    thinned = Thinning(count=3)(scene(), 0)
    assert [view.name for view in thinned.test] == ["0", "1"]
    # Places 0, 4 and 7, mean 11/3.
    assert thinned.extent == pytest.approx(1.1 * 11 / 3)


def test_only_points_in_two_of_the_kept_views_are_left() -> None:
    points = Thinning(count=3)(scene(), 0).points
    assert points is not None
    torch.testing.assert_close(points.xyz, torch.tensor([[0.0, 1.0, 2.0]]))


def test_where_no_point_is_left_there_are_none(caplog: pytest.LogCaptureFixture) -> None:
    assert Thinning(count=3)(scene(np.array([[0, 0], [1, 8]])), 0).points is None
    assert "begins with random ones" in caplog.text


def test_points_of_unknown_origin_are_kept_with_a_warning_or_left_out_when_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    points = Thinning(count=3)(scene(None), 0).points
    assert points is not None and len(points.xyz) == 4 and "do not say" in caplog.text
    assert Thinning(count=3, points="none")(scene(), 0).points is None
    everything = Thinning(count=3, points="all")(scene(), 0).points
    assert everything is not None and len(everything.xyz) == 4


def test_more_views_than_there_are_cannot_be_kept() -> None:
    with pytest.raises(DatasetError, match=r"views\.count is 10, but there are 9"):
        Thinning(count=10)(scene(), 0)
