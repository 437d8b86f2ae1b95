import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from dynamic.deformations.bases import Bases
from dynamic.exporters.motion import Motion, measure
from nfc_gs.deformations.base import Moved
from nfc_gs.exporters.base import FileError
from nfc_gs.exporters.ply import load
from nfc_gs.rasterizers.reference import Reference
from tests.evaluation import moving

FLOAT32 = {"rtol": 0, "atol": 5e-6}  # world coordinates near 1, written as float32
SCENE = moving.scene()


def cameras():
    return [view.camera for view in SCENE.train]


class Throw(moving.Slide):
    """A cubic in time, the same for all."""

    def forward(self, gaussians, time):
        """0.5 t - 2 t^2 + 1.4 t^3 along x, and 0.3 t^3 along z."""
        shift = torch.tensor([0.5 * time - 2 * time**2 + 1.4 * time**3, 0.0, 0.3 * time**3])
        return Moved(gaussians=replace(gaussians, means=gaussians.means + shift))


class Spin(moving.Slide):
    """About the z axis, `turns` times around."""

    turns = 1.0

    def forward(self, gaussians, time):
        """Places and orientations turn together."""
        angle = 2 * math.pi * self.turns * time
        c, s = math.cos(angle), math.sin(angle)
        means = gaussians.means @ torch.tensor([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
        return Moved(gaussians=replace(gaussians, means=means))


def model(field):
    made = moving.model()
    made.field = field
    return made


def evaluate(folder, name: str, array: str, time: float) -> np.ndarray:
    """A player of its own, written from the JSON's sentence alone."""
    record = json.loads((folder / f"{name}.json").read_text())
    control = np.load(folder / f"{name}.npz")[array].astype(float)
    if record["form"] == "chunks":
        u = time * record["chunks"]
        i = min(math.floor(u), record["chunks"] - 1)
        weights = [(u - i) ** j for j in range(4)]
        return sum(w * control[:, 4 * i + j] for j, w in enumerate(weights))
    u = time * (record["knots"] - 1)
    i = min(math.floor(u), record["knots"] - 2)
    f = u - i
    weights = [(1 - f) ** 3 / 6, (3 * f**3 - 6 * f**2 + 4) / 6, (-3 * f**3 + 3 * f**2 + 3 * f + 1) / 6, f**3 / 6]
    return sum(w * control[:, i + j] for j, w in enumerate(weights))


@pytest.mark.parametrize("form", ["splines", "chunks"])
def test_a_motion_that_is_a_cubic_is_written_exactly(tmp_path, form):
    thrown = model(Throw())
    line = Motion(form=form).write(thrown, tmp_path / "throw.npz", cameras)
    for time in (0.0, 0.013, 0.5, 0.77, 1.0):
        expected = thrown.to_world(thrown.at(time)[0].means).numpy()
        np.testing.assert_allclose(evaluate(tmp_path, "throw", "means", time), expected, **FLOAT32)
    assert "0.000 px in the mean" in line
    record = json.loads((tmp_path / "throw.json").read_text())
    # Nothing but places moves, so nothing but places is written.
    assert list(record["arrays"]) == ["means"] and record["error_pixels"]["largest"] < 1e-3
    assert record["arrays"]["means"] == [12, 42 if form == "splines" else 80, 3]


def test_the_error_in_pixels_is_that_of_the_screen():
    slid = moving.model()
    ahead = {"world": slid.to_world}

    def late(time):
        return ahead["world"](slid.at(time)[0].means + torch.tensor([0.0, 0.0, 0.05])).numpy()

    # 0.05 across at a distance of about 3 and a focal length of 60 pixels is one pixel.
    errors = measure(slid, late, cameras())
    assert 0.6 < errors.mean < 1.4 and errors.mean <= errors.p99 <= errors.largest < 2


def test_an_error_that_no_camera_can_see_is_not_said_to_be_zero(tmp_path):
    faint = model(Spin())
    faint.gaussians = replace(faint.gaussians, opacity_logits=torch.full_like(faint.gaussians.opacity_logits, -9.0))
    assert "not measured" in Motion().write(faint, tmp_path / "faint.npz", cameras)
    assert json.loads((tmp_path / "faint.json").read_text())["error_pixels"] is None


def test_one_cubic_for_a_lively_clip_is_never_offered_silently(tmp_path):
    lively = model(Spin())
    lively.field.turns = 3.0
    one, twenty = (Motion(form="chunks", chunks=n).write(lively, tmp_path / "spin.npz", cameras) for n in (1, 20))
    assert "take 10 or 20" in one and "take 10 or 20" not in twenty
    assert json.loads((tmp_path / "spin.json").read_text())["error_pixels"]["p99"] < 0.1
    assert float(one.split("; error on the screen ")[1].split(" px")[0]) > 3


def test_the_still_part_is_a_ply_in_the_same_order(tmp_path):
    Motion().write(moving.model(), tmp_path / "slide.npz", cameras)
    still = load(tmp_path / "slide.ply", Reference())
    np.testing.assert_allclose(evaluate(tmp_path, "slide", "means", 0.0), still.gaussians.means.numpy(), **FLOAT32)
    assert sorted(os.listdir(tmp_path)) == ["slide.json", "slide.npz", "slide.ply"]


def skeleton():
    """Five bones that move at random, awake, with four weights a Gaussian."""
    generator = torch.Generator().manual_seed(1)
    made = moving.model()
    made.gaussians = replace(made.gaussians, motion=2 * torch.randn(12, 5, generator=generator))
    settings = Bases(bones=5, times_per_knot=(8, 4), warm_up=0.0, sparse_from=0.0)
    made.field = settings.init(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), 40, generator)
    motion = made.gaussians.motion.clone()
    made.field.advance(made.population(), 0.5)
    made.gaussians.motion.copy_(motion)
    with torch.no_grad():
        made.field.controls.copy_(0.2 * torch.randn(made.field.controls.shape, generator=generator))
    return made


def test_bones_carry_every_gaussian_where_the_field_does(tmp_path):
    made = skeleton()
    line = Motion(form="bones", knots=41).write(made, tmp_path / "bones.npz", cameras)
    arrays = np.load(tmp_path / "bones.npz")
    assert arrays["bones"].shape == arrays["weights"].shape == (12, 4)
    np.testing.assert_allclose(arrays["weights"].sum(1), 1, atol=1e-6)
    for time in (0.0, 0.31, 1.0):
        q = evaluate(tmp_path, "bones", "bone_quats", time)
        d = evaluate(tmp_path, "bones", "bone_translations", time)
        w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
        rotations = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        ).transpose(2, 0, 1)
        centres = arrays["bone_centres"].astype(float)
        carried = np.zeros((12, 3))
        for n in range(12):
            for m, weight in zip(arrays["bones"][n], arrays["weights"][n], strict=True):
                carried[n] += weight * (rotations[m] @ (arrays["means"][n] - centres[m]) + centres[m] + d[m])
        expected = made.to_world(made.at(time)[0].means).detach().numpy()
        # A level's control points lie less densely than the 41 knots, which therefore follow it to a thousandth.
        np.testing.assert_allclose(carried, expected, atol=4e-3)
    assert "bones, 12 Gaussians" in line


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        ({}, "motion.bin", "must end in .npz"),
        ({"form": "bones"}, "motion.npz", "only runs of kind dynamic.deformations.bases"),
        ({}, "file/motion.npz", "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_one_line(tmp_path, settings, name, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=message) as error:
        Motion(**settings).write(moving.model(), tmp_path / name, cameras)
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == ["file"]


def test_of_the_three_files_none_is_new_if_one_cannot_be_written(tmp_path, monkeypatch):
    Motion().write(moving.model(), tmp_path / "motion.npz", cameras)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(file, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(FileError, match=r"motion\.npz: cannot be written: No space left on device"):
        Motion(form="chunks").write(moving.model(), tmp_path / "motion.npz", cameras)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_still_run_and_a_run_without_cameras_are_refused(tmp_path):
    with pytest.raises(FileError, match="still"):
        Motion().write(moving.model(still=True), tmp_path / "motion.npz", cameras)
    with pytest.raises(FileError, match="no cameras"):
        Motion().write(moving.model(), tmp_path / "motion.npz")
