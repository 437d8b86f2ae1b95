import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from plyfile import PlyData, PlyElement

from nfc_gs.captures.lenses import Lens
from nfc_gs.datasets.base import DatasetError
from nfc_gs.datasets.nerfstudio import Nerfstudio

# Poses and points pass through float32.
TOLERANCE = 1e-5
CAMERA = {"fl_x": 50.0, "fl_y": 52.0, "cx": 20.5, "cy": 14.5, "w": 40, "h": 30}


def pose(index: int) -> list[list[float]]:
    """Standing at (index, 0, 0), looking along -z as OpenGL's cameras do."""
    return [[1, 0, 0, index], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.fixture
def write(tmp_path):
    """Writes a folder of nine photographs and its transforms.json."""

    def make(frame=lambda index: {}, **entries):
        (tmp_path / "images").mkdir(exist_ok=True)
        frames = []
        for index in range(9):
            name = f"images/frame_{index:02d}.png"
            Image.new("RGB", (40, 30), (index, 0, 0)).save(tmp_path / name)
            frames.append({"file_path": name, "transform_matrix": pose(index), **frame(index)})
        (tmp_path / "transforms.json").write_text(json.dumps({**CAMERA, "frames": frames, **entries}))
        return tmp_path

    return make


def points(folder, text):
    places = np.array([(1, 2, -3, 255, 0, 51), (0, 0, -1, 0, 102, 0)], dtype=float)
    kinds = [("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    vertices = np.array([tuple(row) for row in places], dtype=kinds)
    PlyData([PlyElement.describe(vertices, "vertex")], text=text).write(str(folder / "sparse.ply"))


def refused(spec, message):
    with pytest.raises(DatasetError, match=message) as caught:
        spec.load(0)
    assert "\n" not in str(caught.value)


def test_a_point_right_of_above_and_before_the_camera_is_seen_there(write):
    scene = Nerfstudio(folder=write(), normalise=False).load(0)
    camera = scene.train[0].camera
    assert scene.train[0].name == "images/frame_01.png"
    pixel, depth = camera.project(torch.tensor([1.5, 0.25, -2.0]))
    assert depth.item() == pytest.approx(2)
    assert pixel.tolist() == pytest.approx([20.5 + 50 * 0.25, 14.5 - 52 * 0.125])


def test_a_frames_own_intrinsics_come_first(write):
    folder = write(frame=lambda index: {"fl_x": 60.0 + index} if index == 3 else {})
    cameras = {view.name: view.camera for view in Nerfstudio(folder=folder).load(0).train}
    assert cameras["images/frame_03.png"].focal == pytest.approx((63, 52))
    assert cameras["images/frame_04.png"].focal == pytest.approx((50, 52))


def test_an_angle_alone_is_enough(write):
    folder = write()
    content = json.loads((folder / "transforms.json").read_text())
    stripped = {"camera_angle_x": 0.8, "frames": content["frames"]}
    (folder / "transforms.json").write_text(json.dumps(stripped))
    camera = Nerfstudio(folder=folder).load(0).train[0].camera
    assert camera.focal == pytest.approx((20 / math.tan(0.4),) * 2)
    assert camera.centre == (20, 15)


@pytest.mark.parametrize(
    ("entries", "model", "distortion"),
    [
        (
            {"camera_model": "OPENCV", "k1": -0.1, "k2": 0.02, "p1": 0.001, "p2": 0.002},
            "OPENCV",
            (-0.1, 0.02, 1e-3, 2e-3),
        ),
        ({"k1": -0.1}, "OPENCV", (-0.1, 0.0, 0.0, 0.0)),
        ({"camera_model": "OPENCV_FISHEYE", "k1": 0.05, "k3": 0.01}, "OPENCV_FISHEYE", (0.05, 0.0, 0.01, 0.0)),
    ],
)
def test_photographs_are_straightened_as_their_camera_model_says(write, entries, model, distortion):
    folder = write(**entries)
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "frame_01.png")
    photograph = Nerfstudio(folder=folder).load(0).train[0].read()
    lens = Lens(model=model, params=(50.0, 52.0, 20.5, 14.5, *distortion), width=40, height=30)
    # Two routes to the same map in float64 may round a pixel's place to neighbouring 1/32.
    difference = np.abs(photograph.rgb.astype(int) - lens.undistortion().straighten(pixels))
    assert (difference > 0).mean() < 0.01
    assert np.abs(photograph.rgb.astype(int) - pixels).max() > 20


def test_a_pinhole_ignores_distortion_that_it_does_not_have(write):
    folder = write(camera_model="PINHOLE")
    assert Nerfstudio(folder=folder).load(0).train[0].read().rgb[0, 0, 0] == 1


@pytest.mark.parametrize("text", [True, False])
def test_points_come_from_the_ply_in_the_coordinates_of_the_poses(write, text):
    folder = write(ply_file_path="sparse.ply", applied_transform=[[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]])
    points(folder, text)
    scene = Nerfstudio(folder=folder).load(0)
    expected = torch.tensor([[1.0, 2, -3], [0, 0, -1]])
    torch.testing.assert_close(scene.to_world(scene.points.xyz), expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(scene.points.rgb, torch.tensor([[1, 0, 0.2], [0, 0.4, 0]]), rtol=0, atol=TOLERANCE)
    assert scene.extent == pytest.approx(1, abs=TOLERANCE)


def test_without_a_ply_there_are_no_points(write):
    assert Nerfstudio(folder=write()).load(0).points is None


def test_a_missing_or_broken_ply_is_named(write):
    folder = write(ply_file_path="sparse.ply")
    refused(Nerfstudio(folder=folder), r"names .*sparse\.ply, which is missing")
    (folder / "sparse.ply").write_text("ply\nformat ascii 1.0\n")
    refused(Nerfstudio(folder=folder), r"sparse\.ply: is no PLY of points")
    vertices = np.zeros(2, dtype=[("x", "f4"), ("y", "f4"), ("z", "f4")])
    PlyData([PlyElement.describe(vertices, "vertex")]).write(str(folder / "sparse.ply"))
    refused(Nerfstudio(folder=folder), "its vertices have no red")


def test_the_files_own_split_is_kept(write):
    name = "images/frame_{:02d}.png".format
    folder = write(train_filenames=[name(1), name(2)], test_filenames=[name(5)], val_filenames=[name(6)])
    scene = Nerfstudio(folder=folder).load(0)
    assert [view.name for view in scene.train] == [name(1), name(2)]
    assert [view.name for view in scene.test] == [name(5)]


def test_without_a_split_every_eighth_by_name_is_held_out(write):
    scene = Nerfstudio(folder=write()).load(0)
    assert [view.name for view in scene.test] == ["images/frame_00.png", "images/frame_08.png"]
    refused(Nerfstudio(folder=write(), test_every=0), r"set dataset\.test_every")


def test_masks_hide_pixels(write):
    folder = write(frame=lambda index: {"mask_path": "mask.png"})
    refused(Nerfstudio(folder=folder), r"mask\.png, which is missing")
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[10:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    assert np.array_equal(Nerfstudio(folder=folder).load(0).train[0].read().mask, mask > 0)
    assert np.array_equal(Nerfstudio(folder=folder, masks="alpha").load(0).train[0].read().alpha, mask)


def test_smaller_pictures_come_from_their_folder(write):
    folder = write()
    half = Nerfstudio(folder=folder, downscale=2).load(0).train[0]
    (folder / "images_2").mkdir()
    for index in range(9):
        Image.new("RGB", (20, 15), (200, 0, 0)).save(folder / "images_2" / f"frame_{index:02d}.png")
    stored = Nerfstudio(folder=folder, downscale=2).load(0).train[0]
    assert half.camera.focal == stored.camera.focal == (25, 26)
    assert half.read().rgb[0, 0, 0] == 1
    assert stored.read().rgb[0, 0, 0] == 200


def test_missing_photographs_are_an_error_unless_skipped(write):
    folder = write()
    (folder / "images" / "frame_03.png").unlink()
    refused(Nerfstudio(folder=folder), r"names 9 photographs; 1 are missing .*frame_03\.png.*skip_missing=true")
    # Eight are left, of which the first is held out.
    assert len(Nerfstudio(folder=folder, skip_missing=True).load(0).train) == 7


def test_unknown_camera_models_and_missing_files_are_named(write, tmp_path):
    refused(Nerfstudio(folder=write(camera_model="EQUIRECTANGULAR")), "'EQUIRECTANGULAR' is not among PINHOLE")
    refused(Nerfstudio(folder=tmp_path / "nowhere"), "nowhere: no such folder")
    (tmp_path / "transforms.json").unlink()
    refused(Nerfstudio(folder=tmp_path), r"transforms\.json: no such file")


def test_an_angle_that_is_none_and_a_photograph_named_twice_are_refused(write):
    folder = write()
    path = folder / "transforms.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"camera_angle_x": 0, "frames": content["frames"]}))
    refused(Nerfstudio(folder=folder), r"camera_angle_x of .* must be in \(0, pi\) radians")
    path.write_text(json.dumps({**content, "frames": [*content["frames"], content["frames"][0]]}))
    refused(Nerfstudio(folder=folder), "twice")
    path.write_text(json.dumps({**content, "camera_model": ["OPENCV"]}))
    refused(Nerfstudio(folder=folder), "is not among PINHOLE")


@pytest.mark.parametrize("key", ["w", "h"])
@pytest.mark.parametrize("value", [0, -40])
def test_a_picture_without_pixels_is_refused(write, key, value):
    message = rf"transforms.json: {key} of images/frame_00.png is {value}; it must be 1 pixel or more"
    refused(Nerfstudio(folder=write(**{key: value})), message)


@pytest.mark.parametrize("k1", [1e9, -20])
def test_a_distortion_that_cannot_be_undone_is_refused(write, k1):
    refused(Nerfstudio(folder=write(k1=k1)), r"transforms.json: camera: its distortion \(k1=.*\) cannot be undone")


def test_the_frame_whose_own_lens_is_impossible_is_named(write):
    folder = write(frame=lambda index: {"k1": 1e9, "fl_x": 50.0} if index in (3, 5) else {"k1": 0.01})
    refused(Nerfstudio(folder=folder), "camera of images/frame_03.png: its distortion .* holds 0% of the straight")
