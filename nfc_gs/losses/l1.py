"""The mean absolute difference of colours, the main term of 3DGS."""

from jaxtyping import Float
from torch import Tensor

from nfc_gs.config import spec
from nfc_gs.core.sums import RowSum, compiled
from nfc_gs.losses.base import Comparison, LossTerm, distance_rows, mean_distance


@spec
class L1(LossTerm):
    """mean |rgb - target| over pixels and channels; 3DGS (Kerbl et al. 2023) weighs it 0.8."""

    weight: float = 0.8
    start: float = 0.0
    stop: float = 1.0

    def __call__(self, comparison: Comparison) -> Float[Tensor, ""]:
        """The loss, unweighted."""
        return mean_distance(comparison.rgb, comparison.target_rgb, comparison.mask, squared=False)

    def by_rows(self, comparison: Comparison) -> RowSum | None:
        """For float32 on a CPU."""
        rgb, target = comparison.rgb, comparison.target_rgb
        return distance_rows(rgb, target, comparison.mask, squared=False) if compiled(rgb, target) else None


Spec = L1
