"""What the other views say of the Gaussians, composited, must classify this view's photograph."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nfc_gs.codes.base import TargetCode
from nfc_gs.config import PositiveFloat, PositiveInt, kind_in, spec
from nfc_gs.losses.base import (
    Appearance,
    Comparison,
    MemoryLoss,
    PlaneLoss,
    bit_in_turn,
    label_code,
    masked_mean,
    mean_cross_entropy,
)

# Of a pixel's weight: what a Gaussian that this view hardly sees has of the mean label of all.
HARDLY = 1e-3


@spec
class OtherViews(PlaneLoss, MemoryLoss):
    """BCE between composited labels of the other views and this photograph's, mean over pixels and channels.

    A Gaussian's label by view u is the compositing-weighted mean word of the pixels that it covers there (as `label_bce`'s). The
    label that it takes into view v is the mean over all views but v, weighted as they see it: its colour has learned this
    photograph, its others' label has not, so that only a Gaussian that is where it seems to be classifies the pixel rightly
    (leave-one-out cross-validation; multi-view photo-consistency). Labels are remembered numbers, so the gradient flows into
    where Gaussians are and how opaque, and not into colours. What no other view sees keeps the label that it has of this one.

    `views`: how many are told apart; of more, view u shares its place with view u + `views`. `doubt`: with how many pixels'
    weight a Gaussian's label by this view itself counts among those of the others. Bits take turns, one a step.
    `measure` "squared", with `code` identity, is the regression of the same: the squared difference of colours.
    `code`: of the labels; None: the model's own, or thermometer with 4 thresholds where it has none. `eps`: beyond
    [eps, 1 - eps] the loss goes on as a straight line. `every` k: it acts at every k-th step, with k times its weight.
    """

    weight: float = 1.0
    start: float = 0.1
    stop: float = 1.0
    every: PositiveInt = 1
    views: PositiveInt = 12
    doubt: PositiveFloat = 0.3
    measure: Literal["entropy", "squared"] = "entropy"
    code: Annotated[TargetCode | None, kind_in("nfc_gs.codes")] = None
    eps: float = 0.02

    def init(self, num_gaussians: int, code: TargetCode) -> dict[str, Tensor]:
        """Of each bit and place the sums of labels [N K V 3] and of compositing weights [N K V], zero."""
        width = label_code(self.code, code).width
        return {
            "sums": torch.zeros(num_gaussians, width, self.views, 3),
            "weights": torch.zeros(num_gaussians, width, self.views),
        }

    def planes(self, appearance: Appearance) -> Float[Tensor, "N 3"]:
        """The others' labels of the bit whose turn it is."""
        memory, bit, own = appearance.memory["other_views"], self._bit(appearance), appearance.view % self.views
        sums, weights = memory["sums"][:, bit], memory["weights"][:, bit]
        seen, mine = sums[:, own], weights[:, own, None]
        all_sums, all_weights = sums.sum(1), weights.sum(1)[:, None]
        anyone = all_sums.sum(0) / all_weights.sum().clamp(min=HARDLY)
        by_this = (seen + HARDLY * anyone) / (mine + HARDLY)
        labels = (all_sums - seen + self.doubt * by_this) / (all_weights - mine + self.doubt)
        # A sum less one of its parts may miss zero by an ulp.
        return labels.clamp(0, 1)

    def background(self, colour: Float[Tensor, "3"], appearance: Appearance) -> Float[Tensor, "3"]:
        """The background's bit."""
        return label_code(self.code, appearance.code).encode_bit(colour, self._bit(appearance))

    def __call__(self, comparison: Comparison) -> Float[Tensor, ""]:
        """The loss, unweighted; it also updates the memory."""
        appearance, planes = comparison.appearance, comparison.planes["other_views"]
        bit, own = self._bit(appearance), appearance.view % self.views
        labels = label_code(self.code, appearance.code).encode_bit(comparison.target_rgb, bit)
        memory = comparison.memory["other_views"]
        known = memory["weights"][:, bit].any()
        memory["sums"][:, bit, own], memory["weights"][:, bit, own] = self._gather(labels, comparison)
        if self.measure == "squared":
            loss = masked_mean((planes - labels).square(), comparison.mask)
        else:
            loss = mean_cross_entropy(planes, labels, comparison.mask, self.eps)
        # As long as nothing is known: not by asking whether, for which a device would be waited for.
        return torch.where(known, loss, 0)

    def _gather(
        self, labels: Float[Tensor, "H W 3"], comparison: Comparison
    ) -> tuple[Float[Tensor, "N 3"], Float[Tensor, " N"]]:
        """What each Gaussian sees of the labels, and its weight there; pixels outside the mask are none."""
        if comparison.mask is None:
            return comparison.gather(labels)
        counted = comparison.mask[..., None].to(labels)
        sums, _ = comparison.gather(torch.cat([labels * counted, counted], -1))
        return sums[:, :-1], sums[:, -1]

    def _bit(self, appearance: Appearance) -> int:
        return bit_in_turn(label_code(self.code, appearance.code), appearance.step, self.every)


Spec = OtherViews
