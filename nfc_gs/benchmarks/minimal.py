"""A training loop with nothing around it, for our own steps to be measured against: gsplat's functions, losses, Adam.

What gsplat's example trainer does in a step, without its data loader, logs and viewer, written from the documented
interface of gsplat 1.5.3. The functions are handed in, because gsplat stays behind its rasterizer here; and so the loop can
be run without a CUDA device, over a stand-in.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from nfc_gs.benchmarks.loads import Load
from nfc_gs.core.rendering import SCREEN_BLUR
from nfc_gs.core.ssim import mean_ssim

# The constant harmonic, in whose units 3DGS keeps a colour.
SH_C0 = 0.28209479177387814
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
SH_DEGREE = 3


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


class MinimalLoop:
    """Steps of regression on one photograph, from the splats of a load.

    Args:
        load: where it begins; its camera takes the photograph. Colours and opacities are kept within 0.01 and 0.99, as
            `make_trainer` keeps them.
        photograph: what is to be seen; as in a data loader, it lies in main memory and is copied in each step.
        rasterization: `gsplat.rasterization`, or what has its signature.
        strategy: gsplat's, set so that the population does not change while it is timed.
        device: where the tensors live.
        steps: the length of the schedule.
    """

    def __init__(
        self,
        load: Load,
        photograph: UInt8[np.ndarray, "H W 3"],
        rasterization: Callable[..., tuple[Tensor, Tensor, dict[str, Any]]],
        strategy: GsplatStrategy,
        device: str,
        steps: int,
    ) -> None:
        self.rasterization, self.strategy = rasterization, strategy
        camera, splats = load.camera, load.splats
        self.width, self.height, self.near = camera.width, camera.height, camera.near
        (fx, fy), (cx, cy) = camera.focal, camera.centre
        self.intrinsics = torch.tensor([[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]], device=device)
        self.world_to_camera = camera.world_to_camera.to(device)[None]
        self.photograph = torch.from_numpy(photograph)
        tensors = {
            "means": splats.means,
            "scales": splats.scales.log(),
            "quats": splats.quats,
            "opacities": splats.opacities.clamp(0.01, 0.99).logit(),
            "sh0": ((splats.values.clamp(0.01, 0.99) - 0.5) / SH_C0)[:, None],
            "shN": load.harmonics,
        }
        self.params = nn.ParameterDict({name: value.to(device).clone() for name, value in tensors.items()})
        self.optimizers = {
            name: torch.optim.Adam([{"params": [self.params[name]], "lr": rate}], eps=EPSILON, fused=True)
            for name, rate in RATES.items()
        }
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizers["means"], MEANS_FINAL ** (1 / steps))
        strategy.check_sanity(self.params, self.optimizers)
        self.state = strategy.initialize_state(scene_scale=1.0)
        self.done = 0

    def step(self) -> Float[Tensor, ""]:
        """One step; returns the loss before it."""
        params, step = self.params, self.done
        target = self.photograph.to(params["means"].device) / 255.0
        drawn, _, info = self.rasterization(
            means=params["means"],
            quats=params["quats"],
            scales=params["scales"].exp(),
            opacities=params["opacities"].sigmoid(),
            colors=torch.cat([params["sh0"], params["shN"]], 1),
            viewmats=self.world_to_camera,
            Ks=self.intrinsics,
            width=self.width,
            height=self.height,
            near_plane=self.near,
            eps2d=SCREEN_BLUR,
            sh_degree=SH_DEGREE,
            packed=False,
        )
        rgb = drawn[0]
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
