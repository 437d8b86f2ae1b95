"""Tiled, threaded SIMD rasterization on the CPU, by Numba kernels behind torch's autograd."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nfc_gs.config import spec
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Splats
from nfc_gs.core.rendering import ALPHA_MAX, ALPHA_MIN, SCREEN_BLUR, TRANSMITTANCE_MIN, Rendering
from nfc_gs.kernels import compositing, projection, tiles
from nfc_gs.kernels.threads import part, share, thread_count
from nfc_gs.rasterizers.base import Rasterizer

_LIMITS = compositing.Limits(np.float32(math.log2(ALPHA_MIN)), np.float32(ALPHA_MAX), np.float32(TRANSMITTANCE_MIN))


def _pinhole(camera: Camera) -> projection.Pinhole:
    matrix = camera.world_to_camera.detach().to(torch.float32).numpy()
    (fx, fy), (cx, cy) = camera.focal, camera.centre
    margin_x, margin_y = 0.3 * 0.5 * camera.width / fx, 0.3 * 0.5 * camera.height / fy
    numbers = (
        *(fx, fy, cx, cy, camera.width, camera.height, camera.near),
        *(-cx / fx - margin_x, (camera.width - cx) / fx + margin_x),
        *(-cy / fy - margin_y, (camera.height - cy) / fy + margin_y),
        *(SCREEN_BLUR, ALPHA_MIN),
    )
    return projection.Pinhole(
        tuple(matrix[:3, :3].reshape(-1)), tuple(matrix[:3, 3]), *(np.float32(number) for number in numbers)
    )


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor's own memory where it is contiguous float32, else a copy."""
    return tensor.detach().to(torch.float32).contiguous().numpy()


class _Project(torch.autograd.Function):
    """Means, quats and scales to positions, covariances and depths; also roots and radii, which have no gradient."""

    @staticmethod
    def forward(ctx, means, quats, scales, opacities, camera):
        count, threads = len(means), thread_count()
        inputs = tuple(map(_array, (means, quats, scales)))
        means2d, covariances, roots = (np.empty((count, size), np.float32) for size in (2, 3, 3))
        depths, radii = np.empty(count, np.float32), np.empty((count, 2), np.int32)
        outputs = (means2d, covariances, roots, depths, radii)
        faces = _array(opacities)
        share(
            lambda number: projection.project(*part(count, number, threads), *inputs, faces, camera, *outputs), threads
        )
        ctx.inputs, ctx.camera, ctx.radii = inputs, camera, radii
        results = tuple(map(torch.from_numpy, outputs))
        ctx.mark_non_differentiable(results[2], results[4])
        return results

    @staticmethod
    def backward(ctx, grad_means2d, grad_covariances, grad_roots, grad_depths, grad_radii):
        count, threads = len(ctx.radii), thread_count()
        incoming = tuple(map(_array, (grad_means2d, grad_covariances, grad_depths)))
        outgoing = tuple(np.empty((count, size), np.float32) for size in (3, 4, 3))
        share(
            lambda number: projection.project_backward(
                *part(count, number, threads), *ctx.inputs, ctx.camera, ctx.radii, *incoming, *outgoing
            ),
            threads,
        )
        return *map(torch.from_numpy, outgoing), None, None


def _lists(
    means2d: Tensor,
    covariances: Tensor,
    roots: Tensor,
    opacities: Tensor,
    depths: Tensor,
    radii: Tensor,
    camera: Camera,
    threads: int,
) -> compositing.Lists:
    """The splats by depth, and for each tile those that touch it."""
    shapes = (_array(means2d), _array(covariances), _array(roots), _array(opacities))
    keys = _array(depths).view(np.uint32)
    across, down = -(-camera.width // tiles.TILE), -(-camera.height // tiles.TILE)
    rows = np.empty(len(radii) * tiles.ROW, np.float32)
    share(
        lambda number: tiles.describe(
            *part(len(radii), number, threads), *shapes, radii.numpy(), _LIMITS.log_alpha_min, rows
        ),
        threads,
    )
    order = tiles.nearest_first(keys, radii.numpy())
    counts = np.zeros((threads, across * down), np.int64)
    found = share(
        lambda number: tiles.find_tiles(order, *part(len(order), number, threads), rows, counts[number], across, down),
        threads,
    )
    starts, groups = np.empty(across * down + 1, np.int64), np.empty(across * down + 1, np.int64)
    tiles.lay_out(counts, starts)
    tiles.groups_before(starts, groups)
    splats = np.empty(starts[-1], np.int32)
    share(lambda number: tiles.deal(*found[number], counts[number], splats), threads)
    return compositing.Lists(
        rows=rows,
        starts=starts,
        groups=groups,
        splats=splats,
        touches=np.empty(groups[-1] * tiles.BLOCKS, np.uint16),
        width=camera.width,
        height=camera.height,
        across=across,
        longest=int(np.diff(starts).max()),
    )


class _Scratch:
    """Memory for what is forgotten within a call, kept from call to call: fresh memory costs a page fault every 4 KiB.

    What a call hands out is never taken from here.
    """

    def __init__(self) -> None:
        self._spare: list[np.ndarray] = []

    @contextmanager
    def borrow(self, *shape: int) -> Iterator[np.ndarray]:
        """A float32 array of any content, for the `with` block alone; calls at the same time get different ones."""
        size = math.prod(shape)
        # One call takes what the last one gave back; of calls at the same time, all but one make their own.
        memory = self._spare.pop() if self._spare else np.empty(0, np.float32)
        if memory.size < size:
            memory = np.empty(size, np.float32)
        try:
            yield memory[:size].reshape(shape)
        finally:
            self._spare[:] = [memory]


_scratch = _Scratch()


class _Sums(NamedTuple):
    """What a backward pass adds up, a row a splat; the last two are empty where they were not asked for."""

    means2d: np.ndarray
    covariances: np.ndarray
    opacities: np.ndarray
    values: np.ndarray
    absolute: np.ndarray
    weights: np.ndarray


@dataclass
class _Drawing:
    """One picture's lists, and what its backward passes need; `sums` are the last one's."""

    lists: compositing.Lists
    radii: np.ndarray
    transmittances: np.ndarray
    stops: np.ndarray
    sums: _Sums | None = None

    def forward(self, values: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The picture [H W C] and its alpha [H W]."""
        threads = thread_count()
        shape = (self.lists.height, self.lists.width)
        channels, alpha = np.empty((*shape, values.shape[1]), np.float32), np.empty(shape, np.float32)
        share(
            lambda number: compositing.composite(
                number, threads, self.lists, values, background, _LIMITS, self.transmittances, self.stops,
                channels, alpha,
            ),
            threads,
        )  # fmt: skip
        return channels, alpha

    def backward(
        self,
        values: np.ndarray,
        background: np.ndarray,
        grad_channels: np.ndarray,
        grad_alpha: np.ndarray,
        *,
        absgrad: bool,
        weigh: bool,
    ) -> _Sums:
        """Gradients of positions, covariances, opacities and values, and what else is asked for."""
        threads = thread_count()
        count, channels = values.shape
        shapes = ((count, 2), (count, 3), (count,), (count, channels), (count * absgrad, 2), (count * weigh,))
        sums = _Sums(*(np.empty(shape, np.float32) for shape in shapes))
        columns = compositing.LOCAL + compositing.padded(channels, weigh)
        with _scratch.borrow(threads, count + 1, columns) as gradients:
            share(
                lambda number: compositing.composite_backward(
                    number, threads, self.lists, values, background, _LIMITS, self.transmittances, self.stops,
                    grad_channels, grad_alpha, absgrad, weigh, gradients[number],
                ),
                threads,
            )  # fmt: skip
            share(
                lambda number: compositing.spread_gradients(
                    *part(count, number, threads), self.lists, self.radii, gradients, absgrad, weigh, *sums
                ),
                threads,
            )
        return sums


class _Composite(torch.autograd.Function):
    """Positions, covariances, opacities and values to a picture and its alpha; the background has no gradient."""

    @staticmethod
    def forward(ctx, means2d, covariances, opacities, values, background, drawing, absgrad, weigh):
        ctx.values, ctx.background, ctx.drawing = _array(values), _array(background), drawing
        ctx.absgrad, ctx.weigh = absgrad, weigh
        channels, alpha = drawing.forward(ctx.values, ctx.background)
        return torch.from_numpy(channels), torch.from_numpy(alpha)

    @staticmethod
    def backward(ctx, grad_channels, grad_alpha):
        incoming = _array(grad_channels), _array(grad_alpha)
        sums = ctx.drawing.backward(ctx.values, ctx.background, *incoming, absgrad=ctx.absgrad, weigh=ctx.weigh)
        if ctx.absgrad or ctx.weigh:
            ctx.drawing.sums = sums
        return *map(torch.from_numpy, sums[:4]), None, None, None, None


@spec
class Cpu(Rasterizer):
    """Float32 on `thread_count()` threads; the same picture and gradients for the same number of threads."""

    @property
    def device(self) -> str:
        """The CPU."""
        return "cpu"

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
        """See `Rasterizer`. A splat that is not finite is not drawn."""
        means2d, covariances, roots, depths, radii = _Project.apply(
            splats.means, splats.quats, splats.scales, splats.opacities, _pinhole(camera)
        )
        if means2d.requires_grad:
            means2d.retain_grad()
        threads = thread_count()
        lists = _lists(means2d, covariances, roots, splats.opacities, depths, radii, camera, threads)
        pixels = (len(lists.starts) - 1) * tiles.TILE**2
        drawing = _Drawing(lists, radii.numpy(), np.empty(pixels, np.float32), np.empty(pixels, np.float32))
        values = splats.values
        if depth:
            values = torch.cat([values, depths[:, None]], 1)
            background = torch.cat([background, background.new_zeros(1)])
        channels, alpha = _Composite.apply(
            means2d, covariances, splats.opacities, values, background, drawing, absgrad, weights
        )

        def gather(picture: Float[Tensor, "H W P"]) -> tuple[Float[Tensor, "N P"], Float[Tensor, " N"]]:
            # The gradient of a picture by its splats' values is their weights.
            incoming = _array(picture)
            nothing = np.zeros((len(splats), incoming.shape[2]), np.float32)
            black, clear = np.zeros(incoming.shape[2], np.float32), np.zeros(incoming.shape[:2], np.float32)
            sums = drawing.backward(nothing, black, incoming, clear, absgrad=False, weigh=True)
            return torch.from_numpy(sums.values), torch.from_numpy(sums.weights)

        def absolute() -> Float[Tensor, "N 2"]:
            if drawing.sums is None:
                raise RuntimeError("absgrad is known only after the backward pass")
            return torch.from_numpy(drawing.sums.absolute)

        def weigh() -> Float[Tensor, " N"]:
            if drawing.sums is None:
                raise RuntimeError("weights are known only after the backward pass")
            return torch.from_numpy(drawing.sums.weights)

        return Rendering(
            # Slicing costs a copy in the backward pass, so it is done only where there is something to cut off.
            channels=channels[..., :-1] if depth else channels,
            alpha=alpha,
            depth=channels[..., -1] if depth else None,
            means2d=means2d,
            radii=radii,
            gather=gather,
            absgrad=absolute if absgrad else None,
            weights=weigh if weights else None,
        )


Spec = Cpu
