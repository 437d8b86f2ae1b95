"""Cameras: the one place that states axes, pixel centres and how a point meets a pixel.

OpenCV axes (+x right, +y down, +z forward); the centre of the top-left pixel is (0.5, 0.5); no lens distortion, which the
data sets remove when they load.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera at one moment.

    `focal` (fx, fy) and `centre` (cx, cy) are in pixels; `near` is the depth, in world units, below which nothing is drawn;
    `time` is in [0, 1] and 0 for still scenes.
    """

    world_to_camera: Float[Tensor, "4 4"]
    focal: tuple[float, float]
    centre: tuple[float, float]
    width: int
    height: int
    near: float = 0.01
    time: float = 0.0

    @property
    def position(self) -> Float[Tensor, "3"]:
        """Where the camera stands, in world coordinates."""
        rotation, translation = self.world_to_camera[:3, :3], self.world_to_camera[:3, 3]
        return -rotation.T @ translation

    def project(self, points: Float[Tensor, "*shape 3"]) -> tuple[Float[Tensor, "*shape 2"], Float[Tensor, "*shape"]]:
        """World points to pixel coordinates and depths (z); the pixel means nothing where the depth is not positive."""
        rotation, translation = self.world_to_camera[:3, :3], self.world_to_camera[:3, 3]
        seen = points @ rotation.T.to(points.dtype) + translation.to(points.dtype)
        depth = seen[..., 2]
        pixels = seen[..., :2] / depth[..., None] * points.new_tensor(self.focal) + points.new_tensor(self.centre)
        return pixels, depth

    def unproject(self, pixels: Float[Tensor, "*shape 2"], depth: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape 3"]:
        """The inverse of `project`."""
        seen = (pixels - pixels.new_tensor(self.centre)) / pixels.new_tensor(self.focal) * depth[..., None]
        rotation, translation = self.world_to_camera[:3, :3], self.world_to_camera[:3, 3]
        return (torch.cat([seen, depth[..., None]], -1) - translation.to(pixels.dtype)) @ rotation.to(pixels.dtype)

    def resized(self, width: int, height: int) -> "Camera":
        """The same camera with a picture of another size; each axis keeps its own ratio, as rounded sizes demand."""
        x, y = width / self.width, height / self.height
        return replace(
            self,
            focal=(self.focal[0] * x, self.focal[1] * y),
            centre=(self.centre[0] * x, self.centre[1] * y),
            width=width,
            height=height,
        )

    def to(self, device: torch.device | str) -> "Camera":
        """The same camera with its matrix on another device."""
        return replace(self, world_to_camera=self.world_to_camera.to(device))
