"""LPIPS, the learned perceptual distance (Zhang et al. 2018, version 0.1), over AlexNet and SqueezeNet 1.1.

The networks' weights are read from a folder of the user's, or torchmetrics computes the distances where the user has it
and torchvision has its backbones already; nothing is ever downloaded. Each number is named by its network, since the
networks' distances cannot be compared with one another.
"""

import functools
import importlib
import importlib.util
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from nfc_gs.config import UserError

VARIABLE = "NFC_GS_LPIPS"
# Files of the folder by network: the backbone's weights, and those of the linear heads (as released with LPIPS 0.1).
FILES = {
    "alex": ("alexnet_features_fp32.npz", "lin_alex_v0.1.pth"),
    "squeeze": ("squeeze.backbone.pth", "lin_squeeze_v0.1.pth"),
}
# The backbones in torchvision by network, as torchmetrics takes them.
BACKBONES = {"alex": "AlexNet_Weights", "squeeze": "SqueezeNet1_1_Weights"}
# Below this side AlexNet's last layers have no pixels left.
MIN_SIDE = 32
# Means and deviations of ImageNet's pictures in [-1, 1], as LPIPS rounds them.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
# Added to the length of a feature before it is divided by, as in LPIPS.
LENGTH_MARGIN = 1e-10


class WeightsError(UserError):
    """A file of the folder with LPIPS's weights is missing or not what it should be."""


class Fire(nn.Module):
    """SqueezeNet's module (Iandola et al. 2016): few channels, then many, half of them from single pixels."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        """D = 2 `expanded` channels."""
        squeezed = self.squeeze(features).relu()
        return torch.cat([self.expand1x1(squeezed).relu(), self.expand3x3(squeezed).relu()], 1)


def alexnet() -> nn.ModuleList:
    """AlexNet's convolutions (Krizhevsky 2014), one stage for each layer that LPIPS looks at."""
    return nn.ModuleList(
        [
            nn.Sequential(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU()),
            nn.Sequential(nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()),
            nn.Sequential(nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
        ]
    )


def squeezenet() -> nn.ModuleList:
    """SqueezeNet 1.1's convolutions (Iandola et al. 2016), one stage for each layer that LPIPS looks at."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.ModuleList(
        [
            nn.Sequential(nn.Conv2d(3, 64, 3, stride=2), nn.ReLU()),
            nn.Sequential(pool(), Fire(64, 16, 64), Fire(128, 16, 64)),
            nn.Sequential(pool(), Fire(128, 32, 128), Fire(256, 32, 128)),
            nn.Sequential(pool(), Fire(256, 48, 192)),
            nn.Sequential(Fire(384, 48, 192)),
            nn.Sequential(Fire(384, 64, 256)),
            nn.Sequential(Fire(512, 64, 256)),
        ]
    )


class Network(nn.Module):
    """One network's distance between two pictures."""

    shift: Tensor
    scale: Tensor

    def __init__(self, stages: nn.ModuleList, heads: list[Float[Tensor, " _"]]) -> None:
        super().__init__()
        self.stages = stages
        self.heads = nn.ParameterList(nn.Parameter(head, requires_grad=False) for head in heads)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    def forward(self, x: Float[Tensor, "H W 3"], y: Float[Tensor, "H W 3"]) -> Float[Tensor, ""]:
        """The distance of two pictures with values in [0, 1]: 0 for equal ones, seldom above 1."""
        features = (2 * torch.stack([x, y]).permute(0, 3, 1, 2) - 1 - self.shift) / self.scale
        distance = x.new_zeros(())
        for stage, head in zip(self.stages, self.heads, strict=True):
            features = stage(features)
            directions = features / (features.norm(dim=1, keepdim=True) + LENGTH_MARGIN)
            distance = distance + ((directions[0] - directions[1]) ** 2 * head[:, None, None]).sum(0).mean()
        return distance


class TorchmetricsNetwork(nn.Module):
    """torchmetrics' distance between two pictures, by its own linear heads, which are those released with LPIPS 0.1.

    It divides features by a length with another margin than LPIPS's authors do, which moves no distance by 1e-6.
    """

    def __init__(self, net: str) -> None:
        super().__init__()
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self.metric = LearnedPerceptualImagePatchSimilarity(net_type=net, normalize=True)

    def forward(self, x: Float[Tensor, "H W 3"], y: Float[Tensor, "H W 3"]) -> Float[Tensor, ""]:
        """The distance of two pictures with values in [0, 1]."""
        self.metric.reset()
        self.metric.update(*torch.stack([x, y]).permute(0, 3, 1, 2).split(1))
        return self.metric.compute()


@dataclass(frozen=True, kw_only=True)
class Lpips:
    """The networks at hand by name, and the reason why there are none or not all."""

    networks: Mapping[str, nn.Module]
    reason: str | None = None

    @staticmethod
    def find(folder: Path | None = None) -> "Lpips":
        """The networks of `folder`, else of the folder that the environment variable NFC_GS_LPIPS names, else those of
        torchmetrics whose backbones torchvision has on this machine, else none.

        Raises:
            WeightsError: a folder is named, but a file of it is missing or broken; or torchvision's file is broken.
        """
        named = os.environ.get(VARIABLE)
        if folder is None and not named:
            missing = _missing_of_torchmetrics()
            networks = {net: load_torchmetrics(net) for net in BACKBONES if net not in missing}
            if not missing:
                return Lpips(networks=networks)
            which = "no weights" if not networks else f"no weights for {', '.join(missing)}"
            why = "; ".join(dict.fromkeys(missing.values()))
            return Lpips(
                networks=networks,
                reason=f"{which}: set {VARIABLE} to a folder with {_wanted()}, or let torchmetrics compute it ({why})",
            )
        folder = folder or Path(named or "").expanduser()
        return Lpips(networks={net: load(net, folder) for net in FILES})

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "H W 3"], y: Float[Tensor, "H W 3"]) -> dict[str, float]:
        """The distance of two pictures in [0, 1] by each network; none for pictures too small for them."""
        if min(x.shape[:2]) < MIN_SIDE:
            return {}
        return {name: float(network.to(x.device)(x, y)) for name, network in self.networks.items()}


def load(net: str, folder: Path) -> Network:
    """The network `net`, "alex" or "squeeze", with the weights of a folder.

    Raises:
        WeightsError: a file is missing, broken, or holds other weights.
    """
    backbone, linear = (folder / name for name in FILES[net])
    stages = alexnet() if net == "alex" else squeezenet()
    weights = _read(backbone)
    for name, parameter in _layers(stages, net).items():
        values = _take(weights, name, backbone, net)
        if values.shape != parameter.shape:
            found, right = tuple(values.shape), tuple(parameter.shape)
            raise WeightsError(f"{backbone}: {name!r} has the shape {found}, but {net} needs {right}")
        parameter.data.copy_(values)
        parameter.requires_grad_(False)
    released = _read(linear)
    heads = [_take(released, f"lin{i}.model.1.weight", linear, net).flatten().float() for i in range(len(stages))]
    return Network(stages, heads).eval()


@functools.cache
def load_torchmetrics(net: str) -> TorchmetricsNetwork:
    """torchmetrics' network `net`, whose backbone must be in torch.hub's folder: it would be downloaded otherwise.

    Raises:
        WeightsError: the backbone's file is broken.
    """
    try:
        return TorchmetricsNetwork(net)
    except (OSError, ValueError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        first = next(iter(str(error).splitlines()), "no data")
        raise WeightsError(f"{_hub_folder()}: torchvision's backbone of {net} is broken there: {first}") from None


def _missing_of_torchmetrics() -> dict[str, str]:
    """What torchmetrics lacks, by network; a network that is not named here lacks nothing."""
    absent = [name for name in ("torchmetrics", "torchvision") if importlib.util.find_spec(name) is None]
    if absent:
        return dict.fromkeys(BACKBONES, f"not installed: {', '.join(absent)}")
    try:
        from torchvision import models

        importlib.import_module("torchmetrics.image.lpip")
    # Built for another torch, torchvision raises RuntimeError.
    except (ImportError, RuntimeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        return dict.fromkeys(BACKBONES, f"it cannot be imported: {first}")
    # What torch.hub will look for, and download if it is not there, is the last part of the address.
    files = {net: _hub_folder() / Path(getattr(models, name).DEFAULT.url).name for net, name in BACKBONES.items()}
    return {net: f"torchvision's {file} is not there" for net, file in files.items() if not file.is_file()}


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _take(tensors: dict[str, Tensor], name: str, path: Path, net: str) -> Tensor:
    if name not in tensors:
        found = ", ".join(list(tensors)[:3]) or "nothing"
        raise WeightsError(f"{path}: holds no {name!r}, so it is not LPIPS's file for {net} (it begins with {found})")
    return tensors[name]


def _layers(stages: nn.ModuleList, net: str) -> dict[str, Tensor]:
    """Every parameter by its name in the file: AlexNet's layers are counted, SqueezeNet's have torchvision's names."""
    if net == "alex":
        convolutions = [module for module in stages.modules() if isinstance(module, nn.Conv2d)]
        named: dict[str, nn.Module] = {f"conv{i}": convolution for i, convolution in enumerate(convolutions, 1)}
    else:
        # torchvision counts all layers in one sequence, those without parameters as well.
        named = {str(i): layer for i, layer in enumerate(layer for stage in stages for layer in stage.children())}
    return {f"{layer}.{name}": value for layer, module in named.items() for name, value in module.named_parameters()}


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of an .npz or .pth file, by name."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        tensors = torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}; LPIPS needs {_wanted()}") from None
    except (ValueError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        first = next(iter(str(error).splitlines()), "no data")
        raise WeightsError(f"{path}: is broken, perhaps cut off: {first}") from None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(f"{path}: holds no named tensors, so it is not LPIPS's weights")
    return tensors


def _wanted() -> str:
    return ", ".join(name for names in FILES.values() for name in names)
