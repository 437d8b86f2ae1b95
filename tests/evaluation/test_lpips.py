import shutil

import numpy as np
import pytest
import torch

from nfc_gs.evaluation.lpips import FILES, VARIABLE, Lpips, WeightsError, alexnet, load, squeezenet

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


def test_without_a_folder_there_is_a_reason(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    lpips = Lpips.find()
    assert not lpips.networks and lpips.reason is not None and VARIABLE in lpips.reason
    assert lpips(*patterns(64, 64)) == {}


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
