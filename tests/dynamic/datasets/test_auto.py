import json

import numpy as np
import pytest
from PIL import Image

from dynamic.datasets.auto import Auto, find_kind
from dynamic.datasets.dnerf import DNerf
from nfc_gs.datasets.base import DatasetError
from nfc_gs.datasets.blender import Blender
from nfc_gs.datasets.colmap import Colmap
from nfc_gs.datasets.nerfstudio import Nerfstudio


@pytest.mark.parametrize(
    ("marker", "kind"),
    [
        ("transforms_train.json", "dnerf"),
        ("poses_bounds.npy", "neural_3d_video"),
        ("dataset.json", "hypernerf"),
    ],
)
def test_each_format_is_known_by_its_marker(tmp_path, marker, kind):
    (tmp_path / marker).touch()
    assert find_kind(tmp_path) == kind
    # The reader of that kind takes over, and finds its file empty.
    with pytest.raises(DatasetError):
        Auto(folder=tmp_path).load(0)


def test_what_was_looked_for_is_said_in_one_line(tmp_path):
    with pytest.raises(DatasetError) as caught:
        Auto(folder=tmp_path).load(0)
    message = str(caught.value)
    assert "\n" not in message
    for marker in ("transforms_train.json", "poses_bounds.npy", "dataset.json"):
        assert marker in message
    (tmp_path / "transforms.json").touch()
    with pytest.raises(DatasetError, match=r"transforms\.json is there: its dataset\.kind is nerfstudio"):
        Auto(folder=tmp_path).load(0)
    with pytest.raises(DatasetError, match="no such folder"):
        Auto(folder=tmp_path / "nowhere").load(0)


def test_two_markers_are_a_question_for_the_user(tmp_path):
    (tmp_path / "transforms_train.json").touch()
    (tmp_path / "dataset.json").touch()
    with pytest.raises(DatasetError, match=r"transforms_train\.json and dataset\.json; say which"):
        Auto(folder=tmp_path).load(0)


def test_settings_reach_the_reader(tmp_path):
    for split in ("train", "test"):
        frames = []
        for index in range(4):
            angle = float(index)
            c, s = np.cos(angle), np.sin(angle)
            pose = [[c, 0, s, 3 * s], [s, 0, -c, -3 * c], [0, 1, 0, 0], [0, 0, 0, 1]]
            frames.append({"file_path": f"{split}/r_{index}", "time": index / 3, "transform_matrix": pose})
            (tmp_path / split).mkdir(exist_ok=True)
            Image.new("RGBA", (8, 8)).save(tmp_path / split / f"r_{index}.png")
        (tmp_path / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    scene = Auto(folder=tmp_path, downscale=2, train_stride=2, test_stride=3).load(0)
    assert [view.camera.time for view in scene.train] == [0.0, 2 / 3]
    assert [view.camera.time for view in scene.test] == [0.0, 1.0]
    assert scene.train[0].camera.width == 4


@pytest.mark.parametrize(
    ("kind", "marker", "message"),
    [
        (
            Colmap,
            "dataset.json",
            "dataset.json is there: its dataset.kind is dynamic.datasets.hypernerf, a moving scene",
        ),
        (Nerfstudio, "poses_bounds.npy", "its dataset.kind is dynamic.datasets.neural_3d_video, a moving scene"),
        (Blender, "poses_bounds.npy", "transforms_train.json: no such file; poses_bounds.npy is there"),
        (DNerf, "sparse", "transforms_train.json: no such file; sparse is there: its dataset.kind is colmap"),
        (DNerf, "nothing", "transforms_train.json: no such file$"),
    ],
)
def test_a_folder_of_another_format_is_told_what_it_is(tmp_path, kind, marker, message):
    (tmp_path / marker).touch()
    with pytest.raises(DatasetError, match=message) as caught:
        kind(folder=tmp_path).load(0)
    assert "\n" not in str(caught.value)
