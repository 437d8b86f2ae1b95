"""The structural dissimilarity 1 - SSIM, the second term of 3DGS."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from nfc_gs.config import spec
from nfc_gs.core.ssim import mean_ssim, ssim_rows
from nfc_gs.core.sums import RowSum, compiled
from nfc_gs.losses.base import Comparison, LossTerm


@spec
class DSSIM(LossTerm):
    """1 - mean SSIM, as in 3DGS (Kerbl et al. 2023): window 11x11, Gaussian of sigma 1.5, pictures padded with zeros.

    The weight of 3DGS is 0.2. With a mask, the SSIM map is averaged over the pixels that count; its windows still see
    the pixels beside them.
    """

    weight: float = 0.2
    start: float = 0.0
    stop: float = 1.0

    def __call__(self, comparison: Comparison) -> Float[Tensor, ""]:
        """The loss, unweighted."""
        return 1 - mean_ssim(comparison.rgb, comparison.target_rgb, comparison.mask)

    def by_rows(self, comparison: Comparison) -> RowSum | None:
        """For float32 on a CPU, if any pixel counts."""
        rgb, target, mask = comparison.rgb, comparison.target_rgb, comparison.mask
        if not compiled(rgb, target) or (mask is not None and not mask.any()):
            return None
        similarity = ssim_rows(rgb, target, mask)
        return replace(similarity, factor=-similarity.factor, offset=1.0)


Spec = DSSIM
