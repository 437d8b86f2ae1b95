"""What is drawn in a benchmark."""

import dataclasses

import numpy as np
import pytest
import torch

from nfc_gs.benchmarks import loads
from nfc_gs.config import UserError, read
from nfc_gs.core.gaussians import Splats
from nfc_gs.exporters.ply import Ply
from nfc_gs.rasterizers.cpu import Cpu
from tests.conftest import REPOSITORY

DRAWN = 1e-5  # float32 opacities through a logit and back


def tensors(load: loads.Load) -> list[torch.Tensor]:
    return [getattr(load.splats, field.name) for field in dataclasses.fields(Splats)] + [load.harmonics]


def test_the_seed_decides_the_scene():
    first, second, other = loads.shells(300, 5), loads.shells(300, 5), loads.shells(300, 6)
    assert all(map(torch.equal, tensors(first), tensors(second)))
    assert not torch.equal(first.splats.means, other.splats.means)


@pytest.mark.parametrize("count", [1, 2, 300])
def test_there_are_as_many_splats_as_asked_for(count):
    load = loads.shells(count, 0)
    assert all(len(tensor) == count and tensor.isfinite().all() for tensor in tensors(load))


@pytest.mark.parametrize("method", sorted(loads.METHODS))
def test_the_methods_are_those_of_the_config_files(method):
    assert loads.METHODS[method] == read([REPOSITORY / "configs" / "methods" / f"{method}.yaml"])


def test_a_larger_picture_shows_the_same_in_its_middle():
    load = loads.shells(10, 0)
    points = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.0, 0.0]])
    (before, _), (after, _) = load.camera.project(points), load.seen(1600, 1200).camera.project(points)
    torch.testing.assert_close((after - torch.tensor([800.0, 600])) / 4, before - torch.tensor([200.0, 200]))


def test_a_part_of_a_load_is_drawn_without_repeats():
    load = loads.shells(100, 0)
    part = load.part(40, 0)
    assert len(part) == len(torch.unique(part.splats.means, dim=0)) == 40
    where = (part.splats.means[:, None] == load.splats.means).all(-1).nonzero()[:, 1]
    assert torch.equal(load.harmonics[where], part.harmonics)


def test_an_exported_run_is_read_back_as_it_was(tmp_path):
    load = loads.shells(50, 0)
    trainer = loads.make_trainer(load.seen(20, 20), "regression", Cpu(), 0)
    Ply().write(trainer.model, tmp_path / "scene.ply")
    back = loads.read(tmp_path / "scene.ply", 0)
    torch.testing.assert_close(back.splats.means, load.splats.means)
    torch.testing.assert_close(back.splats.opacities, load.splats.opacities.clamp(0.01, 0.99), rtol=0, atol=DRAWN)
    torch.testing.assert_close(back.splats.values, load.splats.values.clamp(0.01, 0.99), rtol=0, atol=DRAWN)
    torch.testing.assert_close(back.harmonics, load.harmonics)
    _, depths = back.camera.project(back.splats.means)
    assert depths.median() > 0


def garden(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    intrinsics = np.array([[[30.0, 0, 20], [0, 31, 15], [0, 0, 1]]])
    return {
        "means3d": rng.uniform(-3, 3, (count, 3)).astype(np.float32),
        "colors": rng.integers(0, 256, (count, 3), dtype=np.uint8),
        "viewmats": np.eye(4, dtype=np.float32)[None],
        "Ks": intrinsics,
        "width": np.array(40),
        "height": np.array(30),
    }


def test_points_near_the_origin_become_splats(tmp_path):
    arrays = garden(500)
    np.savez(tmp_path / "garden.npz", **arrays)
    load = loads.read(tmp_path / "garden.npz", 0)
    assert len(load) == (np.abs(arrays["means3d"]) <= 2).all(1).sum()
    assert (load.camera.width, load.camera.height, load.camera.focal) == (40, 30, (30.0, 31.0))
    assert load.splats.scales.min() >= 1e-4 and load.splats.scales.max() <= 0.02


@pytest.mark.data
def test_gsplats_own_test_scene_is_read(data):
    load = loads.read(data / "gsplat_test_garden.npz", 0)
    assert len(load) > 100_000
    assert (load.camera.width, load.camera.height) == (648, 420)


def test_files_that_cannot_be_drawn_are_the_users_mistake(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"no zip")
    np.savez(tmp_path / "short.npz", means3d=np.zeros((3, 3)))
    for name, said in {
        "missing.npz": "No such file",
        "broken.npz": "is no npz file",
        "short.npz": "has no array 'colors'",
        "missing.ply": "No such file",
        "scene.obj": "neither a .ply",
    }.items():
        with pytest.raises(UserError, match=said) as caught:
            loads.read(tmp_path / name, 0)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
