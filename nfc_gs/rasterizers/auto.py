"""gsplat where it really draws, else the CPU; and the reason, for whoever wonders."""

import functools
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
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


def diagnose() -> list[str]:
    """What this machine has for drawing, what was chosen and why, and how to mend what is missing; a line each."""
    built = torch.version.cuda
    lines = [f"torch {torch.__version__}, built for {f'CUDA {built}' if built else 'the CPU only'}"]
    compiler = _nvcc()
    lines.append(f"nvcc {compiler}" if compiler else "nvcc: not found")
    try:
        lines.append(f"gsplat {version('gsplat')}")
    except PackageNotFoundError:
        lines.append("gsplat: not installed")
    lines.append(f"chosen: {choose().reason}")
    if isinstance(choose().rasterizer, Gsplat):
        return lines
    if built is None:
        lines.append("mend: to use an NVIDIA GPU, install torch's CUDA build (https://pytorch.org/get-started/locally)")
    elif not torch.cuda.is_available():
        lines.append("mend: torch is built for CUDA but sees no device: look at `nvidia-smi` and CUDA_VISIBLE_DEVICES")
    elif compiler is None:
        lines.append(f"mend: gsplat compiles at its first use: install nvcc {built} (environment.yml brings it)")
    elif compiler.split(".")[:2] != built.split(".")[:2]:
        lines.append(f"mend: nvcc is {compiler} but torch was built for CUDA {built}: make the two equal")
    else:
        lines.append(
            "mend: pip install -c constraints.txt 'nfc-gs[cuda]', then run this again: it compiles for minutes"
        )
    return lines


def _nvcc() -> str | None:
    """The version of the CUDA compiler on the path, as 13.0."""
    try:
        said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"release (\d+\.\d+)", said)
    return found[1] if found else None


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
        weights: bool = False,
    ) -> Rendering:
        """See `Rasterizer`."""
        return choose().rasterizer(splats, camera, background, depth=depth, absgrad=absgrad, weights=weights)


Spec = Auto
