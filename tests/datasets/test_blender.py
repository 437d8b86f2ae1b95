import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from nfc_gs.datasets.base import DatasetError
from nfc_gs.datasets.blender import Blender

# Poses pass through float32.
POSE_TOLERANCE = 1e-6
# From (0, -4, 0), looking along +y with +z up: Blender's own camera turned by 90 degrees about x.
POSE = [[1, 0, 0, 0], [0, 0, -1, -4], [0, 1, 0, 0], [0, 0, 0, 1]]
ANGLE = 0.7


def rgba(size=8, colour=(200, 100, 50, 255)):
    return np.tile(np.array(colour, dtype=np.uint8), (size, size, 1))


@pytest.fixture
def write(tmp_path):
    """Writes a folder of one training and one test view."""

    def make(pixels=None, name="./{}/r_0", ending=".png", train=None, **numbers):
        for split in ("train", "test"):
            (tmp_path / split).mkdir(exist_ok=True)
            frame = {"file_path": name.format(split), "transform_matrix": POSE}
            content = {"camera_angle_x": ANGLE, "frames": [frame], **numbers}
            (tmp_path / f"transforms_{split}.json").write_text(json.dumps(content))
            Image.fromarray(rgba() if pixels is None else pixels).save(tmp_path / split / f"r_0{ending}")
        return tmp_path

    return make


def test_poses_follow_the_closed_form(write):
    camera = Blender(folder=write()).load(0).train[0].camera
    torch.testing.assert_close(camera.position, torch.tensor([0.0, -4, 0]), rtol=0, atol=POSE_TOLERANCE)
    # A point half a unit to the right and a quarter up, four units ahead, is right of and above the middle.
    pixel, depth = camera.project(torch.tensor([0.5, 0.0, 0.25]))
    focal = 4 / math.tan(ANGLE / 2)
    assert depth.item() == pytest.approx(4)
    assert pixel.tolist() == pytest.approx([4 + focal / 8, 4 - focal / 16])


def test_intrinsics_of_another_size_are_rescaled(write):
    folder = write(fl_x=857.0, fl_y=857.0, cx=400.0, cy=380.0, w=800, h=800)
    camera = Blender(folder=folder).load(0).train[0].camera
    assert camera.focal == pytest.approx((8.57, 8.57))
    assert camera.centre == pytest.approx((4.0, 3.8))


def test_intrinsics_of_another_shape_are_refused(write):
    with pytest.raises(DatasetError, match=r"said to be 800x400 .* 8x8"):
        Blender(folder=write(fl_x=857.0, w=800, h=400)).load(0)


@pytest.mark.parametrize(("name", "ending"), [("{}/r_0", ".png"), ("./{}/r_0.png", ".png"), ("{}/r_0", ".jpg")])
def test_file_names_may_lack_their_ending(write, name, ending):
    scene = Blender(folder=write(pixels=rgba()[..., :3], name=name, ending=ending)).load(0)
    assert scene.train[0].read().rgb.shape == (8, 8, 3)


def test_colours_of_invisible_pixels_do_not_bleed_when_downscaled(write):
    pixels = rgba(colour=(255, 0, 255, 0))
    pixels[:, ::2] = (100, 200, 40, 255)
    photograph = Blender(folder=write(pixels), downscale=2).load(0).train[0].read()
    # Half of every 2 x 2 block is opaque, so the mean is half its colour; 127.5 rounds to even.
    assert np.array_equal(photograph.rgb, np.tile(np.uint8([50, 100, 20]), (4, 4, 1)))
    assert np.array_equal(photograph.alpha, np.full((4, 4), 128, dtype=np.uint8))


def test_downscaled_cameras_see_the_same(write):
    folder = write()
    point = torch.tensor([0.3, 0.1, -0.2])
    full, half = (Blender(folder=folder, downscale=f).load(0).train[0].camera for f in (1, 2))
    torch.testing.assert_close(full.project(point)[0] / 2, half.project(point)[0])


def test_opaque_pictures_have_no_alpha(write):
    assert Blender(folder=write(pixels=rgba()[..., :3])).load(0).train[0].read().alpha is None


@pytest.mark.parametrize(
    ("background", "colour", "drawn"), [("white", 1, False), ("black", 0, False), ("random", 1, True)]
)
def test_the_background_is_the_one_asked_for(write, background, colour, drawn):
    scene = Blender(folder=write(), background=background).load(0)
    assert scene.background == (colour,) * 3
    assert scene.random_background is drawn


def test_training_views_stand_in_where_there_is_no_test_file(write):
    folder = write()
    content = json.loads((folder / "transforms_train.json").read_text())
    content["frames"] *= 9
    (folder / "transforms_train.json").write_text(json.dumps(content))
    (folder / "transforms_test.json").unlink()
    with pytest.raises(DatasetError, match=r"dataset\.test_every=8"):
        Blender(folder=folder).load(0)
    scene = Blender(folder=folder, test_every=8).load(0)
    assert (len(scene.train), len(scene.test)) == (7, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "no `frames`"),
        ('{"frames": []}', "no `frames`"),
        ('{"frames": [{"transform_matrix": []}]}', "frame 0 has no `file_path`"),
        ('{"frames": [{"file_path": "train/r_0", "transform_matrix": [[1, 2], [3, 4]]}]}', "not a 4x4 matrix"),
        (json.dumps({"frames": [{"file_path": "train/r_0", "transform_matrix": [[math.nan] * 4] * 4}]}), "NaN"),
        (json.dumps({"frames": [{"file_path": "train/r_0", "transform_matrix": [[2.0] * 4] * 4}]}), "no rotation"),
        (json.dumps({"frames": [{"file_path": "train/r_0", "transform_matrix": POSE}]}), "no focal length"),
        (
            json.dumps({"camera_angle_x": math.inf, "frames": [{"file_path": "train/r_0", "transform_matrix": POSE}]}),
            "finite",
        ),
        (json.dumps({"frames": [{"file_path": "train/r_9", "transform_matrix": POSE}]}), r"r_9.* is missing"),
    ],
)
def test_what_is_wrong_with_the_file_is_said_in_one_line(write, content, message):
    folder = write()
    (folder / "transforms_train.json").write_text(content)
    with pytest.raises(DatasetError, match=message) as caught:
        Blender(folder=folder).load(0)
    assert "\n" not in str(caught.value)
    assert "transforms_train.json" in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere: no such folder"):
        Blender(folder=tmp_path / "nowhere").load(0)


def test_pictures_of_two_sizes_under_one_camera_are_refused(write):
    folder = write()
    content = json.loads((folder / "transforms_train.json").read_text())
    content["frames"].append({"file_path": "train/r_1", "transform_matrix": POSE})
    (folder / "transforms_train.json").write_text(json.dumps(content))
    Image.fromarray(rgba(size=10)).save(folder / "train" / "r_1.png")
    with pytest.raises(DatasetError, match=r"r_0.png is 8x8 and r_1.png is 10x10"):
        Blender(folder=folder).load(0)


def test_a_file_that_is_no_picture_is_found_when_loading(write):
    folder = write()
    (folder / "train" / "r_0.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"r_0.png: is not a picture"):
        Blender(folder=folder).load(0)


def test_a_truncated_picture_is_found_when_reading(write):
    folder = write(pixels=np.random.default_rng(0).integers(0, 255, (64, 64, 4)).astype(np.uint8))
    path = folder / "train" / "r_0.png"
    path.write_bytes(path.read_bytes()[:2000])
    view = Blender(folder=folder).load(0).train[0]
    with pytest.raises(DatasetError, match=r"r_0.png: the picture is corrupt"):
        view.read()


@pytest.mark.data
def test_lego_is_inside_its_bounds_in_every_tenth_view(data):
    scene = Blender(folder=data / "lego_400", test_stride=3).load(0)
    assert (len(scene.train), len(scene.test)) == (100, 17)
    corners = torch.tensor([[x, y, z] for x in (-1.3, 1.3) for y in (-1.3, 1.3) for z in (-1.3, 1.3)])
    for view in scene.train[::10]:
        row, column = np.nonzero(view.read().alpha)
        pixels, _ = view.camera.project(corners)
        assert pixels[:, 0].min() <= column.min()
        assert column.max() <= pixels[:, 0].max()
        assert pixels[:, 1].min() <= row.min()
        assert row.max() <= pixels[:, 1].max()
