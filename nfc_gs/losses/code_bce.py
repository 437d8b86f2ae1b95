"""Cross-entropy between rendered code probabilities and the encoded photograph: this project's classification loss."""

from typing import Annotated

from jaxtyping import Float
from torch import Tensor

from nfc_gs.codes.base import TargetCode
from nfc_gs.codes.identity import Identity
from nfc_gs.codes.thermometer import Thermometer
from nfc_gs.config import kind_in, spec
from nfc_gs.losses.base import Appearance, Comparison, PlaneLoss, mean_cross_entropy


@spec
class CodeBCE(PlaneLoss):
    """BCE per channel between composited probabilities and soft labels, mean over pixels and channels x K.

    Every Gaussian's view-independent code is composited with the same weights as its colour, over the code of the
    background. A blend's ordinal code differs from the code of the blended colour, so the loss makes the Gaussians
    along a ray agree.

    `code`: the code of the labels. None: the model's own, or thermometer with 4 thresholds where the model has no code.
    If it is given, the Gaussians' codes are computed from their base colours by `encode`, which must then be
    differentiable: a soft thermometer, or identity. `eps`: beyond [eps, 1 - eps] the loss goes on as a straight line.
    `turns`: each step composites and classifies one of the K bits, the next step the next one: the same loss in the mean
    over K steps, at the price of 3 planes instead of 3 K.
    """

    weight: float = 0.3
    start: float = 0.0
    stop: float = 0.6
    code: Annotated[TargetCode | None, kind_in("nfc_gs.codes")] = None
    eps: float = 0.02
    turns: bool = True

    def __post_init__(self) -> None:
        soft = isinstance(self.code, Thermometer) and self.code.soft
        if self.code is not None and not soft and not isinstance(self.code, Identity):
            raise ValueError("code must be a soft thermometer or identity: the labels of others have no gradient")

    def planes(self, appearance: Appearance) -> Float[Tensor, "N P"]:
        """Code probabilities [N 3 K] of the base colours, or [N 3] of the bit whose turn it is, side by side."""
        if self._from_colours(appearance.code):
            return self._words(appearance.base, appearance).flatten(1)
        logits = appearance.colour_logits
        if self.turns:
            # A copy of its own: every third number would be read again and again otherwise.
            logits = logits[..., self._bit(appearance)].contiguous()
        return appearance.code.probabilities(logits).flatten(1)

    def background(self, colour: Float[Tensor, "3"], appearance: Appearance) -> Float[Tensor, " P"]:
        """The code of the background."""
        return self._words(colour, appearance).flatten()

    def __call__(self, comparison: Comparison) -> Float[Tensor, ""]:
        """The loss, unweighted."""
        labels = self._words(comparison.target_rgb, comparison.appearance).flatten(2)
        return mean_cross_entropy(comparison.planes["code_bce"], labels, comparison.mask, self.eps)

    def _from_colours(self, code: TargetCode) -> bool:
        return self.code is not None or isinstance(code, Identity)

    def _words(self, values: Float[Tensor, "*shape"], appearance: Appearance) -> Tensor:
        """Labels [*shape K], or [*shape] of the bit whose turn it is."""
        code = self._labels(appearance.code)
        return code.encode_bit(values, self._bit(appearance)) if self.turns else code.encode(values)

    def _bit(self, appearance: Appearance) -> int:
        return appearance.step % self._labels(appearance.code).width

    def _labels(self, code: TargetCode) -> TargetCode:
        if self.code is not None:
            return self.code
        return Thermometer(bits=4) if isinstance(code, Identity) else code


Spec = CodeBCE
