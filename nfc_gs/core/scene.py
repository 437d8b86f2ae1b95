"""Photographs with their cameras, and a first guess of the geometry."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from nfc_gs.core.camera import Camera


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """One decoded picture, in 8 bits because that is how it is kept in memory.

    `rgb` is sRGB, premultiplied by `alpha` where there is one; `alpha` 255 where the subject is opaque; `mask` is true
    where a pixel counts in losses and metrics (None: everywhere).
    """

    rgb: UInt8[np.ndarray, "H W 3"]
    alpha: UInt8[np.ndarray, "H W"] | None = None
    mask: Bool[np.ndarray, "H W"] | None = None

    @property
    def bytes(self) -> int:
        """The memory it takes: what is mapped from a file takes none, as the system may drop it when memory is short."""
        arrays = (self.rgb, self.alpha, self.mask)
        return sum(a.nbytes for a in arrays if a is not None and not isinstance(a, np.memmap))


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """A photograph's arrays as tensors, on any device; see `Photograph`."""

    rgb: UInt8[Tensor, "H W 3"]
    alpha: UInt8[Tensor, "H W"] | None
    mask: Bool[Tensor, "H W"] | None

    @staticmethod
    def of(photograph: Photograph) -> "Pixels":
        """The same memory."""
        arrays = (photograph.rgb, photograph.alpha, photograph.mask)
        rgb, alpha, mask = (None if array is None else torch.from_numpy(array) for array in arrays)
        assert rgb is not None
        return Pixels(rgb=rgb, alpha=alpha, mask=mask)

    def __iter__(self) -> Iterator[Tensor]:
        return (tensor for tensor in (self.rgb, self.alpha, self.mask) if tensor is not None)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Pixels":
        """`change` applied to every tensor that there is."""
        rgb, alpha, mask = (None if t is None else change(t) for t in (self.rgb, self.alpha, self.mask))
        assert rgb is not None
        return Pixels(rgb=rgb, alpha=alpha, mask=mask)


@dataclass(frozen=True, kw_only=True)
class View:
    """A camera and how to get its photograph; `read` decodes, downscales and undistorts, and is safe in a thread."""

    name: str
    camera: Camera
    read: Callable[[], Photograph]


@dataclass(frozen=True, kw_only=True)
class Points:
    """Coloured points: `rgb` in [0, 1].

    `sightings`, where it is known which photographs a point was found in, gives rows (point, training view). It is read
    only when some views are left out, as a large capture has millions.
    """

    xyz: Float[Tensor, "P 3"]
    rgb: Float[Tensor, "P 3"]
    sightings: Callable[[], Int[np.ndarray, "S 2"]] | None = None


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """`scale * x + translation`: from the coordinates of training to those of the input data. No rotation, so that
    spherical harmonics and orientations need not change.
    """

    scale: float = 1.0
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __call__(self, points: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape 3"]:
        """Points of training to points of the input data, in float64 on the way."""
        moved = points.double() * self.scale + torch.tensor(self.translation, dtype=torch.float64, device=points.device)
        return moved.to(points.dtype)

    def inverse(self, points: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape 3"]:
        """Points of the input data to points of training, in float64 on the way."""
        offset = torch.tensor(self.translation, dtype=torch.float64, device=points.device)
        return ((points.double() - offset) / self.scale).to(points.dtype)

    def inverse_camera(self, world_to_camera: Float[Tensor, "4 4"]) -> Float[Tensor, "4 4"]:
        """A camera matrix of the input data, as a matrix of training (rotation kept, position and depth scaled)."""
        rotation, translation = world_to_camera[:3, :3].double(), world_to_camera[:3, 3].double()
        offset = torch.tensor(self.translation, dtype=torch.float64)
        out = torch.eye(4, dtype=torch.float64)
        out[:3, :3] = rotation
        out[:3, 3] = (rotation @ offset + translation) / self.scale
        return out.to(world_to_camera.dtype)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a data set gives: views to learn from, views to be judged by, and where things may be.

    `background` is the colour behind transparent pixels in evaluation, in [0, 1]; with `random_background` training draws
    another one at every step. `points` may be None: then the first Gaussians are drawn in the cameras' frustums.
    `bounds`, where known, is the box [min, max] that holds the subject. `to_world` leads from the scene's coordinates
    back to those of the input files. `extent` is the radius of the cameras' positions, the unit of the learning rates.
    """

    train: tuple[View, ...]
    test: tuple[View, ...]
    points: Points | None
    extent: float
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    random_background: bool = False
    bounds: Float[Tensor, "2 3"] | None = None
    to_world: Similarity = Similarity()

    @property
    def times(self) -> tuple[float, ...]:
        """The different times of the training views, ascending; a still scene has one."""
        return tuple(sorted({view.camera.time for view in self.train}))


def camera_extent(views: tuple[View, ...]) -> float:
    """1.1 times the largest distance of a camera from the cameras' mean: the unit of 3DGS's learning rates.

    1 where all cameras are in one place, as a lone one is: there is nothing to go by.
    """
    positions = torch.stack([view.camera.position for view in views]).double()
    radius = 1.1 * float((positions - positions.mean(0)).norm(dim=1).max())
    return radius if radius > 1e-6 else 1.0
