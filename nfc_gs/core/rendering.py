"""What a rasterizer returns."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

# A Gaussian below this alpha at a pixel is not composited there (3DGS, Kerbl et al. 2023; one step of an 8-bit value).
ALPHA_MIN = 1 / 255
# Alpha is capped here, so that the transmittance behind a splat never reaches zero (gsplat).
ALPHA_MAX = 0.999
# A pixel takes no further splat once its transmittance would fall to this (3DGS).
TRANSMITTANCE_MIN = 1e-4
# Added to both variances of a projected Gaussian, in square pixels: the smallest splat still covers its pixel (3DGS).
SCREEN_BLUR = 0.3


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """A picture of C channels, and what strategies and losses need to know of its making.

    `channels` composited over the background; `alpha` in [0, 1], the opacity accumulated; `depth`, if asked for, the
    alpha-weighted sum of the splats' depths (divide by alpha for the expected depth); `means2d` in pixels, whose `grad`
    the backward pass leaves behind; `radii` in whole pixels, the half extents of the box in which a splat's alpha reaches
    1/255, 0 where it is not drawn.
    `gather`: a picture [H W P] -> (sums [N P], weights [N]), each Gaussian's compositing-weighted sum of the pixels it
    covers, and the sum of those weights (no gradient).
    `absgrad`, if asked for: after the backward pass, the sums over pixels of |d loss / d means2d|, [N 2].
    `weights`, if asked for: after the backward pass, the sum over pixels of each Gaussian's compositing weight, [N]: what
    `gather` gives too, without a pass of its own.
    """

    channels: Float[Tensor, "H W C"]
    alpha: Float[Tensor, "H W"]
    depth: Float[Tensor, "H W"] | None
    means2d: Float[Tensor, "N 2"]
    radii: Int[Tensor, "N 2"]
    gather: Callable[[Tensor], tuple[Tensor, Tensor]]
    absgrad: Callable[[], Tensor] | None = None
    weights: Callable[[], Tensor] | None = None
