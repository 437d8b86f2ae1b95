"""Cross-entropy between rendered bits and the photograph's hard bits: multi-label classification taken literally."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nfc_gs.codes.identity import Identity
from nfc_gs.config import ConfigError, PositiveInt, spec
from nfc_gs.losses.base import Appearance, Comparison, PlaneLoss, cross_entropy, masked_mean


@spec
class BitBCE(PlaneLoss):
    """BCE per bit between composited bit probabilities and the word of each pixel, mean over pixels and channels x K.

    The text of arXiv 2403.01058 describes it, its release has none. Low bits of photographs are nearly coin tosses, so
    the labels are noisy; the minimiser is nevertheless the mean word, which decodes to the mean colour.

    `weights`: every bit counts the same (`uniform`), or in proportion to what it adds to the value (`place`); their
    mean is one. `eps`: beyond [eps, 1 - eps] the loss goes on as a straight line. `every` k: it acts at every k-th step,
    with k times its weight.
    """

    weight: float = 0.05
    start: float = 0.0
    stop: float = 1.0
    every: PositiveInt = 1
    weights: Literal["place", "uniform"] = "uniform"
    eps: float = 0.02

    def planes(self, appearance: Appearance) -> Float[Tensor, "N P"]:
        """Bit probabilities [N 3 K], side by side.

        Raises:
            ConfigError: the model's code has no bits.
        """
        if isinstance(appearance.code, Identity):
            raise ConfigError("losses.bit_bce: code identity has no bits; use code binary, gray or thermometer")
        return appearance.code.probabilities(appearance.colour_logits).flatten(1)

    def background(self, colour: Float[Tensor, "3"], appearance: Appearance) -> Float[Tensor, " P"]:
        """The word of the background."""
        return appearance.code.words(colour).flatten()

    def __call__(self, comparison: Comparison) -> Float[Tensor, ""]:
        """The loss, unweighted."""
        code = comparison.appearance.code
        entropy = cross_entropy(comparison.planes["bit_bce"], code.words(comparison.target_rgb).flatten(2), self.eps)
        if self.weights == "place":
            places = code.decode(torch.eye(code.width, dtype=entropy.dtype, device=entropy.device))
            entropy = entropy * (places / places.mean()).repeat(3)
        return masked_mean(entropy, comparison.mask)


Spec = BitBCE
