import json
import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image

from dynamic.datasets.dnerf import DNerf
from nfc_gs import cli, config
from nfc_gs.datasets.base import DatasetError
from nfc_gs.datasets.blender import Blender
from tests.conftest import REPOSITORY


def pose(angle):
    """Three units from the origin, at `angle` about the vertical; any rigid motion would do."""
    c, s = math.cos(angle), math.sin(angle)
    return [[c, 0, s, 3 * s], [s, 0, -c, -3 * c], [0, 1, 0, 0], [0, 0, 0, 1]]


def entry(split, index, **more):
    return {"file_path": f"./{split}/r_{index:03d}", "transform_matrix": pose(index), **more}


def times(count):
    return [{"time": index / (count - 1)} for index in range(count)]


@pytest.fixture
def write(tmp_path):
    """Writes a folder; each split is a list of what its frames say beside picture and pose."""

    def make(train, folder="clip", **others):
        folder = tmp_path / folder
        for split, frames in ({"train": train, "test": [{"time": 0.5}]} | others).items():
            (folder / split).mkdir(parents=True)
            entries = [entry(split, index) | more for index, more in enumerate(frames)]
            content = {"camera_angle_x": 0.7, "frames": entries}
            (folder / f"transforms_{split}.json").write_text(json.dumps(content))
            for index in range(len(frames)):
                pixels = np.full((4, 4, 4), index, dtype=np.uint8)
                pixels[..., 3] = 255
                Image.fromarray(pixels).save(folder / split / f"r_{index:03d}.png")
        return folder

    return make


def moments(views):
    return [view.camera.time for view in views]


def refused(folder, **settings):
    with pytest.raises(DatasetError) as caught:
        DNerf(folder=folder, **settings).load(0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_times_are_those_of_the_file(write):
    scene = DNerf(folder=write([{"time": 0.0}, {"time": 0.3}, {"time": 0.9}])).load(0)
    assert moments(scene.train) == [0.0, 0.3, 0.9]
    assert moments(scene.test) == [0.5]


def test_all_but_the_times_is_as_of_a_still_scene(write):
    folder = write(times(3))
    moving, still = DNerf(folder=folder).load(0), Blender(folder=folder).load(0)
    for one, other in zip(moving.train + moving.test, still.train + still.test, strict=True):
        assert torch.equal(one.camera.world_to_camera, other.camera.world_to_camera)
        assert np.array_equal(one.read().rgb, other.read().rgb)
    assert torch.equal(moving.bounds, still.bounds)
    assert moving.extent == still.extent


def test_frames_without_times_are_evenly_spread(write, caplog):
    with caplog.at_level(logging.WARNING):
        scene = DNerf(folder=write([{}] * 5, test=[{}] * 3)).load(0)
    assert moments(scene.train) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert moments(scene.test) == [0.0, 0.5, 1.0]
    (said,) = caplog.messages
    assert (
        "no frame of transforms_train.json and transforms_test.json has a `time`: frame i of n is taken to be" in said
    )


def test_a_scene_of_one_time_is_a_still_one(write):
    assert DNerf(folder=write([{}])).load(0).times == (0.0,)
    assert DNerf(folder=write([{"time": 0.4}] * 4, folder="many")).load(0).times == (0.4,)


def test_several_cameras_may_share_times(write):
    scene = DNerf(folder=write([{"time": 0.0}, {"time": 0.0}, {"time": 1.0}, {"time": 1.0}])).load(0)
    assert scene.times == (0.0, 1.0)
    assert len(scene.train) == 4


def test_one_camera_cannot_take_two_pictures_at_once(write):
    folder = write([{"time": t} for t in (0.0, 0.25, 0.25, 0.75, 1.0)])
    message = refused(folder)
    assert "r_001 and train/r_002 have the same time 0.25" in message
    assert "dataset.several_cameras=true" in message
    assert len(DNerf(folder=folder, several_cameras=True).load(0).train) == 5


def test_two_pictures_of_one_pose_and_time_contradict(write):
    folder = write([{"time": 0.5, "transform_matrix": pose(1)}] * 2)
    assert "the same time 0.5 and the same pose" in refused(folder, several_cameras=True)


def test_a_picture_is_named_once(write):
    folder = write([{"time": 0.0}, {"time": 1.0, "file_path": "./train/r_000"}])
    assert "names the picture train/r_000 2 times" in refused(folder)


@pytest.mark.parametrize(
    ("time", "found"),
    [
        (1.5, "is 1.5; times must be in [0, 1]"),
        (1.0000001, "is 1.0000001; times must be in [0, 1]"),
        (-0.1, "is -0.1"),
        (math.nan, "is nan"),
        ("0.3", "is '0.3'"),
        (10**400, "is 1000"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_times_that_are_none_are_refused(write, split, time, found):
    folder = write(**{"train": times(2), split: [{"time": 0.0}, {"time": time}]})
    message = refused(folder)
    assert f"transforms_{split}.json: time of {split}/r_001 {found}" in message


def test_frames_that_partly_have_times_are_refused(write):
    assert "1 of 3 frames have no `time` (first: train/r_001)" in refused(write([{"time": 0.0}, {}, {"time": 1.0}]))


def test_missing_pictures_are_counted(write):
    folder = write(times(5))
    for index in (1, 3):
        (folder / "train" / f"r_{index:03d}.png").unlink()
    message = refused(folder)
    assert "names 5 pictures, of which 2 are missing" in message
    assert "r_001" in message


def test_what_is_no_json_and_what_is_no_folder_is_said(write, tmp_path):
    folder = write(times(2))
    (folder / "transforms_train.json").write_text("{")
    assert "is not JSON" in refused(folder)
    assert "no such folder" in refused(tmp_path / "nowhere")


def test_validation_views_can_judge(write):
    folder = write(times(3), val=[{"time": 0.2}, {"time": 0.7}])
    assert moments(DNerf(folder=folder, test_split="val").load(0).test) == [0.2, 0.7]


def test_the_record_of_a_run_says_by_which_views_it_was_judged(write, tmp_path):
    folder = write(times(3), val=[{"time": 0.2}])
    settings = [
        "dataset.half_size=1",
        "steps=2",
        "evaluation.every=0",
        "initial.random=20",
        f"output={tmp_path}",
        "threads=1",
    ]
    for name, choice, said in (
        ("test", "dataset.test_split=test", "test"),
        ("val", "dataset.test_split=val", "val"),
        ("some", "dataset.test_every=3", "one in 3 of train"),
    ):
        config_file = REPOSITORY / "configs/dynamic/dnerf.yaml"
        assert cli.main(["train", str(config_file), f"dataset.folder={folder}", f"name={name}", choice, *settings]) == 0
        assert json.loads((tmp_path / name / "metrics.json").read_text())["split"] == said


def test_a_missing_test_file_is_named_with_ways_out(write):
    folder = write(times(9))
    (folder / "transforms_test.json").unlink()
    assert "transforms_test.json: no such file" in refused(folder)
    scene = DNerf(folder=folder, test_every=4).load(0)
    assert moments(scene.test) == [0.0, 0.5, 1.0]
    assert len(scene.train) == 6


def test_dnerfs_lego_is_warned_of(write, caplog):
    folder = write(times(2), folder="lego", val=[{"time": 0.5}])
    DNerf(folder=folder, test_split="val").load(0)
    assert not caplog.records
    DNerf(folder=folder).load(0)
    assert "test_split=val" in caplog.text


def test_strides_thin_training_times_and_test_views(write):
    folder = write(times(9), test=times(5))
    scene = DNerf(folder=folder, train_stride=3, test_stride=2).load(0)
    assert moments(scene.train) == [0.0, 0.375, 0.75]
    assert moments(scene.test) == [0.0, 0.5, 1.0]


def test_a_stride_keeps_all_cameras_of_a_time(write):
    folder = write([{"time": t} for t in (1.0, 0.0, 0.5, 0.5, 0.0, 1.0)])
    assert moments(DNerf(folder=folder, train_stride=2).load(0).train) == [1.0, 0.0, 0.0, 1.0]


def test_shuffled_times_are_the_same_times_dealt_out_by_the_seed(write):
    folder = write(times(20))
    plain = DNerf(folder=folder).load(0)
    first, again, other = (DNerf(folder=folder, shuffle_times=True).load(seed) for seed in (0, 0, 1))
    assert moments(first.train) == moments(again.train)
    assert moments(first.train) != moments(other.train)
    assert moments(first.train) != moments(plain.train)
    assert sorted(moments(first.train)) == moments(plain.train)
    # The pictures and cameras stay together, and the judges are not lied to.
    assert [view.name for view in first.train] == [view.name for view in plain.train]
    assert moments(first.test) == moments(plain.test)


def test_settings_survive_being_written_and_read(tmp_path):
    wanted = DNerf(folder=tmp_path, downscale=2, train_stride=2)
    dumped = config.dump(wanted)
    assert dumped.pop("kind") == "dynamic.datasets.dnerf"
    assert config.find("nfc_gs.datasets", "dynamic.datasets.dnerf")(**dumped) == wanted


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("dnerf_robot_dance", (100, 10, 20)),
        ("mujoco_scene7_deformation_400", (126, 27, 27)),
        ("mujoco_scene10_texture_400", (108, 21, 21)),
    ],
)
def test_real_scenes_load(data, name, counts):
    train, val, test = counts
    scene = DNerf(folder=data / name, downscale=4).load(0)
    assert (len(scene.train), len(scene.test), len(scene.times)) == (train, test, train)
    assert len(DNerf(folder=data / name, test_split="val").load(0).test) == val
    photograph = scene.test[0].read()
    assert photograph.rgb.shape == (100, 100, 3)
    assert photograph.alpha is not None
