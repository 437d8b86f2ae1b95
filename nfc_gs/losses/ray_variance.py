"""Colour variance along the ray: the regression that an ordinal classification loss must be compared with."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from nfc_gs.config import PositiveInt, spec
from nfc_gs.losses.base import Appearance, Comparison, PlaneLoss, masked_mean


@spec
class RayVariance(PlaneLoss):
    """mean E_w[(c_i - C)^2] over pixels and channels: how far the Gaussians on a ray, by their compositing weights w, are apart.

    The weights of a ray sum to 1, the background's included, so three more planes, the squared colours, are enough.
    `around`: C is the `photograph`, and then it is E_w[c^2] - 2 E_w[c] C + C^2, the squared error of the blend plus the
    variance of what is blended; or their `mean`, E_w[c], and then it is the variance E_w[c^2] - E_w[c]^2 alone, which
    does not look at the photograph. `every` k: it acts at every k-th step, with k times its weight.
    """

    weight: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    every: PositiveInt = 1
    around: Literal["photograph", "mean"] = "photograph"

    def planes(self, appearance: Appearance) -> Float[Tensor, "N P"]:
        """Squared colours."""
        return appearance.colours.square()

    def background(self, colour: Float[Tensor, "3"], appearance: Appearance) -> Float[Tensor, " P"]:
        """The background's squared colour."""
        return colour.square()

    def __call__(self, comparison: Comparison) -> Float[Tensor, ""]:
        """The loss, unweighted."""
        rgb, squares = comparison.rgb, comparison.planes["ray_variance"]
        if self.around == "mean":
            return masked_mean(squares - rgb.square(), comparison.mask)
        target = comparison.target_rgb
        return masked_mean(squares - 2 * rgb * target + target.square(), comparison.mask)


Spec = RayVariance
