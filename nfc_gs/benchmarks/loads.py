"""What is drawn in a benchmark: a synthetic scene of any size, or a real one from a file; and a trainer on it."""

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nfc_gs.config import UserError, merge, validate
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Gaussians, Splats
from nfc_gs.core.scene import Photograph, Scene, View
from nfc_gs.exporters.ply import load as load_ply
from nfc_gs.model import SplatModel
from nfc_gs.rasterizers.base import Rasterizer
from nfc_gs.rasterizers.cpu import Cpu
from nfc_gs.training.experiment import Experiment
from nfc_gs.training.trainer import Trainer

# The settings of configs/methods, which an installed package does not carry along; a test compares the two.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "regression": {"code": {"kind": "identity"}, "opacity_code": {"kind": "identity"}},
    "nfc": {
        "code": {"kind": "thermometer", "bits": 4},
        "opacity_code": {"kind": "binary", "bits": 8},
        "losses": {"code_bce": {"weight": 0.3, "stop": 0.6}},
        "optimizer": {"colour_logits": 0.02, "opacity_logits": 0.05},
    },
}
NOTHING: Mapping[str, Any] = {}
STEPS = 10_000
# The arrays of gsplat's test scene that are used, and a hull around what it shows sharply.
ARRAYS = ("means3d", "colors", "viewmats", "Ks", "width", "height")
HULL = 2.0
# A scene of which no camera is known is looked at from so many times the distance in which half of it lies.
DISTANCE = 3.0


class LoadError(UserError):
    """The file to be drawn is none that can be read."""


@dataclass(frozen=True)
class Load:
    """Splats with three channels in [0, 1], their harmonics of degree 3, and the camera that sees them."""

    name: str
    splats: Splats
    harmonics: Float[Tensor, "N 15 3"]
    camera: Camera

    def __len__(self) -> int:
        return len(self.splats)

    def part(self, count: int, seed: int) -> "Load":
        """So many of the splats, drawn from the seed; all of them in their order if there are no more."""
        if count == len(self):
            return self
        chosen = torch.randperm(len(self), generator=_generator(seed))[:count]
        splats = Splats(**{name: getattr(self.splats, name)[chosen] for name in Splats.__dataclass_fields__})
        return replace(self, splats=splats, harmonics=self.harmonics[chosen])

    def seen(self, width: int, height: int) -> "Load":
        """In a picture of this size, which shows all that the old one shows or is cut off on two sides."""
        camera = self.camera
        if (width, height) == (camera.width, camera.height):
            return self
        factor = max(width / camera.width, height / camera.height)
        return replace(
            self,
            camera=replace(
                camera,
                focal=(camera.focal[0] * factor, camera.focal[1] * factor),
                centre=(
                    width / 2 + factor * (camera.centre[0] - camera.width / 2),
                    height / 2 + factor * (camera.centre[1] - camera.height / 2),
                ),
                width=width,
                height=height,
            ),
        )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed + 1)


def shells(count: int, seed: int) -> Load:
    """A scene like those in training, of any size, in 400 x 400 pixels.

    70 % of the splats are discs on three bumpy nested shells, the others fill a box; sizes are log-normal about 0.6 of
    the spacing.
    """
    generator = _generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    on_shells = int(0.7 * count)
    directions = torch.nn.functional.normalize(normal(on_shells, 3), dim=1)
    radii = torch.tensor([0.5, 0.8, 1.1])[torch.randint(0, 3, (on_shells,), generator=generator)]
    bumps = torch.sin(5 * directions[:, 0]) * torch.cos(4 * directions[:, 1])
    radii = radii * (1 + 0.08 * bumps + 0.01 * normal(on_shells))
    in_box = torch.rand(count - on_shells, 3, generator=generator) * 2.4 - 1.2
    spacing = math.sqrt(4 * math.pi * (0.5**2 + 0.8**2 + 1.1**2) / max(on_shells, 1))
    splats = Splats(
        means=torch.cat([directions * radii[:, None], in_box]),
        scales=(0.5 * normal(count, 3)).exp() * 0.6 * spacing * torch.tensor([1, 1, 0.3]),
        quats=normal(count, 4),
        opacities=torch.sigmoid(2 * normal(count)),
        values=torch.rand(count, 3, generator=generator),
    )
    matrix = torch.eye(4)
    matrix[2, 3] = 3.6
    camera = Camera(world_to_camera=matrix, focal=(555.56, 555.56), centre=(200.0, 200.0), width=400, height=400)
    return Load("shells", splats, 0.05 * normal(count, 15, 3), camera)


def read(path: Path, seed: int) -> Load:
    """The scene of a file: a PLY as `nfc-gs export` writes it, or the npz of gsplat's tests.

    Raises:
        UserError: the file is missing, or neither of the two.
    """
    if path.suffix.lower() == ".ply":
        return _from_ply(path)
    if path.suffix.lower() == ".npz":
        return _from_points(path, seed)
    raise LoadError(f"{path}: neither a .ply as `nfc-gs export` writes it nor an .npz as gsplat's tests read it")


def _from_ply(path: Path) -> Load:
    """The trained splats, seen from outside along their z-axis: a PLY knows no camera."""
    model = load_ply(path, Cpu())
    gaussians = model.gaussians
    harmonics = torch.zeros(len(gaussians), 15, 3)
    harmonics[:, : gaussians.harmonics.shape[1]] = gaussians.harmonics
    splats = Splats(
        means=gaussians.means,
        scales=gaussians.log_scales.exp(),
        quats=gaussians.quats,
        opacities=model.opacity_code.values(gaussians.opacity_logits, unit=True),
        values=model.code.values(gaussians.colour_logits, unit=False).clamp(0, 1),
    )
    middle = splats.means.median(0).values
    matrix = torch.eye(4)
    matrix[:3, 3] = -middle
    matrix[2, 3] += DISTANCE * float((splats.means - middle).norm(dim=1).median())
    camera = Camera(world_to_camera=matrix, focal=(480.0, 480.0), centre=(200.0, 200.0), width=400, height=400)
    return Load(path.name, splats, harmonics, camera)


def _from_points(path: Path, seed: int) -> Load:
    """The points near the origin, with the sizes and opacities that gsplat's tests draw for them (1e-4 to 0.02; any)."""
    try:
        with np.load(path) as file:
            missing = [name for name in ARRAYS if name not in file]
            if missing:
                raise LoadError(f"{path}: has no array {missing[0]!r}; gsplat's test scene has {', '.join(ARRAYS)}")
            arrays = {name: file[name] for name in ARRAYS}
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, zipfile.BadZipFile) as error:
        raise LoadError(f"{path}: is no npz file: {str(error).splitlines()[0]}") from None
    means, colours = torch.from_numpy(arrays["means3d"]).float(), torch.from_numpy(arrays["colors"]).float() / 255
    near = (means.abs() <= HULL).all(1)
    count, generator = int(near.sum()), _generator(seed)
    splats = Splats(
        means=means[near],
        scales=1e-4 + (0.02 - 1e-4) * torch.rand(count, 3, generator=generator),
        quats=torch.randn(count, 4, generator=generator),
        opacities=torch.rand(count, generator=generator),
        values=colours[near],
    )
    matrix = arrays["Ks"][0]
    camera = Camera(
        world_to_camera=torch.from_numpy(arrays["viewmats"][0]).float(),
        focal=(float(matrix[0, 0]), float(matrix[1, 1])),
        centre=(float(matrix[0, 2]), float(matrix[1, 2])),
        width=int(arrays["width"]),
        height=int(arrays["height"]),
    )
    return Load(path.name, splats, 0.05 * torch.randn(count, 15, 3, generator=generator), camera)


def make_trainer(
    load: Load, method: str, rasterizer: Rasterizer, seed: int, settings: Mapping[str, Any] = NOTHING
) -> Trainer:
    """A trainer on one random photograph from the load's camera, as often as a batch wants, past the harmonics' schedule.

    The population does not change while it is timed. `settings` lie over everything, as in a file.
    """
    common: dict[str, Any] = {
        "name": "bench",
        "seed": seed,
        "steps": STEPS,
        "dataset": {"kind": "toy"},
        "rasterizer": {"kind": "cpu"},
        "strategy": {"kind": "growth", "cap_max": len(load), "every": STEPS},
        "losses": {"l1": {"weight": 0.8}, "dssim": {"weight": 0.2}},
        "schedule": {"sh_degree": 3, "sh_every": 1},
        "callbacks": {},
    }
    experiment = validate(Experiment, merge(merge(common, dict(METHODS[method])), dict(settings)), "bench")
    camera = load.camera
    pixels = np.random.default_rng(seed).integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
    view = View(name="random", camera=camera, read=lambda: Photograph(rgb=pixels))
    bounds = torch.stack([load.splats.means.amin(0), load.splats.means.amax(0)])
    device = rasterizer.device
    with torch.no_grad():
        # On the device from here on: finding the logits of many splats takes a CPU minutes.
        splats = Splats(**{name: getattr(load.splats, name).to(device) for name in Splats.__dataclass_fields__})
        gaussians = Gaussians(
            means=splats.means,
            log_scales=splats.scales.log(),
            quats=splats.quats,
            colour_logits=experiment.code.logits(splats.values.clamp(0.01, 0.99), unit=False),
            opacity_logits=experiment.opacity_code.logits(splats.opacities.clamp(0.01, 0.99), unit=True),
            harmonics=load.harmonics.to(device),
            motion=torch.zeros(len(load), experiment.deformation.width, device=device),
        )
    model = SplatModel(
        gaussians=gaussians,
        code=experiment.code,
        opacity_code=experiment.opacity_code,
        rasterizer=rasterizer,
        field=experiment.deformation.init(bounds, 2, _generator(seed)),
        degree=3,
    )
    trainer = Trainer(experiment, Scene(train=(view,) * experiment.batch, test=(view,), points=None, extent=1.0), model)
    trainer.done = 3
    return trainer
