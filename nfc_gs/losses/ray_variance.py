"""Colour variance along the ray: the regression that an ordinal classification loss must be compared with."""

from jaxtyping import Float
from torch import Tensor

from nfc_gs.config import spec
from nfc_gs.losses.base import Appearance, Comparison, PlaneLoss, masked_mean


@spec
class RayVariance(PlaneLoss):
    """mean E_w[(c_i - target)^2]: squared error of every Gaussian on the ray, by its compositing weight w.

    With E_w[1] = 1 (the background included) it is E_w[c^2] - 2 E_w[c] target + target^2: three more planes,
    the squared colours. It equals the squared error of the blend plus the variance of what is blended.
    """

    weight: float = 1.0
    start: float = 0.0
    stop: float = 1.0

    def planes(self, appearance: Appearance) -> Float[Tensor, "N P"]:
        """Squared colours."""
        return appearance.colours.square()

    def background(self, colour: Float[Tensor, "3"], appearance: Appearance) -> Float[Tensor, " P"]:
        """The background's squared colour."""
        return colour.square()

    def __call__(self, comparison: Comparison) -> Float[Tensor, ""]:
        """The loss, unweighted."""
        target = comparison.target_rgb
        squares = comparison.planes["ray_variance"] - 2 * comparison.rgb * target + target.square()
        return masked_mean(squares, comparison.mask)


Spec = RayVariance
