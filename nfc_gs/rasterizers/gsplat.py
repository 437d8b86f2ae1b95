"""gsplat's CUDA kernels (Ye et al., JMLR 2025) behind our interface.

Written against the documented interface of gsplat 1.5.3 and its sources. Its tests run only on a machine with a CUDA
device; `benchmarks/gpu_h200.md` says where they passed.
"""

import fcntl
import functools
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfc_gs.codes.identity import SH_C0
from nfc_gs.config import UserError, spec
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Splats
from nfc_gs.core.rendering import SCREEN_BLUR, Rendering
from nfc_gs.rasterizers.base import Rasterizer

# The name under which gsplat has torch compile its kernels, and keep them.
KERNELS = "gsplat_cuda"
# What one run of the CUDA compiler is reckoned to take, in bytes.
COMPILER_BYTES = 3e9
# gsplat's kernels draw no more at a time.
MOST_CHANNELS = 513


class NoGpuError(UserError):
    """gsplat cannot draw on this machine."""


class Compiler(NamedTuple):
    """The CUDA compiler: its version, as 13.0, and where it is."""

    version: str
    path: Path


def find_compiler() -> Compiler | None:
    """The compiler that torch takes: in CUDA_HOME, on the path, or in its usual folder."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    on_path = shutil.which("nvcc")
    path = Path(home) / "bin/nvcc" if home else Path(on_path) if on_path else Path("/usr/local/cuda/bin/nvcc")
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"release (\d+\.\d+)", said)
    return Compiler(found[1], path) if found else None


def fits(compiler: Compiler) -> bool:
    """Whether it is of torch's major version of CUDA; another minor one does."""
    built = torch.version.cuda
    return built is None or compiler.version.split(".")[0] == built.split(".")[0]


def missing_device() -> str | None:
    """That torch sees no CUDA device, and what it says of it (a driver that is too old, say), in a line; None if it sees one."""
    with warnings.catch_warnings():
        # What torch warns of here, with its source lines, is what is told.
        warnings.simplefilter("ignore")
        if torch.cuda.is_available():
            return None
    try:
        torch.cuda.init()
    # An AssertionError is that of torch's builds for the CPU.
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        if torch.version.cuda is not None and reason:
            return f"torch sees no CUDA device ({reason})"
    return "torch sees no CUDA device"


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
        with _one_at_a_time(), _many_jobs(compile_jobs()), _leftovers_kept():
            from gsplat.cuda import _backend
    # Whatever goes wrong while foreign code is compiled: torch raises a RuntimeError that quotes the compiler.
    except Exception as error:
        # gsplat takes every OSError, even that there is no toolkit, for a sign that all is compiled, and then finds nothing.
        hidden = (
            error.__context__ if isinstance(error, ImportError) and isinstance(error.__context__, OSError) else error
        )
        said = [line.strip() for line in str(hidden).splitlines() if line.strip()] or [type(hidden).__name__]
        line = next((line for line in said if "error" in line.lower() and "building extension" not in line), said[0])
        compiler, damaged = find_compiler(), re.search(rf"(\S+)/{KERNELS}\.so: ", line)
        if compiler is not None and not fits(compiler):
            line = f"nvcc is {compiler.version} but torch was built for CUDA {torch.version.cuda}: make the two equal ({line})"
        elif damaged is not None:
            line += f"; delete {damaged[1]} and start again"
        raise NoGpuError(f"rasterizer gsplat: its kernels cannot be compiled: {line}") from error
    if _backend._C is None:
        raise NoGpuError(
            f"rasterizer gsplat: found no CUDA compiler; install nvcc {torch.version.cuda}, or name its folder in CUDA_HOME"
        )
    return Path(_backend._C.__file__)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Processes of one machine compile in turn: gsplat takes another's lock away, and both would write the same files."""
    with (Path(tempfile.gettempdir()) / f"nfc-gs-{KERNELS}-{os.getuid()}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # Given back when the file is closed, and by the system if the process dies.
        yield


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
def _gsplat() -> Any:
    """gsplat's package, once it is known that there is a device for it, and kernels."""
    absent = missing_device()
    if absent is not None:
        raise NoGpuError(f"rasterizer gsplat: {absent}; use rasterizer.kind=cpu")
    try:
        import gsplat
    except ImportError as error:
        raise NoGpuError(f"rasterizer gsplat: cannot be imported ({error}); pip install 'nfc-gs[cuda]'") from None
    compile_kernels()
    # Convolutions of float32 with 10 bits, which torch allows itself, would take the digits that SSIM's variances consist of.
    torch.backends.cudnn.allow_tf32 = False
    return gsplat


@spec
class Gsplat(Rasterizer):
    """Draws on the CUDA device; float32. Unlike `cpu`, it does not look for splats that are not finite.

    `packed`: what is kept between forward and backward holds the splats that are seen alone; less memory where a picture
    shows a small part of the scene, and somewhat slower where it shows most of it. `antialiased`: a splat that the blur of
    the screen widens becomes fainter by as much (Mip-Splatting, Yu et al. 2024); a scene trained so must be drawn so, which
    most viewers of PLY files do not. `batched`: a step's views are drawn in one pass where they can be, which takes the memory
    of all of them at once; else one after the other.
    """

    packed: bool = False
    antialiased: bool = False
    batched: bool = True

    @property
    def several(self) -> bool:
        """As `batched` says."""
        return self.batched

    @property
    def device(self) -> str:
        """The CUDA device.

        Raises:
            NoGpuError: without one, or without gsplat.
        """
        _gsplat()
        return "cuda"

    def shade(
        self,
        base: Float[Tensor, "N 3"],
        harmonics: Float[Tensor, "N L 3"],
        means: Float[Tensor, "N 3"],
        position: Float[Tensor, "3"],
        degree: int,
    ) -> Float[Tensor, "N 3"]:
        """See `Rasterizer`; by gsplat's kernel, which takes the base colour as the harmonic of degree 0."""
        if degree == 0 or len(base) == 0:
            return base.relu()
        used = harmonics[:, : (degree + 1) ** 2 - 1]
        coefficients = torch.cat([(base / SH_C0)[:, None], used], 1)
        shaded: Tensor = _gsplat().spherical_harmonics(degree, means - position, coefficients)
        return shaded.relu()

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
        if len(splats) == 0:
            return _empty(splats, camera, background, depth, absgrad, weights)
        (rendering,) = self._together([splats], [camera], [background], depth, absgrad, weights)
        return rendering

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
        """See `Rasterizer`; in one pass where the splats differ in nothing but their values, and the pictures are of one size.

        Raises:
            NoGpuError: without a CUDA device, or without gsplat.
        """
        alike = {
            (*(id(getattr(mine, name)) for name in _GEOMETRY), camera.width, camera.height, camera.near)
            for mine, camera in zip(splats, cameras, strict=True)
        }
        if len(cameras) == 1 or len(alike) > 1 or not self.batched or len(splats[0]) == 0:
            return super().draw(splats, cameras, backgrounds, depth=depth, absgrad=absgrad, weights=weights)
        return self._together(splats, cameras, backgrounds, depth, absgrad, weights)

    def _together(
        self,
        splats: Sequence[Splats],
        cameras: Sequence[Camera],
        backgrounds: Sequence[Tensor],
        depth: bool,
        absgrad: bool,
        weights: bool,
    ) -> list[Rendering]:
        """A pass for one camera or several; there are splats, and their values alone differ."""
        size, number = len(splats[0]), len(cameras)
        values = splats[0].values if number == 1 else torch.stack([mine.values for mine in splats])
        behind = _pile(backgrounds)
        marks, count = None, values.shape[-1]
        if weights:
            # A channel in which every splat is zero: with a gradient of ones it changes no other gradient, and the splats'
            # own gradients in it are the sums of their weights.
            marks = values.new_zeros(*values.shape[:-1], 1, requires_grad=torch.is_grad_enabled())
            values = torch.cat([values, marks], -1)
            behind = torch.cat([behind, behind.new_zeros(number, 1)], 1)
        channels, alphas, meta = self._draw(splats[0], cameras, values, behind, depth, absgrad)
        if marks is not None:
            channels = _Marked.apply(channels, count)
        projected, places = meta["means2d"], None
        if self.packed:
            places = meta["gaussian_ids"] if number == 1 else meta["camera_ids"].long() * size + meta["gaussian_ids"]

        def whole(rows: Tensor) -> tuple[Tensor, ...]:
            """Of all splats, camera by camera, what gsplat has of those, or of the ones that are seen."""
            if places is not None:
                rows = rows.new_zeros(number * size, *rows.shape[1:]).index_copy_(0, places, rows)
                rows = rows.view(number, size, *rows.shape[1:])
            return rows.unbind(0)

        means2d = whole(projected.detach())
        if projected.requires_grad:

            def keep(gradient: Tensor) -> None:
                for mine, pull in zip(means2d, whole(gradient), strict=True):
                    _accumulate(mine, pull)

            projected.register_hook(keep)
        radii = whole(meta["radii"])

        def absolute(place: int) -> Float[Tensor, "N 2"]:
            return whole(projected.absgrad)[place]

        def weigh(place: int) -> Float[Tensor, " N"]:
            if marks is None or marks.grad is None:
                # No loss that acted has seen the picture.
                return self._gather(splats[place], cameras[place], alphas[place].detach()[..., None])[1]
            return marks.grad.view(number, size)[place]

        return [
            Rendering(
                channels=picture if not depth else picture[..., :-1],
                alpha=alpha,
                depth=picture[..., -1] if depth else None,
                means2d=means2d[place],
                radii=radii[place],
                gather=partial(self._gather, splats[place], cameras[place]),
                absgrad=partial(absolute, place) if absgrad else None,
                weights=partial(weigh, place) if weights else None,
            )
            for place, (picture, alpha) in enumerate(zip(_apart(channels), _apart(alphas), strict=True))
        ]

    def _gather(
        self, splats: Splats, camera: Camera, picture: Float[Tensor, "H W P"]
    ) -> tuple[Float[Tensor, "N P"], Float[Tensor, " N"]]:
        """See `Rendering`: the gradient of a picture by its splats' values is their weights."""
        incoming = torch.cat([picture, torch.ones_like(picture[..., :1])], -1).detach()
        still = Splats(**{name: getattr(splats, name).detach() for name in _GEOMETRY}, values=splats.values)
        with torch.enable_grad():
            values = incoming.new_zeros(len(splats), incoming.shape[-1], requires_grad=True)
            drawn, _, _ = self._draw(still, [camera], values, values.new_zeros(1, values.shape[1]), False, False)
            (sums,) = torch.autograd.grad(drawn, values, incoming[None])
        return sums[:, :-1], sums[:, -1]

    def _draw(
        self,
        splats: Splats,
        cameras: Sequence[Camera],
        values: Tensor,
        backgrounds: Float[Tensor, "B C"],
        depth: bool,
        absgrad: bool,
    ) -> tuple[Float[Tensor, "B H W _"], Float[Tensor, "B H W"], dict]:
        """The pictures (depth last, if asked for), their alphas, and gsplat's notes.

        The values are the cameras' own, [B N C], or the same for all, [N C].
        """
        backgrounds, camera = backgrounds.to(splats.means), cameras[0]
        matrices = [_intrinsics(*each.focal, *each.centre, splats.means.device) for each in cameras]
        channels, alphas, meta = _gsplat().rasterization(
            means=splats.means,
            quats=splats.quats,
            scales=splats.scales,
            opacities=splats.opacities,
            colors=values,
            viewmats=_pile([each.world_to_camera.to(splats.means) for each in cameras]),
            Ks=torch.cat(matrices) if len(matrices) > 1 else matrices[0],
            width=camera.width,
            height=camera.height,
            near_plane=camera.near,
            eps2d=SCREEN_BLUR,
            sh_degree=None,
            packed=self.packed,
            # gsplat 1.5.3 takes no backgrounds where it packs.
            backgrounds=None if self.packed else backgrounds,
            render_mode="RGB+D" if depth else "RGB",
            absgrad=absgrad,
            rasterize_mode="antialiased" if self.antialiased else "classic",
            # Of more than one chunk gsplat keeps the last one's absolute gradients alone.
            channel_chunk=MOST_CHANNELS if absgrad else 32,
        )
        if self.packed:
            behind = backgrounds
            if depth:
                behind = torch.cat([behind, behind.new_zeros(len(behind), 1)], 1)
            channels = channels + (1 - alphas) * behind[:, None, None]
        return channels, alphas.squeeze(-1), meta


def _pile(tensors: Sequence[Float[Tensor, "*shape"]]) -> Float[Tensor, "B *shape"]:
    """One above the other; of one, without a copy."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))


def _apart(pictures: Float[Tensor, "B *shape"]) -> tuple[Tensor, ...]:
    """The pictures one by one; not by numbers, which would have gradients of zeros made for all that is left out."""
    return (pictures.squeeze(0),) if len(pictures) == 1 else pictures.unbind(0)


def _empty(
    splats: Splats, camera: Camera, background: Float[Tensor, " C"], depth: bool, absgrad: bool, weights: bool
) -> Rendering:
    """The background alone; gsplat divides by the number of splats, and the whole program would end."""
    shape = (camera.height, camera.width)
    # None of their numbers, but a part of their graph: whoever asks for gradients gets empty ones.
    nothing = sum(getattr(splats, name).sum() for name in (*_GEOMETRY, "values"))
    means2d = splats.means.new_zeros(0, 2)
    means2d.grad = torch.zeros_like(means2d)

    def gather(picture: Float[Tensor, "H W P"]) -> tuple[Float[Tensor, "N P"], Float[Tensor, " N"]]:
        return picture.new_zeros(0, picture.shape[-1]), picture.new_zeros(0)

    return Rendering(
        channels=background.to(splats.means).expand(*shape, -1) + nothing,
        alpha=splats.means.new_zeros(shape) + nothing,
        depth=splats.means.new_zeros(shape) + nothing if depth else None,
        means2d=means2d,
        radii=torch.zeros(0, 2, dtype=torch.int32, device=splats.means.device),
        gather=gather,
        absgrad=(lambda: splats.means.new_zeros(0, 2)) if absgrad else None,
        weights=(lambda: splats.means.new_zeros(0)) if weights else None,
    )


_GEOMETRY = ("means", "scales", "quats", "opacities")


@functools.lru_cache(maxsize=4096)
def _intrinsics(fx: float, fy: float, cx: float, cy: float, device: torch.device) -> Float[Tensor, "1 3 3"]:
    """Kept, since a copy to the device makes the program wait for all that it was told before."""
    return torch.tensor([[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]], device=device)


class _Marked(torch.autograd.Function):
    """Leaves out the channel behind a picture's first `count`, and passes a gradient of ones back to it."""

    @staticmethod
    def forward(ctx, channels, count):  # type: ignore[no-untyped-def]
        ctx.count = count
        return torch.cat([channels[..., :count], channels[..., count + 1 :]], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        ones = torch.ones_like(gradient[..., :1])
        return torch.cat([gradient[..., : ctx.count], ones, gradient[..., ctx.count :]], -1), None


def _accumulate(means2d: Tensor, gradient: Tensor) -> None:
    means2d.grad = gradient.clone() if means2d.grad is None else means2d.grad + gradient


def step_seen(
    parameter: Tensor,
    moments: Tensor,
    squares: Tensor,
    seen: Bool[Tensor, " N"],
    rate: float,
    fades: tuple[float, float],
    epsilon: float,
) -> None:
    """One step of Adam of the rows [N ...] that were seen, in place, by gsplat's kernel.

    That kernel corrects no bias; whoever wants it corrected, changes `rate` and `epsilon` (Kingma and Ba 2015, section 2).
    """
    assert parameter.grad is not None
    _gsplat().cuda._wrapper.adam(
        parameter.detach(), parameter.grad.contiguous(), moments, squares, seen, rate, *fades, epsilon
    )


Spec = Gsplat
