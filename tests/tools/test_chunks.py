"""A capture cut into chunks and joined again: on cameras and points placed by hand."""

import sys

import numpy as np
import pycolmap
import pytest
from PIL import Image
from plyfile import PlyData, PlyElement

from nfc_gs.config import UserError, validate_kind
from tests.tools.conftest import _load

GROUND = np.array([[1.0, 0, 0], [0, 0, 1]])  # COLMAP's y points down


@pytest.fixture(scope="module")
def chunks():
    return _load("chunks")


def test_boxes_hold_every_place_once_and_about_equally_many(chunks):
    places = np.random.default_rng(0).normal(size=(1000, 2)) * [5, 1]
    found = chunks.boxes(places, 4)
    inside = np.stack([box.holds(places) for box in found])
    assert (inside.sum(0) == 1).all()
    assert inside.sum(1).tolist() == [250] * 4
    # However far away, everything is in one of them.
    far = np.array([[1e9, -1e9], [-1e9, 1e9]])
    assert (np.stack([box.holds(far) for box in found]).sum(0) == 1).all()
    with pytest.raises(UserError, match="too few points"):
        chunks.boxes(np.zeros((10, 2)), 2)


@pytest.mark.parametrize("turned", [False, True])
def test_the_ground_plan_is_where_the_cameras_differ(chunks, turned):
    positions = np.random.default_rng(0).normal(size=(50, 3)) * [9, 0.1, 4]
    if turned:
        positions = positions[:, [1, 0, 2]]
    plan = chunks.ground_plan(positions)
    np.testing.assert_allclose(plan @ plan.T, np.eye(2), atol=1e-12)
    assert np.abs(plan[:, 0 if turned else 1]).max() < 0.05


@pytest.fixture
def capture(tmp_path):
    """Ten photographs along x, and points ahead of each; photograph i is taken at x = i, and sees what lies around x = 9 - i."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model="PINHOLE", width=40, height=30, params=[40, 40, 20, 15], camera_id=1)
    model.add_camera_with_trivial_rig(camera)
    random = np.random.default_rng(0)
    seen = {i: [] for i in range(10)}
    for place in range(10):
        for _ in range(6):
            xyz = np.array([place + random.uniform(-0.2, 0.2), random.uniform(0, 0.1), 5 + random.uniform(-0.2, 0.2)])
            seen[9 - place].append(model.add_point3D(xyz, pycolmap.Track(), np.array([90, 90, 90], np.uint8)))
    for i in range(10):
        points = pycolmap.Point2DList([pycolmap.Point2D(np.array([20.0, 15.0]), number) for number in seen[i]])
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([-float(i), 0.0, -0.3 * (i % 2)]))
        image = pycolmap.Image(name=f"{i}.jpg", points2D=points, camera_id=1, image_id=i + 1)
        model.add_image_with_trivial_frame(image, pose)
    folder = tmp_path / "capture"
    (folder / "sparse").mkdir(parents=True)
    (folder / "images").mkdir()
    model.write(str(folder / "sparse"))
    for i in range(10):
        Image.new("RGB", (40, 30)).save(folder / f"images/{i}.jpg")
    return folder


def test_a_chunk_has_the_photographs_that_see_its_box_and_can_be_loaded(chunks, capture, tmp_path, capsys, monkeypatch):
    output = tmp_path / "chunks"
    monkeypatch.setattr(sys, "argv", ["chunks", "split", str(capture), "--output", str(output)])
    assert chunks.main() == 0
    names = [{path.name for path in (output / str(n) / "images").iterdir()} for n in range(2)]
    # Those taken on one side see the other one; which side comes first is the plan's.
    first = {f"{i}.jpg" for i in range(5)}
    assert first in names and {f"{i}.jpg" for i in range(5, 10)} in names
    for n in range(2):
        folder = output / str(n)
        held_out = (folder / "test.txt").read_text().split()
        # Photographs 0 and 8 are held out of the whole.
        assert held_out == (["0.jpg"] if "0.jpg" in names[n] else ["8.jpg"])
        told = {"kind": "colmap", "folder": str(folder), "skip_missing": True, "test_list": str(folder / "test.txt")}
        scene = validate_kind("nfc_gs.datasets", told, "test").load(0)
        assert {view.name for view in scene.test} == set(held_out)
        assert {view.name for view in scene.train} == names[n] - set(held_out)
    assert chunks.main() == 2
    assert "already there" in capsys.readouterr().err


def test_joining_keeps_of_each_chunk_what_lies_in_its_box(chunks, capture, tmp_path, monkeypatch, capsys):
    output = tmp_path / "chunks"
    chunks.split(capture, output, "images", 2, 0.1)
    kind = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("from", "<f4")]
    places = np.linspace(-3, 12, 61)
    for n in range(2):
        rows = np.array([(x, 0.5, 5, n) for x in places], kind)
        PlyData([PlyElement.describe(rows, "vertex")], comments=["SplatRenderMode: default"]).write(
            str(output / str(n) / "scene.ply")
        )
    monkeypatch.setattr(sys, "argv", ["chunks", "join", str(output), "--output", str(tmp_path / "joined.ply")])
    assert chunks.main() == 0
    joined = PlyData.read(str(tmp_path / "joined.ply"))
    rows = joined["vertex"].data
    # Each place once, one side from one chunk and the other from the other.
    assert sorted(rows["x"].tolist()) == places.tolist()
    for n in range(2):
        seen = [float(path.stem) for path in (output / str(n) / "images").iterdir()]
        here = rows["x"][rows["from"] == n]
        assert abs(np.mean(here.clip(0, 9)) - (9 - np.mean(seen))) < 1
    assert joined.comments == ["SplatRenderMode: default"]
    (output / "1/scene.ply").unlink()
    assert chunks.main() == 2
    assert "1/scene.ply: is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "box", "scene", "complaint"),
    [
        ("a", "{}", "", "holds no chunks"),
        ("0", "{", "", "is not as `split` wrote it"),
        ("0", "{}", "", "is not as `split` wrote it"),
        ("0", '{"plan": [[1, 0, 0], [0, 0, 1]], "low": [0, 0], "high": [1, 1]}', "hi", "is no PLY of Gaussians"),
    ],
)
def test_what_cannot_be_joined_is_one_line_and_nothing_is_left(
    chunks, number, box, scene, complaint, tmp_path, capsys, monkeypatch
):
    (tmp_path / number).mkdir()
    (tmp_path / number / "chunk.json").write_text(box)
    (tmp_path / number / "scene.ply").write_text(scene)
    monkeypatch.setattr(sys, "argv", ["chunks", "join", str(tmp_path), "--output", str(tmp_path / "joined.ply")])
    assert chunks.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line
    assert not list(tmp_path.glob("joined*"))


def test_no_box_at_all_is_refused(chunks, capture, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["chunks", "split", str(capture), "--output", str(tmp_path / "c"), "--boxes", "0"])
    assert chunks.main() == 2
    assert capsys.readouterr().err == "chunks: --boxes 0: must be at least 1\n"
    assert not (tmp_path / "c").exists()
