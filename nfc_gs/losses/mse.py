"""The mean squared difference of colours."""

from jaxtyping import Float
from torch import Tensor

from nfc_gs.config import spec
from nfc_gs.core.sums import RowSum, compiled
from nfc_gs.losses.base import Comparison, LossTerm, distance_rows, mean_distance


@spec
class MSE(LossTerm):
    """mean (rgb - target)^2 over pixels and channels, as NeRF (Mildenhall et al. 2020) trains: the control of
    `value_bce`, whose slope it shares up to a factor.
    """

    weight: float = 1.0
    start: float = 0.0
    stop: float = 1.0

    def __call__(self, comparison: Comparison) -> Float[Tensor, ""]:
        """The loss, unweighted."""
        return mean_distance(comparison.rgb, comparison.target_rgb, comparison.mask, squared=True)

    def by_rows(self, comparison: Comparison) -> RowSum | None:
        """For float32 on a CPU."""
        rgb, target = comparison.rgb, comparison.target_rgb
        return distance_rows(rgb, target, comparison.mask, squared=True) if compiled(rgb, target) else None


Spec = MSE
