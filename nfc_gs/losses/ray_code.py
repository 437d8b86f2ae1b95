"""Every Gaussian on the ray classifies the pixel: the ordinal code's loss, not of what is composited but of what composites."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nfc_gs.codes.base import TargetCode
from nfc_gs.codes.identity import Identity
from nfc_gs.config import PositiveInt, kind_in, spec
from nfc_gs.losses.base import Appearance, Comparison, PlaneLoss, bit_in_turn, label_code, masked_mean


@spec
class RayCode(PlaneLoss):
    """mean E_w[d(p_ik, b_k(C))] over pixels and channels x K: each Gaussian's code against the pixel's, by the ray's weights w.

    Linear in what is composited, so two planes a bit are enough, and exact: `measure` "entropy" composites -log p and
    -log(1 - p), and d is the cross-entropy; "error" composites p, and d = p (1 - t) + (1 - p) t, the chance that a coin of
    probability p and one of probability t differ. With many thresholds "error" is the mean of |c_i - C|.
    For small deviations of a bit the entropy is (p - t)^2 / (2 t (1 - t)) and a constant, `ray_variance` with another weight; for
    large ones it grows more slowly, and the error slower still.

    `code`: of the labels. None: the model's own, or thermometer with 4 thresholds where the model has no code. If it is
    given, codes are computed from the base colours. `eps`: probabilities are squeezed into [eps, 1 - eps], affinely, so
    that no word is impossible and every logit keeps its gradient. `turns`: each step looks at one of the K bits, the next
    step at the next one. `every` k: it acts at every k-th step, with k times its weight.
    """

    weight: float = 0.3
    start: float = 0.0
    stop: float = 1.0
    every: PositiveInt = 1
    measure: Literal["entropy", "error"] = "entropy"
    code: Annotated[TargetCode | None, kind_in("nfc_gs.codes")] = None
    eps: float = 0.02
    turns: bool = True

    def planes(self, appearance: Appearance) -> Float[Tensor, "N P"]:
        """What is composited of every Gaussian, [N 3], [N 3 K], or two of them side by side."""
        if self.code is not None or isinstance(appearance.code, Identity):
            return self._costs(self._words(appearance.base, appearance))
        logits = appearance.colour_logits
        if self.turns:
            logits = logits[..., self._bit(appearance)].contiguous()
        return self._costs(appearance.code.probabilities(logits))

    def background(self, colour: Float[Tensor, "3"], appearance: Appearance) -> Float[Tensor, " P"]:
        """The same of the background."""
        return self._costs(self._words(colour, appearance)[None]).squeeze(0)

    def __call__(self, comparison: Comparison) -> Float[Tensor, ""]:
        """The loss, unweighted."""
        labels = self._words(comparison.target_rgb, comparison.appearance).flatten(2)
        planes = comparison.planes["ray_code"]
        if self.measure == "error":
            return masked_mean(planes + labels * (1 - 2 * planes), comparison.mask)
        if_one, if_zero = planes.chunk(2, -1)
        return masked_mean(labels * if_one + (1 - labels) * if_zero, comparison.mask)

    def _costs(self, probabilities: Float[Tensor, "N *rest"]) -> Float[Tensor, "N P"]:
        flat = probabilities.flatten(1)
        if self.measure == "error":
            return flat
        squeezed = self.eps + (1 - 2 * self.eps) * flat
        return torch.cat([-squeezed.log(), -torch.log1p(-squeezed)], 1)

    def _words(self, values: Float[Tensor, "*shape"], appearance: Appearance) -> Tensor:
        code = label_code(self.code, appearance.code)
        return code.encode_bit(values, self._bit(appearance)) if self.turns else code.encode(values)

    def _bit(self, appearance: Appearance) -> int:
        return bit_in_turn(label_code(self.code, appearance.code), appearance.step, self.every)


Spec = RayCode
