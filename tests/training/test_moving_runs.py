"""A moving toy scene, trained for a moment and then seen, measured and exported through the command line."""

import json
import os

import av
import pytest

from nfc_gs import cli
from tests.conftest import REPOSITORY

SMALL = [
    "steps=40", "dataset.size=32", "dataset.num_train=10", "dataset.num_test=2", "initial.random=200", "initial.opacity=0.6",
    "deformation.bones=6", "deformation.warm_up=0.1", "strategy.cap_max=300", "evaluation.every=20", "threads=1",
]  # fmt: skip


def nfc_gs(*arguments) -> int:
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as left:  # as argparse does
        return int(left.code or 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "arm"
    toy = REPOSITORY / "configs/dynamic/toy.yaml"
    assert nfc_gs("train", toy, f"output={folder.parent}", "name=arm", *SMALL) == 0
    return folder


def test_the_record_names_times_and_which_checkpoint_was_measured(trained):
    record = json.loads((trained / "metrics.json").read_text())
    assert (record["num_times"], record["checkpoint"], record["split"]) == (4, "last", "test")
    assert record["resolution"] == "32x32" and record["background"] == [1, 1, 1]
    assert record["per_view"][0]["time"] == 0
    assert nfc_gs("eval", trained, "--best") == 0
    assert json.loads((trained / "metrics.json").read_text())["checkpoint"] == "best on these views"
    assert nfc_gs("eval", trained) == 0
    assert json.loads((trained / "metrics.json").read_text())["checkpoint"] == "last"


def test_tensorboard_shows_fixed_times_and_how_far_everything_goes(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Images("motion/slices_and_speeds")] == [20, 40]
    displacement = [event.value for event in events.Scalars("motion/displacement_at_0")]
    assert displacement == [0, 0]  # from where everything is at time 0
    assert events.Scalars("motion/displacement_at_1")[-1].value >= 0
    assert events.Scalars("motion/top_speed")[-1].step == 40


def test_a_film_goes_through_the_command_line(trained, tmp_path, capsys):
    assert nfc_gs("render", trained, "--path", "orbit", "--frames", 6, "--output", tmp_path / "arm.webm") == 0
    assert "6 frames, 32x32" in capsys.readouterr().out
    with av.open(str(tmp_path / "arm.webm")) as container:
        assert len(list(container.decode(video=0))) == 6
    assert nfc_gs("render", trained, "--times", "0,0.5,1", "--mode", "motion", "--output", tmp_path / "frames") == 0
    assert len(os.listdir(tmp_path / "frames")) == 4
    # Without a word of time or path it is what it always was: the held-out views.
    assert nfc_gs("render", trained, "--mode", "error", "--output", tmp_path / "views") == 0
    assert len(os.listdir(tmp_path / "views")) == 4


@pytest.mark.parametrize("kind", ["ply-sequence", "ply_sequence"])
def test_a_sequence_is_asked_for_with_flags_or_settings(trained, tmp_path, kind):
    given = ["--fps", "12", "--frames", "3"] if kind == "ply-sequence" else ["fps=12", "frames=3"]
    assert nfc_gs("export", trained, "--kind", kind, "--output", tmp_path / "clip", *given) == 0
    manifest = json.loads((tmp_path / "clip/manifest.json").read_text())
    assert (manifest["fps"], manifest["frames"]) == (12, 3)
    assert manifest["up"][2] > 0.99  # the toy's table is level


def test_bones_are_exported_by_a_flag(trained, tmp_path, capsys):
    arguments = ["--kind", "dynamic.exporters.motion", "--form", "bones", "--output", tmp_path / "arm.npz"]
    assert nfc_gs("export", trained, *arguments) == 0
    assert "px in the mean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--times", "0,1.5"], "'1.5' is no time"),
        (["--times", "nan"], "'nan' is no time"),
        (["--times", "0,0.5,0"], "named twice"),
        (["--time", "-0.1"], "no time"),
        (["--times", "3", "--time", "0.5"], "give one of them"),
        (["--path", "circle"], "one of orbit"),
        (["--times", "3", "--fps", "0"], "frames a second"),
        (["--times", "3", "--frames", "0"], "number of frames"),
        (["--times", "3", "--size", "640"], "no size as 640x480"),
    ],
)
def test_a_film_that_cannot_be_is_one_line(trained, tmp_path, capsys, arguments, message):
    assert nfc_gs("render", trained, "--output", tmp_path / "film.mp4", *arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1] and said[-1].startswith("nfc-gs: ")
    assert os.listdir(tmp_path) == []


def test_an_output_that_cannot_be_written_is_one_line(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for name in ("file/film.mp4", "file/frames", "file/sheet.png"):
        assert nfc_gs("render", trained, "--times", "2", "--output", tmp_path / name) == 2
        assert "cannot be written" in capsys.readouterr().err.strip().splitlines()[-1]


def test_offsets_of_bits_that_the_code_has_not_are_refused_before_anything_is_written(tmp_path, capsys):
    files = [REPOSITORY / f"configs/{name}.yaml" for name in ("dynamic/toy", "dynamic/fields/hexplane")]
    run = [*files, "deformation.residuals.colour_logits=8", f"output={tmp_path}", "name=bits", "dataset.size=32"]
    assert nfc_gs("train", *run) == 2
    assert "colour_logits is 8, but code has 1 logits" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_moving_run_is_resumed_from_the_settings_in_its_folder(trained, capsys):
    assert nfc_gs("train", "--resume", trained) == 0
    assert "all 40 steps of this run are done already" in capsys.readouterr().out
