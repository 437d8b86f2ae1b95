"""What every loss is, and what it looks at."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfc_gs.codes.base import TargetCode
from nfc_gs.codes.identity import Identity
from nfc_gs.codes.thermometer import Thermometer
from nfc_gs.core.distractors import Distractors
from nfc_gs.core.sums import RowSum, compiled, rows_of, weighted_total, weights_of
from nfc_gs.kernels import entropy, pictures, rows
from nfc_gs.kernels.threads import thread_count


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """The Gaussians' values as one camera sees them, before they are composited: what extra planes are made from.

    `colours` decoded and shaded, not clamped above; `base` the view-independent part alone; `colour_logits` [N 3 K] and
    `code` as in the model; `step` the training step the picture is drawn for, from 1, by which losses may take turns; `view`
    the number of the training view, and `memory` what a `MemoryLoss` knows of the Gaussians, by kind.
    """

    colours: Float[Tensor, "N 3"]
    base: Float[Tensor, "N 3"]
    colour_logits: Float[Tensor, "N 3 K"]
    code: TargetCode
    step: int
    view: int = 0
    memory: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A render beside the photograph it should be.

    `rgb` not clamped; `target_rgb` in [0, 1], composited over the same background; `mask` true where a pixel counts;
    `planes` what a `PlaneLoss` asked to be composited, by the loss's kind; `progress` in [0, 1], the share of the
    training that is done; `opacities` in [0, 1] and `scales` in world units, of all Gaussians; `gather` as in
    `Rendering`; `memory` the per-Gaussian tensors of a `MemoryLoss`, by kind, updated in place.
    """

    rgb: Float[Tensor, "H W 3"]
    target_rgb: Float[Tensor, "H W 3"]
    alpha: Float[Tensor, "H W"]
    target_alpha: Float[Tensor, "H W"] | None
    mask: Bool[Tensor, "H W"] | None
    appearance: Appearance
    opacities: Float[Tensor, " N"]
    scales: Float[Tensor, "N 3"]
    planes: dict[str, Tensor]
    memory: dict[str, dict[str, Tensor]]
    gather: Callable[[Tensor], tuple[Tensor, Tensor]]
    progress: float
    step: int

    @staticmethod
    def of_field(
        rgb: Float[Tensor, "H W 3"],
        target_rgb: Float[Tensor, "H W 3"],
        *,
        code: TargetCode,
        planes: dict[str, Tensor],
        mask: Bool[Tensor, "H W"] | None = None,
        progress: float = 0.0,
        step: int = 1,
    ) -> "Comparison":
        """A render of any other field, of which no Gaussians are known; a few rays [R 3] are a picture [1 R 3].

        Args:
            code: of the labels.
            planes: what was rendered for losses that ask for more than colours, by their kinds.
        """

        def gather(picture: Tensor) -> tuple[Tensor, Tensor]:
            return picture.new_zeros(0, picture.shape[-1]), picture.new_zeros(0)

        none = rgb.new_zeros(0, 3)
        return Comparison(
            rgb=rgb,
            target_rgb=target_rgb,
            alpha=torch.ones_like(rgb[..., 0]),
            target_alpha=None,
            mask=mask,
            appearance=Appearance(
                colours=none, base=none, colour_logits=rgb.new_zeros(0, 3, code.width), code=code, step=step
            ),
            opacities=rgb.new_zeros(0),
            scales=none,
            planes=planes,
            memory={},
            gather=gather,
            progress=progress,
            step=step,
        )


def completed(comparison: Comparison, distractors: Distractors) -> tuple[Comparison, Float[Tensor, "H W"]]:
    """The comparison with a photograph that is the render where it shows something else, and each pixel's chance not to."""
    found = distractors(
        comparison.rgb, comparison.alpha, comparison.target_rgb, comparison.target_alpha, comparison.mask
    )
    return replace(comparison, target_rgb=found.rgb, target_alpha=found.alpha), found.chances


class LossTerm(abc.ABC):
    """A weighted scalar of a comparison; it acts while `start` <= progress < `stop`, as shares of all steps.

    Of those steps it takes every `every`-th, with `every` times its weight: in the mean the same, for a part of the cost.
    """

    weight: float
    start: float
    stop: float
    every: int = 1

    def active(self, progress: float) -> bool:
        """Whether it acts at this share of the training."""
        return self.weight != 0 and self.start <= progress < self.stop

    def acts(self, progress: float, step: int) -> bool:
        """Whether it acts at this very step, from 1."""
        return self.active(progress) and step % self.every == 0

    @abc.abstractmethod
    def __call__(self, comparison: Comparison) -> Float[Tensor, ""]:
        """The loss, unweighted."""

    def by_rows(self, comparison: Comparison) -> RowSum | None:
        """The same as a sum over a picture's rows, where a compiled kernel finds it so; `weighted` takes all such at once."""
        return None


class PlaneLoss(LossTerm):
    """A loss that needs more than colour composited: it says which planes, and finds them rendered in `planes`."""

    @abc.abstractmethod
    def planes(self, appearance: Appearance) -> Float[Tensor, "N P"]:
        """Per-Gaussian values to composite beside the colour."""

    @abc.abstractmethod
    def background(self, colour: Float[Tensor, "3"], appearance: Appearance) -> Float[Tensor, " P"]:
        """The same values of the background colour."""


class MemoryLoss(LossTerm):
    """A loss that remembers something of every Gaussian; population edits carry it along."""

    @abc.abstractmethod
    def init(self, num_gaussians: int, code: TargetCode) -> dict[str, Tensor]:
        """The memory at the start, tensors [N ...]."""


def weighted(losses: Mapping[str, LossTerm], comparison: Comparison) -> tuple[dict[str, Tensor], Float[Tensor, ""]]:
    """The losses times their weights, by kind, and their sum; only the sum is sure to be differentiable."""
    weights = {kind: loss.weight * loss.every for kind, loss in losses.items()}
    found = {kind: loss.by_rows(comparison) for kind, loss in losses.items()}
    by_rows = {kind: rows for kind, rows in found.items() if rows is not None}
    terms = {kind: weights[kind] * loss(comparison) for kind, loss in losses.items() if kind not in by_rows}
    parts = list(terms.values())
    if by_rows:
        part, values = weighted_total(list(by_rows.values()), [weights[kind] for kind in by_rows])
        parts.append(part)
        terms |= {kind: part.new_tensor(weights[kind] * value) for kind, value in zip(by_rows, values, strict=True)}
    return {kind: terms[kind] for kind in losses}, parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def label_code(own: TargetCode | None, model: TargetCode) -> TargetCode:
    """The code of a loss's labels: its own, or else the model's, or a thermometer of 4 thresholds where the model has none."""
    if own is not None:
        return own
    return Thermometer(bits=4) if isinstance(model, Identity) else model


def bit_in_turn(code: TargetCode, step: int, every: int) -> int:
    """Which of a word's bits has its turn at a step; of every so many steps alone, so that all bits have theirs."""
    return step // every % code.width


def masked_mean(values: Float[Tensor, "H W *rest"], mask: Bool[Tensor, "H W"] | None) -> Float[Tensor, ""]:
    """The mean over the pixels that count; 0 if none does."""
    if mask is None:
        return values.mean()
    counted = mask.reshape(*mask.shape, *[1] * (values.ndim - 2)).to(values)
    numbers = values[0, 0].numel()
    return (values * counted).sum() / (counted.sum() * numbers).clamp(min=1)


def mean_distance(
    x: Float[Tensor, "H W 3"], y: Float[Tensor, "H W 3"], mask: Bool[Tensor, "H W"] | None, squared: bool
) -> Float[Tensor, ""]:
    """The mean of |x - y|, or of its square, over channels and the pixels that count; 0 if none does.

    Compiled for float32 on a CPU where no gradient to `y` is asked for, plain torch elsewhere.
    """
    if compiled(x, y) and not y.requires_grad:
        return weighted_total([distance_rows(x, y, mask, squared)], [1.0])[0]
    apart = x - y
    return masked_mean(apart.square() if squared else apart.abs(), mask)


def distance_rows(
    x: Float[Tensor, "H W 3"], y: Float[Tensor, "H W 3"], mask: Bool[Tensor, "H W"] | None, squared: bool
) -> RowSum:
    """`mean_distance` for float32 on a CPU, with a gradient to `x` alone."""
    inputs = *rows_of(x, y), weights_of(mask, x.shape[1]), squared
    return RowSum(picture=x, kernel=pictures.distances, inputs=inputs, factor=1 / (3 * _counted(x, mask)))


def _counted(picture: Float[Tensor, "H W *rest"], mask: Bool[Tensor, "H W"] | None) -> int:
    """How many pixels count, at least one."""
    return max(picture.shape[:2].numel() if mask is None else int(mask.sum()), 1)


def cross_entropy(
    probabilities: Float[Tensor, "*shape"], labels: Float[Tensor, "*shape"], eps: float
) -> Float[Tensor, "*shape"]:
    """-t log p - (1 - t) log(1 - p) of every number, with a bounded slope; differentiable in the probabilities alone.

    Beyond [eps, 1 - eps] it goes on along its tangent, so that it is finite for any p, and its slope,
    (c - t) / (c (1 - c)) with c the clamped p, still leads back from the wrong end.
    """
    return _CrossEntropy.apply(probabilities, labels, eps)


def mean_cross_entropy(
    probabilities: Float[Tensor, "H W *rest"],
    labels: Float[Tensor, "H W *rest"],
    mask: Bool[Tensor, "H W"] | None,
    eps: float,
) -> Float[Tensor, ""]:
    """The mean of `cross_entropy` over the pixels that count; 0 if none does. Compiled for float32 on a CPU."""
    if compiled(probabilities, labels):
        return weighted_total([entropy_rows(probabilities, labels, mask, eps)], [1.0])[0]
    return masked_mean(cross_entropy(probabilities, labels, eps), mask)


def entropy_rows(
    probabilities: Float[Tensor, "H W *rest"],
    labels: Float[Tensor, "H W *rest"],
    mask: Bool[Tensor, "H W"] | None,
    eps: float,
    ramp: entropy.Ramp = entropy.AS_THEY_ARE,
) -> RowSum:
    """`mean_cross_entropy` for float32 on a CPU, of labels or, by a ramp, of what they are made of."""
    inputs = *rows_of(probabilities, labels), ramp, weights_of(mask, probabilities.shape[1]), np.float32(eps)
    numbers = _counted(probabilities, mask) * probabilities.shape[2:].numel()
    return RowSum(picture=probabilities, kernel=entropy.sums_of_cross_entropy, inputs=inputs, factor=1 / numbers)


class _CrossEntropy(torch.autograd.Function):
    """`cross_entropy` with its slope found on the way; compiled for float32 on a CPU, where logarithms are dear."""

    @staticmethod
    def forward(ctx, probabilities, labels, eps):  # type: ignore[no-untyped-def]
        if probabilities.device.type == "cpu" and probabilities.dtype == labels.dtype == torch.float32:
            chances, known = probabilities.detach().contiguous(), labels.detach().contiguous()
            result, slope = torch.empty_like(chances), torch.empty_like(chances)
            arrays = [t.view(-1).numpy() for t in (chances, known, result, slope)]
            rows.split(
                entropy.cross_entropy,
                chances.numel(),
                thread_count(),
                *arrays[:2],
                np.float32(eps),
                *arrays[2:],
            )
        else:
            clamped = probabilities.clamp(eps, 1 - eps)
            slope = (clamped - labels) / (clamped * (1 - clamped))
            result = -torch.log1p(-clamped) - labels * clamped.logit() + (probabilities - clamped) * slope
        ctx.save_for_backward(slope)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None
