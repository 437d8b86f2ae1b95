"""gsplat where it really draws, else the CPU; and the reason, for whoever wonders."""

import functools
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nfc_gs.config import UserError, spec
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Splats
from nfc_gs.core.rendering import Rendering
from nfc_gs.rasterizers.base import Rasterizer
from nfc_gs.rasterizers.cpu import Cpu
from nfc_gs.rasterizers.gsplat import Gsplat


class Choice(NamedTuple):
    """A rasterizer, and why it was taken, in words."""

    rasterizer: Rasterizer
    reason: str


@functools.cache
def choose() -> Choice:
    """The rasterizer for this machine; asked once a process.

    That gsplat can be imported says little: it compiles its kernels at the first call. So one splat is drawn with it,
    which may take minutes the first time.
    """
    if not torch.cuda.is_available():
        return Choice(Cpu(), "cpu: torch sees no CUDA device")
    try:
        alpha = _trial(Gsplat())
    # Whatever goes wrong while compiling and starting foreign code, the CPU can draw, and the reason is told.
    except Exception as error:
        if isinstance(error, UserError):
            return Choice(Cpu(), f"cpu: {error}")
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Choice(Cpu(), f"cpu: gsplat failed on {torch.cuda.get_device_name()}: {line}")
    if not 0.85 < alpha < 0.95:
        return Choice(
            Cpu(), f"cpu: gsplat drew a splat of opacity 0.9 with {alpha:.3f} on {torch.cuda.get_device_name()}"
        )
    return Choice(Gsplat(), f"gsplat: drew one splat on {torch.cuda.get_device_name()}")


def _trial(rasterizer: Rasterizer) -> float:
    """The alpha in the middle of one round splat of opacity 0.9."""
    tensors = {"means": [[0.0, 0, 2]], "scales": [[1.0, 1, 1]], "quats": [[1.0, 0, 0, 0]], "opacities": [0.9]}
    splats = Splats(
        **{name: torch.tensor(numbers, device=rasterizer.device) for name, numbers in tensors.items()},
        values=torch.ones(1, 3, device=rasterizer.device),
    )
    camera = Camera(
        world_to_camera=torch.eye(4, device=rasterizer.device),
        focal=(16.0, 16.0),
        centre=(8.0, 8.0),
        width=16,
        height=16,
    )
    return float(rasterizer(splats, camera, torch.zeros(3, device=rasterizer.device)).alpha[8, 8])


@spec
class Auto(Rasterizer):
    """What `choose` chooses."""

    @property
    def device(self) -> str:
        """Where the chosen one's tensors live."""
        return choose().rasterizer.device

    def __call__(
        self,
        splats: Splats,
        camera: Camera,
        background: Float[Tensor, " C"],
        *,
        depth: bool = False,
        absgrad: bool = False,
    ) -> Rendering:
        """See `Rasterizer`."""
        return choose().rasterizer(splats, camera, background, depth=depth, absgrad=absgrad)


Spec = Auto
