"""Cross-entropy of the rendered silhouette."""

from jaxtyping import Float
from torch import Tensor

from nfc_gs.config import ConfigError, spec
from nfc_gs.losses.base import Comparison, LossTerm, mean_cross_entropy


@spec
class AlphaBCE(LossTerm):
    """BCE(alpha, target alpha), mean over pixels: is there anything? (the mask loss of IDR, Yariv et al. 2020)

    `eps`: beyond [eps, 1 - eps] the loss goes on as a straight line.
    """

    weight: float = 0.1
    start: float = 0.0
    stop: float = 1.0
    eps: float = 1e-3

    def __call__(self, comparison: Comparison) -> Float[Tensor, ""]:
        """The loss, unweighted.

        Raises:
            ConfigError: the photographs have no alpha.
        """
        if comparison.target_alpha is None:
            raise ConfigError("losses.alpha_bce: the data set has no alpha; drop this loss (losses.alpha_bce=null)")
        return mean_cross_entropy(comparison.alpha, comparison.target_alpha, comparison.mask, self.eps)


Spec = AlphaBCE
