"""Cross-entropy of decoded colours: the classification term of the published Neural Field Classifiers."""

import torch
from jaxtyping import Float
from torch import Tensor

from nfc_gs.config import spec
from nfc_gs.losses.base import Comparison, LossTerm, mean_cross_entropy


@spec
class ValueBCE(LossTerm):
    """BCE(rgb, target) on the decoded colours, mean over pixels and channels (arXiv 2403.01058, as released).

    The release weighs it 2 beside MSE and 20 beside L1; 0.3 equals one MSE at mid-grey. `eps` keeps it finite: within
    `eps` of 0 and 1 it goes on as a straight line towards the target, and is constant away from it.
    """

    weight: float = 0.3
    start: float = 0.0
    stop: float = 1.0
    eps: float = 1e-3

    def __call__(self, comparison: Comparison) -> Float[Tensor, ""]:
        """The loss, unweighted."""
        rgb, target = comparison.rgb, comparison.target_rgb
        # Colours are not bounded: what is at or past a saturated target must not be driven further.
        shown = rgb.clamp(0, 1)
        past = ((rgb < self.eps) & (target <= shown)) | ((rgb > 1 - self.eps) & (target >= shown))
        rgb = torch.where(past, rgb.detach().clamp(self.eps, 1 - self.eps), rgb)
        return mean_cross_entropy(rgb, target, comparison.mask, self.eps)


Spec = ValueBCE
