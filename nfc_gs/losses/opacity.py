"""The mean opacity: lets Gaussians that explain nothing fade."""

from jaxtyping import Float
from torch import Tensor

from nfc_gs.config import spec
from nfc_gs.losses.base import Comparison, LossTerm


@spec
class Opacity(LossTerm):
    """mean |opacity| over all Gaussians (3DGS-MCMC, Kheradmand et al., arXiv 2404.09591, weight 0.01)."""

    weight: float = 0.01
    start: float = 0.0
    stop: float = 1.0

    def __call__(self, comparison: Comparison) -> Float[Tensor, ""]:
        """The loss, unweighted."""
        return comparison.opacities.abs().mean()


Spec = Opacity
