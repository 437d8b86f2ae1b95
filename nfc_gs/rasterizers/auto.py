"""gsplat where it really draws, else the CPU; and the reason, for whoever wonders."""

import functools
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
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
from nfc_gs.rasterizers.gsplat import (
    Gsplat,
    NoGpuError,
    compile_jobs,
    compile_kernels,
    find_compiler,
    fits,
    missing_device,
)


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
    absent = missing_device()
    if absent is not None:
        return Choice(Cpu(), f"cpu: {absent}")
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


def diagnose() -> Iterator[str]:
    """What this machine has for drawing, what was chosen and why, and how to mend what is missing; a line each.

    Where there is a CUDA device, gsplat's kernels are compiled between two lines, if they are not yet.
    """
    built = torch.version.cuda
    yield f"torch {torch.__version__}, built for {f'CUDA {built}' if built else 'the CPU only'}"
    compiler = find_compiler()
    yield f"nvcc {compiler.version} ({compiler.path})" if compiler else "nvcc: not found"
    try:
        yield f"gsplat {version('gsplat')}"
    except PackageNotFoundError:
        yield "gsplat: not installed"
    ninja = shutil.which("ninja")
    if built is not None:
        yield f"ninja: {ninja or 'not found'}"
        set_to = os.environ.get("MAX_JOBS")
        yield f"MAX_JOBS: {set_to or 'not set'}; {compile_jobs()} of gsplat's files are compiled at a time"
        yield f"TORCH_CUDA_ARCH_LIST: {os.environ.get('TORCH_CUDA_ARCH_LIST') or 'not set; compiled for what torch sees'}"
    choice = choose()
    yield f"chosen: {choice.reason}"
    unlisted = _unlisted()
    if unlisted is not None:
        yield f"mend: TORCH_CUDA_ARCH_LIST does not name this device's {unlisted}: add it, or unset the list"
    if isinstance(choice.rasterizer, Gsplat):
        return
    if built is None:
        yield "mend: to use an NVIDIA GPU, install torch's CUDA build (https://pytorch.org/get-started/locally)"
    elif not torch.cuda.is_available():
        yield "mend: torch is built for CUDA but sees no device: look at `nvidia-smi` and CUDA_VISIBLE_DEVICES"
    elif compiler is None:
        yield f"mend: gsplat compiles at its first use: install nvcc {built} (environment.yml brings it)"
    elif not fits(compiler):
        yield f"mend: nvcc is {compiler.version} but torch was built for CUDA {built}: make the two equal"
    elif ninja is None:
        yield "mend: gsplat compiles by ninja, which is not on the PATH: pip install ninja"
    else:
        yield "mend: pip install -c constraints.txt 'nfc-gs[cuda]', then run this again: it compiles for minutes"


def _unlisted() -> str | None:
    """The device's architecture, as 9.0, if it is certain that TORCH_CUDA_ARCH_LIST does not serve it."""
    names = [name for name in re.split(r"[ ;]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "")) if name]
    if not names or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    # Names such as Hopper are torch's to know, and PTX serves every later device.
    if any(re.fullmatch(r"\d+\.\d+[af]?", name) is None for name in names):
        return None
    numbers = [tuple(int(part) for part in name.rstrip("af").split(".")) for name in names]
    served = any(first == major and second <= minor for first, second in numbers)
    return None if served else f"{major}.{minor}"


def warm_gsplat() -> str:
    """Compiles gsplat's kernels where that can be done; in words, what came of it.

    With TORCH_CUDA_ARCH_LIST set it needs no device, so that an image or a shared home can be made ready without one.
    """
    if torch.version.cuda is None:
        return "not compiled: torch is built for the CPU only"
    if not torch.cuda.is_available() and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return (
            "not compiled: torch sees no CUDA device; set TORCH_CUDA_ARCH_LIST=9.0, say, to compile for one elsewhere"
        )
    began = time.perf_counter()
    try:
        file = compile_kernels()
    except NoGpuError as error:
        return f"not compiled: {error}"
    return f"in {file}, {time.perf_counter() - began:.0f} s"


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

    @property
    def several(self) -> bool:
        """Whether the chosen one draws several cameras in one pass."""
        return choose().rasterizer.several

    def shade(
        self,
        base: Float[Tensor, "N 3"],
        harmonics: Float[Tensor, "N L 3"],
        means: Float[Tensor, "N 3"],
        position: Float[Tensor, "3"],
        degree: int,
    ) -> Float[Tensor, "N 3"]:
        """See `Rasterizer`."""
        return choose().rasterizer.shade(base, harmonics, means, position, degree)

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

    def draw(
        self,
        splats: Sequence[Splats],
        cameras: Sequence[Camera],
        backgrounds: Sequence[Float[Tensor, " C"]],
        *,
        depth: bool = False,
        absgrad: bool = False,
        weights: bool = False,
    ) -> list[Rendering]:
        """See `Rasterizer`."""
        return choose().rasterizer.draw(splats, cameras, backgrounds, depth=depth, absgrad=absgrad, weights=weights)


Spec = Auto
