"""What every rasterizer is."""

import abc
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Splats
from nfc_gs.core.rendering import Rendering


class Rasterizer(abc.ABC):
    """Draws splats; differentiable in everything but the camera and the background."""

    @property
    @abc.abstractmethod
    def device(self) -> str:
        """Where its tensors live: "cpu" or "cuda"."""

    @property
    def several(self) -> bool:
        """Whether `draw` draws cameras that see the same splats in one pass, where their pictures are of one size."""
        return False

    @abc.abstractmethod
    def shade(
        self,
        base: Float[Tensor, "N 3"],
        harmonics: Float[Tensor, "N L 3"],
        means: Float[Tensor, "N 3"],
        position: Float[Tensor, "3"],
        degree: int,
    ) -> Float[Tensor, "N 3"]:
        """The colours seen from `position`: `nfc_gs.core.harmonics.evaluate`, by the backend's own kernels."""

    @abc.abstractmethod
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
        """Composites the splats front to back over `background`, one number a channel.

        Args:
            splats: what the camera sees; those nearer than `camera.near` or outside the picture are skipped.
            camera: where from.
            background: the channels behind everything.
            depth: also the alpha-weighted depth (otherwise `Rendering.depth` is None).
            absgrad: also the sum over pixels of the absolute gradients of `means2d` (AbsGS, arXiv 2404.10484).
            weights: also the sum over pixels of each splat's compositing weight, known after the backward pass, at hardly
                any cost.
        """

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
        """What each camera sees of its own splats, over its own background; the same as one call after the other.

        A rasterizer that can draws them in one pass, for which one backward pass must follow of all that is made of them.
        """
        return [
            self(mine, camera, background, depth=depth, absgrad=absgrad, weights=weights)
            for mine, camera, background in zip(splats, cameras, backgrounds, strict=True)
        ]
