"""A training loop with nothing around it, for our own steps to be measured against: gsplat's functions, losses, Adam.

What gsplat's example trainer does in a step, without its data loader, logs and viewer, written from the documented
interface of gsplat 1.5.3. The functions are handed in, because gsplat stays behind its rasterizer here; and so the loop can
be run without a CUDA device, over a stand-in.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from nfc_gs.benchmarks.loads import Load
from nfc_gs.codes.identity import SH_C0
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Gaussians
from nfc_gs.core.rendering import SCREEN_BLUR
from nfc_gs.core.ssim import mean_ssim
from nfc_gs.training.experiment import OptimizerSettings

# The rates of 3DGS (Kerbl et al. 2023) for a scene of radius one; that of the means falls to a hundredth.
RATES = {
    "means": 1.6e-4,
    "scales": 5e-3,
    "quats": 1e-3,
    "opacities": 5e-2,
    "sh0": 2.5e-3,
    "shN": 2.5e-3 / 20,
}
MEANS_FINAL = 0.01
EPSILON = 1e-15
# The weights of 3DGS's losses, which are our regression's too.
L1, DSSIM = 0.8, 0.2


@runtime_checkable
class GsplatStrategy(Protocol):
    """What is used of gsplat's `DefaultStrategy`."""

    def check_sanity(self, params: Any, optimizers: Any) -> None:
        """Refuses parameters that it could not duplicate, split and prune."""

    def initialize_state(self, scene_scale: float) -> dict[str, Any]:
        """What it remembers from step to step."""

    def step_pre_backward(self, params: Any, optimizers: Any, state: Any, step: int, info: Any) -> None:
        """Called before the backward pass."""

    def step_post_backward(self, params: Any, optimizers: Any, state: Any, step: int, info: Any, packed: bool) -> None:
        """Called after the optimizers' steps."""


@dataclass(frozen=True)
class Shot:
    """A camera and what it photographed: 8 bits, transparent pixels composited over the background, in main memory."""

    camera: Camera
    rgb: UInt8[Tensor, "H W 3"]


class MinimalLoop:
    """Steps of regression, one photograph each.

    Args:
        params: the splats to begin with, by gsplat's names: `means`, `scales` (logarithms), `quats`, `opacities` (logits),
            `sh0` [N 1 3] and `shN` [N K 3].
        shots: what is looked at, all once an epoch in an order drawn from `seed`; as in a data loader, a photograph lies in
            page-locked memory and is copied in each step.
        rasterization: `gsplat.rasterization`, or what has its signature.
        strategy: gsplat's.
        device: where the tensors live.
        steps: the length of the schedule.
        rates: Adam's, by `params`' names; that of the means is times `scene_scale`, and falls to a hundredth.
        sh_every: the steps after which the next degree of the harmonics joins; 0: all are used from the start.
        background: the colour behind everything, [3].
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        shots: Sequence[Shot],
        rasterization: Callable[..., tuple[Tensor, Tensor, dict[str, Any]]],
        strategy: GsplatStrategy,
        device: str,
        steps: int,
        *,
        rates: Mapping[str, float] = RATES,
        scene_scale: float = 1.0,
        sh_every: int = 0,
        background: Float[Tensor, "3"] | None = None,
        seed: int = 0,
    ) -> None:
        self.rasterization, self.strategy, self.device, self.sh_every = rasterization, strategy, device, sh_every
        self.cameras = [shot.camera.to(device) for shot in shots]
        pinned = device != "cpu"
        self.photographs = [shot.rgb.pin_memory() if pinned else shot.rgb for shot in shots]
        self.intrinsics = [_intrinsics(shot.camera).to(device) for shot in shots]
        self.background = None if background is None else background.to(device)[None]
        self.params = nn.ParameterDict({name: value.detach().to(device).clone() for name, value in params.items()})
        self.rates = {name: rate * (scene_scale if name == "means" else 1) for name, rate in rates.items()}
        self.steps = steps
        self._begin()
        strategy.check_sanity(self.params, self.optimizers)
        self.state = strategy.initialize_state(scene_scale=scene_scale)
        self.generator, self.done = np.random.default_rng(seed), 0
        self.order: list[int] = []

    def _begin(self) -> None:
        """Adam for the parameters as they are now."""
        self.optimizers = {
            name: torch.optim.Adam([{"params": [self.params[name]], "lr": rate}], eps=EPSILON, fused=True)
            for name, rate in self.rates.items()
        }
        decay = MEANS_FINAL ** (1 / self.steps)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizers["means"], decay)

    def save(self, path: Path, **more: Any) -> None:
        """All that changes from step to step, and what else is to be remembered; under a temporary name first."""
        partial = path.with_name(path.name + ".partial")
        content = {
            "params": {name: value.detach() for name, value in self.params.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "schedule": self.schedule.state_dict(),
            "strategy": self.state,
            "views": (self.generator.bit_generator.state, self.order),
            "random": torch.get_rng_state(),
            "random on the device": torch.cuda.get_rng_state() if self.device == "cuda" else None,
            "done": self.done,
            "more": more,
        }
        torch.save(content, partial)
        os.replace(partial, path)

    def restore(self, path: Path) -> dict[str, Any]:
        """The inverse of `save`, of a file of our own; returns what else was remembered."""
        content = torch.load(path, map_location="cpu", weights_only=False)
        self.params = nn.ParameterDict({name: value.to(self.device) for name, value in content["params"].items()})
        self._begin()
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(content["optimizers"][name])
        self.schedule.load_state_dict(content["schedule"])
        self.state = {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in content["strategy"].items()
        }
        self.generator.bit_generator.state, self.order = content["views"]
        torch.set_rng_state(content["random"])
        if self.device == "cuda":
            torch.cuda.set_rng_state(content["random on the device"])
        self.done = content["done"]
        more: dict[str, Any] = content["more"]
        return more

    def draw(self, camera: Camera, intrinsics: Float[Tensor, "3 3"]) -> tuple[Float[Tensor, "H W 3"], dict[str, Any]]:
        """What a camera on the device sees, and gsplat's notes."""
        params = self.params
        held = math.isqrt(1 + params["shN"].shape[1]) - 1
        degree = held if self.sh_every == 0 else min(held, self.done // self.sh_every)
        drawn, _, info = self.rasterization(
            means=params["means"],
            quats=params["quats"],
            scales=params["scales"].exp(),
            opacities=params["opacities"].sigmoid(),
            colors=torch.cat([params["sh0"], params["shN"]], 1),
            viewmats=camera.world_to_camera[None],
            Ks=intrinsics[None],
            width=camera.width,
            height=camera.height,
            near_plane=camera.near,
            eps2d=SCREEN_BLUR,
            sh_degree=degree,
            packed=False,
            backgrounds=self.background,
        )
        return drawn[0], info

    def step(self) -> Float[Tensor, ""]:
        """One step; returns the loss before it."""
        params, step = self.params, self.done
        if not self.order:
            self.order = self.generator.permutation(len(self.cameras)).tolist()
        number = self.order.pop()
        target = self.photographs[number].to(self.device, non_blocking=True) / 255.0
        rgb, info = self.draw(self.cameras[number], self.intrinsics[number])
        self.strategy.step_pre_backward(params, self.optimizers, self.state, step, info)
        loss = L1 * (rgb - target).abs().mean() + DSSIM * (1 - mean_ssim(rgb, target))
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.strategy.step_post_backward(params, self.optimizers, self.state, step, info, packed=False)
        self.done += 1
        return loss.detach()

    @torch.no_grad()
    def pictures(self, cameras: Sequence[Camera]) -> Iterator[Float[Tensor, "H W 3"]]:
        """What they see."""
        for camera in cameras:
            yield self.draw(camera.to(self.device), _intrinsics(camera).to(self.device))[0]


def _intrinsics(camera: Camera) -> Float[Tensor, "3 3"]:
    (fx, fy), (cx, cy) = camera.focal, camera.centre
    return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def params_of_load(load: Load) -> dict[str, Tensor]:
    """A load's splats; colours and opacities are kept within 0.01 and 0.99, as `make_trainer` keeps them."""
    splats = load.splats
    return {
        "means": splats.means,
        "scales": splats.scales.log(),
        "quats": splats.quats,
        "opacities": splats.opacities.clamp(0.01, 0.99).logit(),
        "sh0": ((splats.values.clamp(0.01, 0.99) - 0.5) / SH_C0)[:, None],
        "shN": load.harmonics,
    }


def params_of_gaussians(gaussians: Gaussians) -> dict[str, Tensor]:
    """Gaussians whose codes are `identity`, which are 3DGS's own parameters."""
    return {
        "means": gaussians.means,
        "scales": gaussians.log_scales,
        "quats": gaussians.quats,
        "opacities": gaussians.opacity_logits[:, 0],
        "sh0": gaussians.colour_logits.mT,
        "shN": gaussians.harmonics,
    }


def rates_of(settings: OptimizerSettings) -> dict[str, float]:
    """Our settings' rates by gsplat's names."""
    return {
        "means": settings.means,
        "scales": settings.log_scales,
        "quats": settings.quats,
        "opacities": settings.opacity_logits,
        "sh0": settings.colour_logits,
        "shN": settings.harmonics,
    }


def paired(
    works: Mapping[str, Callable[[], object]], repeats: int, block: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Milliseconds a call of each work, `repeats` times, so that ratios are of the same moment.

    The works take turns, each called `block` times in a row; every other round goes backwards, so that none is always the
    first. The clock is read around a block only: a GPU is not made to wait between the calls in it.
    """
    passed: dict[str, list[float]] = {name: [] for name in works}
    for number in range(repeats):
        for name in list(works)[:: 1 if number % 2 == 0 else -1]:
            began = clock()
            for _ in range(block):
                works[name]()
            passed[name].append(1e3 * (clock() - began) / block)
    return passed
