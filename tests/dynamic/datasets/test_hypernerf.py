import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from dynamic.datasets.hypernerf import HyperNerf
from nfc_gs.datasets.base import DatasetError

WIDTH, HEIGHT = 96, 72
SCALE, CENTRE = 0.25, [1.0, -2.0, 3.0]
# A blob of nine pixels, remapped bilinearly: its middle is found to a fraction of a pixel.
BLOB_TOLERANCE = 0.5
# Pixels of about 100 in float32.
PIXEL_TOLERANCE = 2e-3
STRAIGHT = {"radial_distortion": [0.0, 0.0, 0.0], "tangential": [0.0, 0.0]}
BENT = {"radial_distortion": [0.6, -0.2, 0.05], "tangential": [0.02, -0.015]}


def camera(index, lens=STRAIGHT, **more):
    """A camera that walks along x, a little turned, looking at about the scene's centre."""
    angle = 0.1 * index - 0.2
    c, s = math.cos(angle), math.sin(angle)
    return {
        "orientation": [[c, 0, -s], [0, 1, 0], [s, 0, c]],
        "position": [CENTRE[0] + 0.4 * index - 1, CENTRE[1] + 0.1, CENTRE[2] - 4],
        "focal_length": 110.0,
        "principal_point": [50.0, 33.0],
        "skew": 0.0,
        "pixel_aspect_ratio": 1.05,
        "image_size": [WIDTH, HEIGHT],
        **lens,
        **more,
    }


def project(camera, point):
    """The format's own formula (nerfies/camera.py): where a camera sees a point, pixel centres being at halves."""
    x, y, z = np.array(camera["orientation"]) @ (np.array(point) - camera["position"])
    x, y = x / z, y / z
    k1, k2, k3 = camera["radial_distortion"]
    p1, p2 = camera["tangential"]
    square = x * x + y * y
    radial = 1 + square * (k1 + square * (k2 + square * k3))
    bent_x = x * radial + 2 * p1 * x * y + p2 * (square + 2 * x * x)
    bent_y = y * radial + 2 * p2 * x * y + p1 * (square + 2 * y * y)
    focal, (centre_x, centre_y) = camera["focal_length"], camera["principal_point"]
    return focal * bent_x + centre_x, focal * camera["pixel_aspect_ratio"] * bent_y + centre_y


@pytest.fixture
def write(tmp_path):
    """Writes a clip of `num` pictures, black but for what `paint` draws."""

    def make(num=8, lens=STRAIGHT, factors=(1, 2), val=None, paint=None, meta=None, points=None):
        names = [f"{index:06d}" for index in range(num)]
        (tmp_path / "camera").mkdir(exist_ok=True)
        for index, name in enumerate(names):
            (tmp_path / "camera" / f"{name}.json").write_text(json.dumps(camera(index, lens)))
            pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
            if paint is not None:
                paint(camera(index, lens), pixels)
            for factor in factors:
                (tmp_path / "rgb" / f"{factor}x").mkdir(parents=True, exist_ok=True)
                small = Image.fromarray(pixels).resize((WIDTH // factor, HEIGHT // factor), Image.Resampling.BOX)
                small.save(tmp_path / "rgb" / f"{factor}x" / f"{name}.png")
        entry = meta or (lambda index: {"warp_id": index, "appearance_id": index, "camera_id": 0})
        held_out = names[1::2] if val is None else val
        files = {
            "scene": {"scale": SCALE, "center": CENTRE, "near": 0.1, "far": 2.0},
            "dataset": {"ids": names, "train_ids": [n for n in names if n not in held_out], "val_ids": held_out},
            "metadata": {name: entry(index) for index, name in enumerate(names)},
        }
        for file, content in files.items():
            (tmp_path / f"{file}.json").write_text(json.dumps(content))
        if points is not None:
            np.save(tmp_path / "points.npy", points)
        return tmp_path

    return make


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def refused(folder, **settings):
    with pytest.raises(DatasetError) as caught:
        scene = HyperNerf(folder=folder, **settings).load(0)
        for view in scene.train:
            view.read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("downscale", [1, 2, 4])
def test_points_are_seen_where_the_format_says(write, downscale):
    scene = HyperNerf(folder=write(), downscale=downscale).load(0)
    points = np.random.default_rng(0).uniform(-0.8, 0.8, size=(20, 3)) + CENTRE
    trained = (points - CENTRE) * SCALE
    for index, view in zip((0, 2, 4, 6), scene.train, strict=True):
        expected = np.array([project(camera(index), point) for point in points]) / downscale
        pixels, _ = view.camera.project(torch.from_numpy(trained).float())
        assert np.abs(pixels.numpy() - expected).max() < PIXEL_TOLERANCE
        assert (view.camera.width, view.camera.height) == (WIDTH // downscale, HEIGHT // downscale)
        assert view.read().rgb.shape == (HEIGHT // downscale, WIDTH // downscale, 3)


def test_bent_pictures_are_straightened_to_the_pinhole(write):
    point = np.add(CENTRE, [2.8, 0.9, 0.3])

    def paint(camera, pixels):
        column, row = (math.floor(number) for number in project(camera, point))
        pixels[row - 1 : row + 2, column - 1 : column + 2] = 255

    folder = write(num=8, lens=BENT, factors=(1,), paint=paint)
    bent = project(camera(4, BENT), point)
    straight = project(camera(4), point)
    # The test would prove nothing if the lens hardly bent.
    assert math.dist(bent, straight) > 1
    view = HyperNerf(folder=folder, downscale=1).load(0).train[2]
    light = view.read().rgb[..., 0].astype(float)
    rows, columns = np.indices(light.shape) + 0.5
    middle = [(light * columns).sum() / light.sum(), (light * rows).sum() / light.sum()]
    # A blob of whole pixels is up to half a pixel off the point itself.
    seen = np.array(middle) - (np.array([math.floor(n) + 0.5 for n in bent]) - bent)
    pixel, _ = view.camera.project(torch.from_numpy((point - CENTRE) * SCALE).float())
    assert math.dist(seen, pixel.tolist()) < BLOB_TOLERANCE


def test_scaled_coordinates_lead_back_to_the_files(write):
    scene = HyperNerf(folder=write()).load(0)
    positions = torch.stack([view.camera.position for view in scene.train])
    expected = np.array([camera(index)["position"] for index in (0, 2, 4, 6)])
    assert scene.to_world(positions).numpy() == pytest.approx(expected, abs=1e-5)


def test_times_are_ids_over_the_largest(write):
    scene = HyperNerf(folder=write(num=8)).load(0)
    assert [view.camera.time for view in scene.train] == [0, 2 / 7, 4 / 7, 6 / 7]
    assert [view.camera.time for view in scene.test] == [1 / 7, 3 / 7, 5 / 7, 1]


def test_time_ids_go_before_warp_ids(write):
    folder = write(num=3, val=["000001"], meta=lambda index: {"warp_id": 0, "time_id": 10 * index, "camera_id": 0})
    assert HyperNerf(folder=folder).load(0).times == (0.0, 1.0)


def test_without_held_out_ids_every_fourth_trains_and_the_one_between_judges(write):
    scene = HyperNerf(folder=write(num=9, val=[])).load(0)
    assert [view.name for view in scene.train] == ["000000", "000004", "000008"]
    assert [view.name for view in scene.test] == ["000002", "000006"]


def test_two_cameras_of_a_rig_share_their_times(write):
    folder = write(num=8, val=["000000"], meta=lambda index: {"warp_id": index // 2, "camera_id": index % 2})
    assert len(HyperNerf(folder=folder).load(0).times) == 4


def test_one_camera_has_one_picture_at_a_time(write):
    folder = write(num=8, val=["000000"], meta=lambda index: {"warp_id": index // 2, "camera_id": 0})
    assert "metadata.json: 000002 and 000003 have the same time" in refused(folder)


def test_points_come_scaled_and_bound_the_subject(write):
    points = np.random.default_rng(0).uniform(-1, 1, size=(5000, 3)) + CENTRE
    points[0] = 1e4
    scene = HyperNerf(folder=write(points=points)).load(0)
    assert scene.points.xyz.numpy() == pytest.approx((points - CENTRE) * SCALE, abs=1e-3)
    # 1 % of evenly spread points is beyond each side, and a tenth is added: 0.25 * (0.98 + 0.196).
    assert scene.bounds.numpy() == pytest.approx(0.294 * np.array([[-1] * 3, [1] * 3]), abs=0.01)


def test_the_older_name_of_the_tangential_distortion_is_known(write):
    folder = write(num=4)
    for path in (folder / "camera").iterdir():
        content = json.loads(path.read_text())
        content["tangential_distortion"] = [0.02, 0.0]
        del content["tangential"]
        path.write_text(json.dumps(content))
    assert HyperNerf(folder=folder).load(0).train[0].read().mask is not None


def test_what_is_wrong_with_the_files_is_said_in_one_line(write, tmp_path):
    folder = write()
    one = folder / "camera" / "000002.json"
    good = one.read_text()
    for change, message in (
        ({"orientation": [[2, 0, 0], [0, 1, 0], [0, 0, 1]]}, "orientation is no rotation"),
        ({"position": [0, math.nan, 0]}, "position is"),
        ({"focal_length": 0}, "must be above 0"),
        ({"skew": 3.0}, "skew is 3"),
        ({"image_size": [100, 40]}, "it must be that or a scaled copy"),
        ({"principal_point": "middle"}, "principal_point is 'middle'; it must be 2 finite numbers"),
        ({"radial_distortion": [-9.0, 0, 0]}, "cannot be undone"),
    ):
        edit(one, **change)
        found = refused(folder)
        assert message in found
        assert "000002" in found
        one.write_text(good)
    one.write_text("{")
    assert "000002.json: is not JSON" in refused(folder)
    one.unlink()
    assert "000002.json: no such file" in refused(folder)


def test_missing_pictures_are_counted(write):
    folder = write()
    for name in ("000003", "000004"):
        (folder / "rgb" / "2x" / f"{name}.png").unlink()
    message = refused(folder)
    assert "2 of 8 pictures of dataset.json are missing (first: 000004.png)" in message


def test_missing_sizes_and_entries_are_said(write):
    folder = write(factors=(4,))
    assert "has no folder rgb/2x or rgb/1x" in refused(folder)
    assert HyperNerf(folder=folder, downscale=8).load(0).train[0].camera.width == WIDTH // 8
    edit(folder / "metadata.json", **{"000001": None})
    assert "metadata.json: has no entry for 1 of 8 pictures" in refused(folder, downscale=4)
    edit(folder / "metadata.json", **{"000001": {"warp_id": -1}})
    assert "warp_id of 000001 is -1" in refused(folder, downscale=4)
    edit(folder / "dataset.json", val_ids=["000000"])
    assert "000000 is both" in refused(folder, downscale=4)
    edit(folder / "scene.json", scale=0)
    assert "scale is 0" in refused(folder, downscale=4)


def test_an_id_twice_is_refused_by_the_file_that_names_it(write):
    folder = write(num=4)
    edit(folder / "dataset.json", val_ids=["000001", "000001"])
    assert "dataset.json: val_ids names 000001 more than once" in refused(folder)


def test_points_that_are_none_are_refused(write):
    folder = write(points=np.zeros((4, 2)))
    assert "points.npy: holds an array of shape (4, 2)" in refused(folder)
    (folder / "points.npy").write_text("x")
    assert "points.npy: is no NumPy array" in refused(folder)
    np.save(folder / "points.npy", np.array(["1", "2"]))
    assert "points.npy: holds str32 values; it must hold numbers" in refused(folder)
    np.save(folder / "points.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "points.npy: is no NumPy array" in refused(folder)
    np.savez(folder / "points.npz", np.zeros((4, 3)))
    (folder / "points.npz").replace(folder / "points.npy")
    assert "points.npy: is no NumPy array" in refused(folder)


def test_a_scene_in_which_nothing_moves_may_be_photographed_by_one_camera_from_everywhere(write):
    scene = HyperNerf(folder=write(meta=lambda index: {"warp_id": 5, "camera_id": 0})).load(0)
    assert (len(scene.train), scene.times) == (4, (1.0,))
