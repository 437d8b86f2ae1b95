import importlib.machinery
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from nfc_gs.evaluation.lpips import (
    FILES,
    VARIABLE,
    Lpips,
    Network,
    WeightsError,
    alexnet,
    load,
    load_torchmetrics,
    squeezenet,
)

# By the program of LPIPS's authors (PyPI lpips 0.1.4) with the same weights, on `patterns`; that program's own example
# pictures are not free to be copied here. An ONNX export of it by others gives the same numbers for SqueezeNet.
REFERENCE = {
    (64, 64): {"alex": 0.1830388903617859, "squeeze": 0.21520309150218964},
    (97, 131): {"alex": 0.19882431626319885, "squeeze": 0.13080891966819763},
}
SUMMATION = 2e-6  # float32 convolutions add in another order on another machine


def patterns(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture of waves and a disturbed copy, both in [0, 1]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = np.stack(
        [0.5 + 0.5 * np.sin(x / 5 + y / 11), 0.5 + 0.5 * np.cos(x * y / 300), (x / width + y / height) / 2], -1
    )
    ripples = np.stack([np.sin(x * 1.7) * np.cos(y * 2.3), np.cos(x * 0.9 + y), np.sin(x * y / 50)], -1)
    return torch.from_numpy(waves).float(), torch.from_numpy(np.clip(waves + 0.15 * ripples, 0, 1)).float()


@pytest.fixture
def folder(tmp_path):
    """A folder with random weights, of the right names and shapes."""
    torch.manual_seed(0)
    convolutions = [module for module in alexnet().modules() if isinstance(module, torch.nn.Conv2d)]
    arrays = {
        f"conv{i}.{n}": p.detach().numpy() for i, c in enumerate(convolutions, 1) for n, p in c.named_parameters()
    }
    np.savez(tmp_path / FILES["alex"][0], **arrays)
    layers = torch.nn.Sequential(*[layer for stage in squeezenet() for layer in stage])
    torch.save(layers.state_dict(), tmp_path / FILES["squeeze"][0])
    for net, widths in (("alex", [64, 192, 384, 256, 256]), ("squeeze", [64, 128, 256, 384, 384, 512, 512])):
        heads = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(widths)}
        torch.save(heads, tmp_path / FILES[net][1])
    return tmp_path


@pytest.mark.data
@pytest.mark.parametrize("size", REFERENCE, ids=str)
def test_distances_are_those_of_the_authors_program(data, size):
    distances = Lpips.find(data / "lpips")(*patterns(*size))
    assert distances == pytest.approx(REFERENCE[size], abs=SUMMATION)


def test_equal_pictures_are_at_distance_zero(folder):
    picture, disturbed = patterns(40, 36)
    lpips = Lpips.find(folder)
    assert lpips(picture, picture) == {"alex": 0.0, "squeeze": 0.0}
    assert min(lpips(picture, disturbed).values()) > 0
    assert lpips(picture, disturbed) == pytest.approx(lpips(disturbed, picture))


def test_the_smallest_pictures_have_a_distance_and_smaller_ones_none(folder):
    lpips = Lpips.find(folder)
    assert set(lpips(*patterns(32, 32))) == {"alex", "squeeze"}
    assert lpips(*patterns(31, 60)) == {}


def test_the_folder_comes_from_the_environment(folder, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(folder))
    assert set(Lpips.find().networks) == {"alex", "squeeze"}


def test_without_a_folder_and_torchmetrics_there_is_a_reason_that_names_both(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lpips = Lpips.find()
    assert not lpips.networks and lpips.reason is not None
    assert VARIABLE in lpips.reason and "not installed: torchmetrics, torchvision" in lpips.reason
    assert lpips(*patterns(64, 64)) == {}


class StandIn(torch.nn.Module):
    """torchmetrics' metric as far as it is used, its distance the mean absolute difference; refuses what that refuses."""

    def __init__(self, net_type: str, normalize: bool) -> None:
        super().__init__()
        assert normalize, "pictures are in [0, 1]"
        if (checkpoints() / f"{net_type}-0123.pth").stat().st_size == 0:
            raise EOFError("Ran out of input")
        self.scores = []

    def reset(self):
        self.scores.clear()

    def update(self, x, y):
        assert x.shape == y.shape and x.ndim == 4 and x.shape[1] == 3
        self.scores.append((x - y).abs().mean())

    def compute(self):
        return torch.stack(self.scores).mean()


def checkpoints():
    return Path(torch.hub.get_dir()) / "checkpoints"


@pytest.fixture
def torchmetrics(monkeypatch, tmp_path):
    """torchmetrics and torchvision as they look to an importer; torch.hub's folder is empty."""

    def weights(net):
        return types.SimpleNamespace(
            DEFAULT=types.SimpleNamespace(url=f"https://nowhere.invalid/models/{net}-0123.pth")
        )

    contents = {
        "torchmetrics": {},
        "torchmetrics.image": {},
        "torchmetrics.image.lpip": {"LearnedPerceptualImagePatchSimilarity": StandIn},
        "torchvision": {},
        "torchvision.models": {"AlexNet_Weights": weights("alex"), "SqueezeNet1_1_Weights": weights("squeeze")},
    }
    for name, content in contents.items():
        module = types.ModuleType(name)
        module.__dict__.update(content, __spec__=importlib.machinery.ModuleSpec(name, None))
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["torchvision"].models = sys.modules["torchvision.models"]
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    load_torchmetrics.cache_clear()
    checkpoints().mkdir(parents=True)
    yield
    load_torchmetrics.cache_clear()


def test_torchmetrics_computes_it_where_torchvision_has_the_backbones(torchmetrics):
    for net in ("alex", "squeeze"):
        (checkpoints() / f"{net}-0123.pth").write_bytes(b"weights")
    lpips = Lpips.find()
    assert lpips.reason is None
    x, y = patterns(40, 36)
    for _ in range(2):  # what was measured before does not linger
        assert lpips(x, y) == pytest.approx(dict.fromkeys(["alex", "squeeze"], float((x - y).abs().mean())))
        assert lpips(x, x) == {"alex": 0.0, "squeeze": 0.0}


def test_a_named_folder_comes_before_torchmetrics(torchmetrics, folder):
    assert all(isinstance(network, Network) for network in Lpips.find(folder).networks.values())


def test_a_backbone_that_is_not_there_is_named_and_not_downloaded(torchmetrics):
    (checkpoints() / "alex-0123.pth").write_bytes(b"weights")
    lpips = Lpips.find()
    assert lpips.networks.keys() == {"alex"}
    assert lpips.reason is not None and lpips.reason.startswith("no weights for squeeze: ")
    assert str(checkpoints() / "squeeze-0123.pth") in lpips.reason
    assert [path.name for path in checkpoints().iterdir()] == ["alex-0123.pth"]


def test_a_broken_backbone_is_one_line(torchmetrics):
    (checkpoints() / "alex-0123.pth").touch()
    with pytest.raises(WeightsError, match="backbone of alex is broken there: Ran out of input"):
        Lpips.find()


def test_a_torchvision_built_for_another_torch_is_the_reason(torchmetrics, monkeypatch):
    class Broken(types.ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("operator torchvision::nms does not exist")

    broken = Broken("torchvision")
    broken.__spec__ = importlib.machinery.ModuleSpec("torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision", broken)
    lpips = Lpips.find()
    assert not lpips.networks and lpips.reason is not None
    assert "it cannot be imported: operator torchvision::nms does not exist" in lpips.reason


@pytest.mark.parametrize("name", [name for names in FILES.values() for name in names])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no weights at all"),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    ],
    ids=["missing", "empty", "other", "half"],
)
def test_a_missing_or_broken_file_is_one_line_that_names_it(folder, name, damage):
    damage(folder / name)
    with pytest.raises(WeightsError) as error:
        Lpips.find(folder)
    assert str(error.value).startswith(str(folder / name)) and "\n" not in str(error.value)


def test_weights_of_another_network_are_refused(folder):
    backbone, heads = FILES["squeeze"]
    shutil.copy(folder / heads, folder / backbone)
    with pytest.raises(WeightsError, match=r"holds no '0\.weight'"):
        load("squeeze", folder)


def test_weights_of_another_shape_are_refused(folder):
    with np.load(folder / FILES["alex"][0]) as arrays:
        changed = dict(arrays) | {"conv2.weight": np.zeros((192, 64, 3, 3), np.float32)}
    np.savez(folder / FILES["alex"][0], **changed)
    with pytest.raises(WeightsError, match=r"\(192, 64, 3, 3\).*\(192, 64, 5, 5\)"):
        load("alex", folder)
