"""gsplat's CUDA kernels (Ye et al., JMLR 2025) behind our interface.

Written against the documented interface of gsplat 1.5.3 and its sources. Its tests run only on a machine with a CUDA
device; where they have not been run, take it as unproven.
"""

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from jaxtyping import Float
from torch import Tensor

from nfc_gs.config import UserError, spec
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Splats
from nfc_gs.core.rendering import SCREEN_BLUR, Rendering
from nfc_gs.rasterizers.base import Rasterizer

# The name under which gsplat has torch compile its kernels, and keep them.
KERNELS = "gsplat_cuda"
# What one run of the CUDA compiler is reckoned to take, in bytes.
COMPILER_BYTES = 3e9


class NoGpuError(UserError):
    """gsplat cannot draw on this machine."""


def compile_jobs() -> int:
    """How many of gsplat's files are compiled at a time: MAX_JOBS, or else what cores and free memory allow.

    gsplat itself takes ten, which a laptop's memory does not hold.
    """
    if os.environ.get("MAX_JOBS", "").isdecimal():
        return int(os.environ["MAX_JOBS"])
    return max(1, min(os.cpu_count() or 1, int(psutil.virtual_memory().available / COMPILER_BYTES)))


def compile_kernels() -> Path:
    """Compiles gsplat's kernels, unless that is done, and returns the file they are in; it takes minutes.

    gsplat does so at its first use, but begins anew if it was broken off; here it goes on. It compiles for the
    architectures in TORCH_CUDA_ARCH_LIST, or for the device that torch sees; with another list everything is compiled
    again.

    Raises:
        NoGpuError: in one line, when there is no compiler, or it fails; VERBOSE=1 has all that it says printed.
    """
    try:
        with _many_jobs(compile_jobs()), _leftovers_kept():
            from gsplat.cuda import _backend
    # Whatever goes wrong while foreign code is compiled: torch raises a RuntimeError that quotes the compiler.
    except Exception as error:
        # gsplat takes every OSError, even that there is no toolkit, for a sign that all is compiled, and then finds nothing.
        hidden = (
            error.__context__ if isinstance(error, ImportError) and isinstance(error.__context__, OSError) else error
        )
        said = [line.strip() for line in str(hidden).splitlines() if line.strip()] or [type(hidden).__name__]
        line = next((line for line in said if "error" in line.lower() and "building extension" not in line), said[0])
        raise NoGpuError(f"rasterizer gsplat: its kernels cannot be compiled: {line}") from error
    if _backend._C is None:
        raise NoGpuError(
            f"rasterizer gsplat: found no CUDA compiler; install nvcc {torch.version.cuda}, or name its folder in CUDA_HOME"
        )
    return Path(_backend._C.__file__)


@contextmanager
def _many_jobs(count: int) -> Iterator[None]:
    before = os.environ.get("MAX_JOBS")
    os.environ["MAX_JOBS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MAX_JOBS"]
        else:
            os.environ["MAX_JOBS"] = before


@contextmanager
def _leftovers_kept() -> Iterator[None]:
    """gsplat deletes what a compilation that was broken off has left, which ninja would go on from."""
    original = shutil.rmtree

    @functools.wraps(original)
    def rmtree(path: Any, *rest: Any, **settings: Any) -> None:
        if Path(path).name != KERNELS:
            original(path, *rest, **settings)

    shutil.rmtree = rmtree  # type: ignore[assignment]
    try:
        yield
    finally:
        shutil.rmtree = original  # type: ignore[assignment]


@functools.cache
def _rasterization() -> Callable[..., tuple[Tensor, Tensor, dict]]:
    """gsplat's one function, once it is known that there is a device for it, and kernels."""
    if not torch.cuda.is_available():
        raise NoGpuError("rasterizer gsplat: torch sees no CUDA device; use rasterizer.kind=cpu")
    try:
        from gsplat import rasterization
    except ImportError as error:
        raise NoGpuError(f"rasterizer gsplat: cannot be imported ({error}); pip install 'nfc-gs[cuda]'") from None
    compile_kernels()
    return rasterization


@spec
class Gsplat(Rasterizer):
    """Draws on the CUDA device; float32. Unlike `cpu`, it does not look for splats that are not finite."""

    @property
    def device(self) -> str:
        """The CUDA device.

        Raises:
            NoGpuError: without one, or without gsplat.
        """
        _rasterization()
        return "cuda"

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
        """See `Rasterizer`.

        Raises:
            NoGpuError: without a CUDA device, or without gsplat.
        """
        channels, alpha, meta = _draw(splats, camera, splats.values, background, depth, absgrad)
        projected = meta["means2d"]
        means2d = projected[0]
        if projected.requires_grad:
            means2d.retain_grad()
            # gsplat's own tensor [1 N 2] comes before ours in the graph, so its gradient is passed on by hand.
            projected.register_hook(functools.partial(_accumulate, means2d))

        def gather(picture: Float[Tensor, "H W P"]) -> tuple[Float[Tensor, "N P"], Float[Tensor, " N"]]:
            # The gradient of a picture by its splats' values is their weights.
            incoming = torch.cat([picture, torch.ones_like(picture[..., :1])], -1).detach()
            still = Splats(**{name: getattr(splats, name).detach() for name in _GEOMETRY}, values=splats.values)
            with torch.enable_grad():
                values = incoming.new_zeros(len(splats), incoming.shape[-1], requires_grad=True)
                drawn, _, _ = _draw(still, camera, values, values.new_zeros(values.shape[1]), False, False)
                (sums,) = torch.autograd.grad(drawn, values, incoming)
            return sums[:, :-1], sums[:, -1]

        def absolute() -> Float[Tensor, "N 2"]:
            return projected.absgrad[0]

        def weigh() -> Float[Tensor, " N"]:
            return gather(channels.new_zeros(camera.height, camera.width, 1))[1]

        return Rendering(
            channels=channels[..., : splats.values.shape[1]],
            alpha=alpha,
            depth=channels[..., -1] if depth else None,
            means2d=means2d,
            radii=meta["radii"][0],
            gather=gather,
            absgrad=absolute if absgrad else None,
            weights=weigh if weights else None,
        )


_GEOMETRY = ("means", "scales", "quats", "opacities")


def _draw(
    splats: Splats, camera: Camera, values: Tensor, background: Tensor, depth: bool, absgrad: bool
) -> tuple[Float[Tensor, "H W _"], Float[Tensor, "H W"], dict]:
    """The picture (depth last, if asked for), its alpha, and gsplat's notes."""
    (fx, fy), (cx, cy) = camera.focal, camera.centre
    intrinsics = splats.means.new_tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    channels, alphas, meta = _rasterization()(
        means=splats.means,
        quats=splats.quats,
        scales=splats.scales,
        opacities=splats.opacities,
        colors=values,
        viewmats=camera.world_to_camera.to(splats.means)[None],
        Ks=intrinsics[None],
        width=camera.width,
        height=camera.height,
        near_plane=camera.near,
        eps2d=SCREEN_BLUR,
        sh_degree=None,
        packed=False,
        backgrounds=background.to(splats.means)[None],
        render_mode="RGB+D" if depth else "RGB",
        absgrad=absgrad,
    )
    return channels[0], alphas[0, ..., 0], meta


def _accumulate(means2d: Tensor, gradient: Tensor) -> None:
    means2d.grad = gradient[0].clone() if means2d.grad is None else means2d.grad + gradient[0]


Spec = Gsplat
