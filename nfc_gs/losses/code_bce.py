"""Cross-entropy between rendered code probabilities and the encoded photograph: this project's classification loss."""

from collections.abc import Callable
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nfc_gs.codes.base import TargetCode
from nfc_gs.codes.identity import Identity
from nfc_gs.codes.thermometer import Thermometer
from nfc_gs.config import ConfigError, PositiveFloat, PositiveInt, kind_in, spec
from nfc_gs.core.clipping import beyond, clipped, noise_of
from nfc_gs.core.sums import RowSum, compiled
from nfc_gs.kernels.entropy import Ramp
from nfc_gs.losses.base import (
    Appearance,
    Comparison,
    PlaneLoss,
    bit_in_turn,
    entropy_rows,
    label_code,
    mean_cross_entropy,
)


@spec
class CodeBCE(PlaneLoss):
    """BCE per channel between composited probabilities and soft labels, mean over pixels and channels x K.

    Every Gaussian's view-independent code is composited with the same weights as its colour, over the code of the
    background. A blend's ordinal code differs from the code of the blended colour, so the loss makes the Gaussians
    along a ray agree.

    `code`: the code of the labels. None: the model's own, or thermometer with 4 thresholds where the model has no code.
    If it is given, the Gaussians' codes are computed from their base colours by `encode`, which must then be
    differentiable: a soft thermometer, or identity. `eps`: beyond [eps, 1 - eps] the loss goes on as a straight line.
    `censored`: a photograph's 0 and 1 are where noise or light was clipped, so they say only "at most 0" and "at least 1".
    Levels j of a thermometer that lie within are known as before: z >= 1 passes all thresholds. The last level, which is
    K z - (K - 1) and goes on beyond 1, is known to be at least 1; its label is its mean given that and the render,
    p + K s h((1 - p) / (K s)) >= 1, where p is the rendered level (no gradient goes through a label), s the standard
    deviation of the noise and h = phi / (1 - Phi) the normal hazard; and the first level's label where the photograph is 0
    is p - K s h(p / (K s)) <= 0. This is the E step of a Tobit regression (`nfc_gs.core.clipping`). Without noise the
    labels are 1 and 0 as ever; with noise their mean over photographs of a white surface is 1, while that of clipped
    labels is 1 - K s / sqrt(2 pi). `noise`: s, of values in [0, 1]. None: the root mean square of rgb - photograph, of the
    numbers of this picture that are not clipped.

    `turns`: each step composites and classifies one of the K bits, the next step the next one: the same loss in the mean
    over K steps, at the price of 3 planes instead of 3 K. `every` k: it acts at every k-th step, with k times its weight.
    """

    weight: float = 0.3
    start: float = 0.0
    stop: float = 0.6
    every: PositiveInt = 1
    code: Annotated[TargetCode | None, kind_in("nfc_gs.codes")] = None
    eps: float = 0.02
    turns: bool = True
    censored: bool = False
    noise: PositiveFloat | None = None

    def __post_init__(self) -> None:
        if self.code is not None and not _ordinal(self.code):
            raise ValueError("code must be a soft thermometer or identity: the labels of others have no gradient")

    def planes(self, appearance: Appearance) -> Float[Tensor, "N P"]:
        """Code probabilities [N 3 K] of the base colours, or [N 3] of the bit whose turn it is, side by side.

        Raises:
            ConfigError: `censored` with a code that has no level that goes on beyond the ends.
        """
        if self.censored and not _ordinal(label_code(self.code, appearance.code)):
            raise ConfigError(
                "losses.code_bce: censored=true needs a code of soft levels, and this model's has none; set "
                "losses.code_bce.code.kind=thermometer"
            )
        if self._from_colours(appearance.code):
            return self._words(appearance.base, appearance).flatten(1)
        if self.turns:
            return appearance.code.probability(appearance.colour_logits, self._bit(appearance))
        return appearance.code.probabilities(appearance.colour_logits).flatten(1)

    def background(self, colour: Float[Tensor, "3"], appearance: Appearance) -> Float[Tensor, " P"]:
        """The code of the background."""
        return self._words(colour, appearance).flatten()

    def __call__(self, comparison: Comparison) -> Float[Tensor, ""]:
        """The loss, unweighted."""
        return mean_cross_entropy(comparison.planes["code_bce"], self._labels(comparison), comparison.mask, self.eps)

    def by_rows(self, comparison: Comparison) -> RowSum | None:
        """For float32 on a CPU."""
        planes, target = comparison.planes["code_bce"], comparison.target_rgb
        if not compiled(planes, target):
            return None
        code = label_code(self.code, comparison.appearance.code)
        ramp = code.ramp(self._bit(comparison.appearance)) if self.turns and not self.censored else None
        if ramp is not None:
            # The kernel makes the labels of what it reads anyway.
            return entropy_rows(planes, target, comparison.mask, self.eps, Ramp.of(*ramp, 0, 1))
        return entropy_rows(planes, self._labels(comparison), comparison.mask, self.eps)

    def _labels(self, comparison: Comparison) -> Float[Tensor, "H W P"]:
        """Those of the planes."""
        labels = self._words(comparison.target_rgb, comparison.appearance)
        if self.censored:
            levels = comparison.planes["code_bce"].detach().view_as(labels)
            labels = self._unclipped(labels, levels, comparison)
        return labels.flatten(2)

    def _unclipped(self, labels: Tensor, levels: Tensor, comparison: Comparison) -> Tensor:
        """The labels [H W 3 K], or [H W 3] of the bit whose turn it is, given the rendered levels, with those of the end
        levels where the photograph is clipped replaced by what they may have been.
        """
        width = label_code(self.code, comparison.appearance.code).width
        bit = self._bit(comparison.appearance)
        if self.turns and 0 < bit < width - 1:
            return labels
        rgb, target = comparison.rgb, comparison.target_rgb
        noise = width * (noise_of(rgb, target, comparison.mask) if self.noise is None else self.noise)
        labels = labels.clone()
        low, high = clipped(target)
        if not self.turns or bit == width - 1:
            known, level = (labels, levels) if self.turns else (labels[..., -1], levels[..., -1])
            _replace(known, high, level, lambda p: p + beyond(1 - p, noise))
        if not self.turns or bit == 0:
            known, level = (labels, levels) if self.turns else (labels[..., 0], levels[..., 0])
            _replace(known, low, level, lambda p: p - beyond(p, noise))
        return labels

    def _from_colours(self, code: TargetCode) -> bool:
        return self.code is not None or isinstance(code, Identity)

    def _words(self, values: Float[Tensor, "*shape"], appearance: Appearance) -> Tensor:
        """Labels [*shape K], or [*shape] of the bit whose turn it is."""
        code = label_code(self.code, appearance.code)
        return code.encode_bit(values, self._bit(appearance)) if self.turns else code.encode(values)

    def _bit(self, appearance: Appearance) -> int:
        return bit_in_turn(label_code(self.code, appearance.code), appearance.step, self.every)


def _replace(
    labels: Tensor, chosen: Bool[Tensor, "*shape"], levels: Tensor, change: Callable[[Tensor], Tensor]
) -> None:
    """Puts changed levels where they are chosen, in place."""
    if labels.device.type == "cpu":
        # They are few, and dear to work out.
        labels[chosen] = change(levels[chosen])
    else:
        # To pick them out a device would be waited for.
        labels.copy_(torch.where(chosen, change(levels), labels))


def _ordinal(code: TargetCode) -> bool:
    """Whether its labels are differentiable levels, the last of which grows with the value up to the end."""
    return isinstance(code, Identity) or (isinstance(code, Thermometer) and code.soft)


Spec = CodeBCE
