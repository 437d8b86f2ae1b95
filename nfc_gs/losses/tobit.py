"""Squared error that takes clipped numbers as one-sided: the regression that censored classification is compared with."""

import torch
from jaxtyping import Float
from torch import Tensor

from nfc_gs.config import PositiveFloat, spec
from nfc_gs.core.clipping import clipped, noise_of
from nfc_gs.losses.base import Comparison, LossTerm, masked_mean


@spec
class Tobit(LossTerm):
    """2 s^2 times the negative log-likelihood of clipped numbers with normal noise, without constants (Tobin 1958).

    (rgb - target)^2 where the photograph is not clipped; -2 s^2 log Phi((rgb - 1) / s) where it is 1, and
    -2 s^2 log Phi(-rgb / s) where it is 0, Phi being the normal distribution: as s falls to 0, the square of what is
    missing to the end, and nothing beyond it. Unlike `mse` it has its minimum at the value before clipping, not at the
    mean after it. Mean over pixels and channels.

    `noise`: s, of values in [0, 1]. None: the root mean square of rgb - target, of the numbers of this picture that are not
    clipped.
    """

    weight: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    noise: PositiveFloat | None = None

    def __call__(self, comparison: Comparison) -> Float[Tensor, ""]:
        """The loss, unweighted."""
        rgb, target, mask = comparison.rgb, comparison.target_rgb, comparison.mask
        s = noise_of(rgb, target, mask) if self.noise is None else self.noise
        low, high = clipped(target)
        inside = torch.where(high, rgb - 1, -rgb)
        one_sided = -2 * s**2 * torch.special.log_ndtr(inside / s)
        return masked_mean(torch.where(low | high, one_sided, (rgb - target).square()), mask)


Spec = Tobit
