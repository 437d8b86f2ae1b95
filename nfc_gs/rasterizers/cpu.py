"""Tiled, threaded SIMD rasterization on the CPU, by Numba kernels behind torch's autograd."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfc_gs.config import spec
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Splats
from nfc_gs.core.harmonics import evaluate
from nfc_gs.core.rendering import ALPHA_MAX, ALPHA_MIN, SCREEN_BLUR, TRANSMITTANCE_MIN, Rendering
from nfc_gs.kernels import compositing, compositing_backward, projection, tiles
from nfc_gs.kernels.gradients import add_records, copy_absolute, copy_columns
from nfc_gs.kernels.rows import split
from nfc_gs.kernels.threads import new_queues, part, share, thread_count
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
        *(SCREEN_BLUR, ALPHA_MIN, math.log2(ALPHA_MIN)),
    )
    return projection.Pinhole(
        tuple(matrix[:3, :3].reshape(-1)), tuple(matrix[:3, 3]), *(np.float32(number) for number in numbers)
    )


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor's own memory where it is contiguous float32, else a copy."""
    return tensor.detach().to(torch.float32).contiguous().numpy()


class _Projection(NamedTuple):
    """The splats as the camera sees them; `rows` is what the kernels read of them, see `tiles`."""

    means2d: np.ndarray
    depths: np.ndarray
    radii: np.ndarray
    rows: np.ndarray


def _project(shapes: tuple[np.ndarray, ...], opacities: np.ndarray, pinhole: projection.Pinhole) -> _Projection:
    """The projection of `shapes`: means, quats and scales."""
    count, threads = len(opacities), thread_count()
    means2d, depths = np.empty((count, 2), np.float32), np.empty(count, np.float32)
    radii, rows = np.empty((count, 2), np.int32), np.empty(count * tiles.ROW, np.float32)
    found = _Projection(means2d, depths, radii, rows)
    split(projection.project, count, threads, *shapes, opacities, pinhole, *found)
    return found


def _lists(projected: _Projection, width: int, height: int) -> compositing.Lists:
    """The splats by depth, and for each tile those that touch it."""
    threads, rows = thread_count(), projected.rows
    across, down = -(-width // tiles.TILE), -(-height // tiles.TILE)
    order = tiles.nearest_first(projected.depths.view(np.uint32), projected.radii)
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
        width=width,
        height=height,
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


_scratch, _records = _Scratch(), _Scratch()
# So many entries of the tiles' lists are recorded at a time in the backward pass, 12 MB of them for three channels.
_BAND = 2**18


class _Sums(NamedTuple):
    """What a backward pass adds up, a row a splat; the last two have no columns where they were not asked for."""

    values: np.ndarray
    absolute: np.ndarray
    weights: np.ndarray


class _Outgoing(NamedTuple):
    """The gradients of what was projected."""

    means2d: np.ndarray
    opacities: np.ndarray
    means: np.ndarray
    quats: np.ndarray
    scales: np.ndarray


@dataclass
class _Drawing:
    """One picture: what was drawn, its lists, and what its backward passes need.

    `shapes` are means, quats and scales; `means2d` has no gradient but what the backward passes put there; `sums` are the
    last one's, kept if they are wanted later.
    """

    shapes: tuple[np.ndarray, ...]
    pinhole: projection.Pinhole
    lists: compositing.Lists
    radii: np.ndarray
    means2d: Tensor
    transmittances: np.ndarray
    stops: np.ndarray
    depth: bool
    absgrad: bool
    weigh: bool
    sums: _Sums | None = None

    def forward(self, values: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The picture [H W C] and its alpha [H W]."""
        threads = thread_count()
        shape = (self.lists.height, self.lists.width)
        channels, alpha = np.empty((*shape, values.shape[1]), np.float32), np.empty(shape, np.float32)
        queues = new_queues(0, len(self.lists.starts) - 1, threads)
        share(
            lambda number: compositing.composite(
                queues, number, self.lists, values, background, _LIMITS, self.transmittances, self.stops,
                channels, alpha,
            ),
            threads,
        )  # fmt: skip
        return channels, alpha

    def backward(
        self, values: np.ndarray, background: np.ndarray, grad_channels: np.ndarray, grad_alpha: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Gradients of means, quats, scales, opacities and values; that of `means2d` is added to it."""
        count = len(self.radii)
        flat = np.empty((count, 2), np.float32), np.empty(count, np.float32)
        outgoing = _Outgoing(*flat, *(np.empty_like(shape) for shape in self.shapes))
        sums = self._sums(
            values, background, grad_channels, grad_alpha, absgrad=self.absgrad, weigh=self.weigh, outgoing=outgoing
        )
        pull = torch.from_numpy(outgoing.means2d)
        self.means2d.grad = pull if self.means2d.grad is None else self.means2d.grad + pull
        if self.absgrad or self.weigh:
            self.sums = sums
        return outgoing.means, outgoing.quats, outgoing.scales, outgoing.opacities, sums.values

    def gather(self, picture: Float[Tensor, "H W P"]) -> tuple[Float[Tensor, "N P"], Float[Tensor, " N"]]:
        """See `Rendering`: the gradient of a picture by its splats' values is their weights."""
        incoming = _array(picture)
        nothing = np.zeros((len(self.radii), incoming.shape[2]), np.float32)
        black, clear = np.zeros(incoming.shape[2], np.float32), np.zeros(incoming.shape[:2], np.float32)
        sums = self._sums(nothing, black, incoming, clear, absgrad=False, weigh=True, outgoing=None)
        return torch.from_numpy(sums.values), torch.from_numpy(sums.weights[:, 0])

    def absolute(self) -> Float[Tensor, "N 2"]:
        """See `Rendering.absgrad`."""
        if self.sums is None:
            raise RuntimeError("absgrad is known only after the backward pass")
        return torch.from_numpy(self.sums.absolute)

    def weights(self) -> Float[Tensor, " N"]:
        """See `Rendering.weights`."""
        if self.sums is None:
            raise RuntimeError("weights are known only after the backward pass")
        return torch.from_numpy(self.sums.weights[:, 0])

    def _sums(
        self,
        values: np.ndarray,
        background: np.ndarray,
        grad_channels: np.ndarray,
        grad_alpha: np.ndarray,
        *,
        absgrad: bool,
        weigh: bool,
        outgoing: _Outgoing | None,
    ) -> _Sums:
        """What a backward pass adds up; `outgoing`, if there is any, takes the gradients of what was projected."""
        count, channels = values.shape
        columns = compositing.LOCAL + compositing_backward.padded(channels, weigh)
        sums = _Sums(*(np.empty((count, width), np.float32) for width in (channels, 2 * absgrad, int(weigh))))
        with _scratch.borrow(count + 1, columns) as gradients:
            composite = partial(self._composite_backward, values, background, grad_channels, grad_alpha, absgrad, weigh)
            finish = partial(self._project_backward, gradients, sums, outgoing)
            if thread_count() == 1:
                composite(0, len(self.lists.starts) - 1, gradients, by_splat=True)
                finish(0, count)
            else:
                self._share_backward(composite, gradients, finish)
        return sums

    def _share_backward(
        self, composite: Callable[..., None], gradients: np.ndarray, finish: Callable[[int, int], None]
    ) -> None:
        """On several threads: each takes the next tile, and what is recorded there is then added up in the tiles' order.

        So the sums have the bits that they have on one thread, and a core that the machine lends to others for a while
        holds nobody up. The records are of a band of tiles at a time, as they would need much memory at once.
        """
        threads, starts, count = thread_count(), self.lists.starts, len(self.radii)
        last = len(starts) - 1
        bands = [0]
        while bands[-1] < last:
            end = int(np.searchsorted(starts, starts[bands[-1]] + _BAND, "right")) - 1
            bands.append(min(max(end, bands[-1] + 1), last))
        for begin, end in pairwise(bands):
            splats = self.lists.splats[starts[begin] : starts[end]]
            with _records.borrow(len(splats) + threads, gradients.shape[1]) as records:
                composite(begin, end, records, by_splat=False)

                def add(number: int, begin=begin, end=end, splats=splats, records=records) -> None:
                    mine = part(count, number, threads)
                    if begin == 0:
                        gradients[slice(*mine)] = 0
                    add_records(*mine, splats, records, gradients)
                    if end == last:
                        finish(*mine)

                share(add, threads)

    def _composite_backward(
        self, values, background, grad_channels, grad_alpha, absgrad, weigh, begin, end, gradients, *, by_splat
    ):
        """Tiles begin .. end - 1; see `compositing_backward.composite_backward`, the last rows of `gradients` are scratch."""
        threads = 1 if by_splat else thread_count()
        queues = new_queues(begin, end, threads)
        share(
            lambda number: compositing_backward.composite_backward(
                queues, number, begin, self.lists, values, background, _LIMITS, self.stops,
                grad_channels, grad_alpha, absgrad, weigh, by_splat, len(gradients) - threads + number, gradients,
            ),
            threads,
        )  # fmt: skip

    def _project_backward(self, gradients, sums, outgoing, first, last):
        """Splats first .. last - 1: from what the tiles gave to the inputs' gradients."""
        channels = sums.values.shape[1]
        copy_columns(first, last, gradients, compositing.LOCAL, sums.values)
        copy_columns(first, last, gradients, compositing.LOCAL + channels, sums.weights)
        if sums.absolute.shape[1]:
            copy_absolute(first, last, gradients, sums.absolute)
        if outgoing is not None:
            depth = compositing.LOCAL + channels - 1 if self.depth else -1
            projection.project_backward(
                first, last, *self.shapes, self.pinhole, self.radii, self.lists.rows, gradients, depth, *outgoing
            )


class _Draw(torch.autograd.Function):
    """Means, quats, scales, opacities and values to a picture and its alpha; the background has no gradient."""

    @staticmethod
    def forward(ctx, means, quats, scales, opacities, values, background, drawing, depths):
        ctx.values, ctx.background, ctx.drawing = _array(values), _array(background), drawing
        if drawing.depth:
            # Depth is one more channel, over nothing.
            ctx.values = np.concatenate([ctx.values, depths[:, None]], 1)
            ctx.background = np.append(ctx.background, np.float32(0))
        channels, alpha = drawing.forward(ctx.values, ctx.background)
        return torch.from_numpy(channels), torch.from_numpy(alpha)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_channels, grad_alpha):
        incoming = _array(grad_channels), _array(grad_alpha)
        *gradients, by_values = ctx.drawing.backward(ctx.values, ctx.background, *incoming)
        by_values = by_values[:, :-1] if ctx.drawing.depth else by_values
        return *map(torch.from_numpy, (*gradients, by_values)), None, None, None


@spec
class Cpu(Rasterizer):
    """Float32 on `thread_count()` threads; the same picture and gradients, bit for bit, for any number of them."""

    @property
    def device(self) -> str:
        """The CPU."""
        return "cpu"

    def shade(
        self,
        base: Float[Tensor, "N 3"],
        harmonics: Float[Tensor, "N L 3"],
        means: Float[Tensor, "N 3"],
        position: Float[Tensor, "3"],
        degree: int,
    ) -> Float[Tensor, "N 3"]:
        """See `Rasterizer`."""
        return evaluate(base, harmonics, means, position, degree)

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
        shapes, pinhole = tuple(map(_array, (splats.means, splats.quats, splats.scales))), _pinhole(camera)
        projected = _project(shapes, _array(splats.opacities), pinhole)
        lists = _lists(projected, camera.width, camera.height)
        pixels = (len(lists.starts) - 1) * tiles.TILE**2
        drawing = _Drawing(
            shapes=shapes,
            pinhole=pinhole,
            lists=lists,
            radii=projected.radii,
            means2d=torch.from_numpy(projected.means2d),
            transmittances=np.empty(pixels, np.float32),
            stops=np.empty(pixels, np.float32),
            depth=depth,
            absgrad=absgrad,
            weigh=weights,
        )
        channels, alpha = _Draw.apply(
            splats.means, splats.quats, splats.scales, splats.opacities, splats.values, background, drawing,
            projected.depths,
        )  # fmt: skip
        return Rendering(
            # Slicing costs a copy in the backward pass, so it is done only where there is something to cut off.
            channels=channels[..., :-1] if depth else channels,
            alpha=alpha,
            depth=channels[..., -1] if depth else None,
            means2d=drawing.means2d,
            radii=torch.from_numpy(projected.radii),
            gather=drawing.gather,
            absgrad=drawing.absolute if absgrad else None,
            weights=drawing.weights if weights else None,
        )


Spec = Cpu
