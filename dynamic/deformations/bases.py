"""A few shared rigid motions, blended: the whole scene moves like a body with bones."""

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable

from dynamic.fields.waking import waking_rates
from dynamic.kernels import roughness, skinning, splines
from nfc_gs.config import NonNegativeFloat, PositiveFloat, PositiveInt, Share, spec
from nfc_gs.core.gaussians import Gaussians, Population
from nfc_gs.core.rotations import quats_to_matrices
from nfc_gs.core.transfer import sent
from nfc_gs.deformations.base import Deformation, DeformationField, Moved
from nfc_gs.kernels.threads import part, share, thread_count

# Bones stand on Gaussians at least this opaque.
OPAQUE = 0.2
# Bones that are each other's neighbours: for their reach, and for the rigidity penalty.
REACH_NEIGHBOURS = 3
RIGID_NEIGHBOURS = 4
# More bones than this cost more than a Gaussian has: each Gaussian has a weight, and two moments of it, for each bone.
BONES_MAX = 1024
# The bones' gradients are sums over so many stretches of Gaussians, whatever the number of threads.
STRETCHES = 32
# A cubic spline has four control points at least.
CONTROLS_MIN = 4


class Skeleton(DeformationField):
    """M bones, each with a rigid motion of its own over time, and for each Gaussian a softmax over the bones.

    Bone m turns about its centre c_m: x -> R_m(t) (x - c_m) + c_m + d_m(t). A Gaussian follows the weighted mean of these
    maps (linear blend skinning), its orientation the weighted mean of the quaternions. d_m and q_m are sums of uniform
    cubic B-splines, one for each level of a pyramid of knots; at birth all control points are zero.

    `controls` [rows M 7] are all levels' control points, one level after the other: a translation in units of half the
    box's longest side, then what is added to the quaternion (1, 0, 0, 0).
    """

    centres: Tensor
    reach: Tensor
    awake: Tensor
    sparse: Tensor

    def __init__(self, settings: "Bases", bounds: Float[Tensor, "2 3"], num_times: int) -> None:
        super().__init__()
        self.settings = settings
        self.unit = 0.5 * float((bounds[1] - bounds[0]).max())
        self.levels = sorted({max(CONTROLS_MIN, round(num_times / every)) for every in settings.times_per_knot})
        self.controls = nn.Parameter(torch.zeros(sum(self.levels), settings.bones, 7))
        self.register_buffer("centres", torch.zeros(settings.bones, 3))
        self.register_buffer("reach", torch.ones(()))
        self.register_buffer("awake", torch.zeros((), dtype=torch.bool))
        self.register_buffer("sparse", torch.zeros((), dtype=torch.bool))

    def forward(self, gaussians: Gaussians, time: float) -> Moved:
        """The Gaussians where their bones carry them; sizes, opacities and colours stay."""
        if not self.awake:
            return Moved(gaussians=gaussians)
        bones = pose(self.controls, self.centres, self.unit, self.levels, time)
        keep = self.settings.keep if self.sparse else self.settings.bones
        means, turned = skin(gaussians.motion, bones, gaussians.means, gaussians.quats, keep)
        return Moved(gaussians=replace(gaussians, means=means, quats=turned))

    def motions(self, time: float) -> tuple[Float[Tensor, "M 3 3"], Float[Tensor, "M 3"], Float[Tensor, "M 4"]]:
        """Each bone's rotation about its centre, its translation in world units, and the rotation as a unit quaternion."""
        return motions_plain(self.controls, self.unit, self.levels, time)

    def weights(self, gaussians: Gaussians) -> tuple[Int[Tensor, "N K"], Float[Tensor, "N K"]]:
        """The bones that each Gaussian hangs on, most important first, and its weights, which sum to one.

        K is the number of bones kept: all of them before the weights are made sparse.
        """
        logits, bones = gaussians.motion.detach().topk(self.settings.keep if self.sparse else self.settings.bones)
        return bones, logits.softmax(1)

    @torch.no_grad()
    def advance(self, population: Population, progress: float) -> None:
        """Wakes at the end of the warm-up, when the bones are placed; later leaves each Gaussian its largest weights."""
        if not self.awake and progress >= self.settings.warm_up and len(population.gaussians) > 0:
            means = population.gaussians.means
            opaque = means[population.opacities > OPAQUE]
            self.centres.copy_(
                farthest_points(opaque if len(opaque) > self.settings.bones else means, len(self.centres))
            )
            apart = torch.cdist(self.centres, self.centres)
            nearest = apart.topk(min(1 + REACH_NEIGHBOURS, len(apart)), largest=False).values[:, 1:]
            # A lone bone has no neighbours and reaches everything.
            mean = float(nearest.mean()) if nearest.numel() else self.unit
            self.reach.fill_(max(self.settings.reach * mean, 1e-6 * self.unit))
            squares = (means[:, None] - self.centres).square().sum(2)
            population.gaussians.motion.copy_(-squares / (2 * self.reach**2))
            self.awake.fill_(True)
        if progress >= self.settings.sparse_from:
            self.sparse.fill_(True)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The control points."""
        return {"splines": [self.controls]}

    def rates(self, progress: float) -> dict[str, float]:
        """Both fall exponentially from the end of the warm-up on, after an even rise."""
        settings = self.settings
        rates = {"splines": settings.rate, "motion": settings.weights_rate}
        return waking_rates(rates, progress, settings.warm_up, settings.rate_final, settings.rise)

    def penalties(self, gaussians: Gaussians, time: float) -> dict[str, Tensor]:
        """See `Bases`."""
        penalties: dict[str, Tensor] = {}
        if not self.awake:
            return penalties
        if self.settings.acceleration > 0:
            penalties["acceleration"] = self.settings.acceleration * acceleration(self.controls, self.levels)
        if self.settings.rigidity > 0 and len(self.centres) > 1:
            penalties["rigidity"] = self.settings.rigidity * self._rigidity(time)
        return penalties

    def _rigidity(self, time: float) -> Float[Tensor, ""]:
        """As rigid as possible (Sorkine and Alexa 2007): how badly a bone's rotation says where its neighbours are."""
        rotations, translations, _ = self.motions(time)
        apart, neighbours = torch.cdist(self.centres, self.centres).topk(
            min(1 + RIGID_NEIGHBOURS, len(self.centres)), largest=False
        )
        apart, neighbours = apart[:, 1:], neighbours[:, 1:]
        moved = self.centres + translations
        edges = self.centres[neighbours] - self.centres[:, None]
        moved_edges = moved[neighbours] - moved[:, None]
        nearness = torch.exp(-apart.square() / (2 * (1.5 * self.reach) ** 2))
        return (nearness * (moved_edges - edges @ rotations.mT).square().sum(2)).mean() / self.unit**2

    def scalars(self) -> dict[str, float]:
        """Root mean squares of the control points: of translations in world units, and of what is added to quaternions."""
        controls = self.controls.detach()
        return {
            "translation_controls": self.unit * float(controls[..., :3].square().sum(2).mean().sqrt()),
            "rotation_controls": float(controls[..., 3:].square().sum(2).mean().sqrt()),
        }


def spline_span(time: float, controls: int) -> tuple[int, tuple[float, float, float, float]]:
    """The control points of a uniform cubic B-spline that count at a time in [0, 1]: the first, and all four's weights."""
    spans = controls - 3
    position = min(max(time, 0.0), 1.0) * spans
    span = min(int(position), spans - 1)
    u = position - span
    return span, (
        (1 - u) ** 3 / 6,
        (3 * u**3 - 6 * u**2 + 4) / 6,
        (-3 * u**3 + 3 * u**2 + 3 * u + 1) / 6,
        u**3 / 6,
    )


def spline_weights(time: float, controls: int) -> Float[Tensor, " K"]:
    """The weights of all control points of a uniform cubic B-spline at a time in [0, 1]; at most four are not zero."""
    first, some = spline_span(time, controls)
    weights = torch.zeros(controls, dtype=torch.float64)
    weights[first : first + 4] = torch.tensor(some, dtype=torch.float64)
    return weights


def motions_plain(
    controls: Float[Tensor, "rows M 7"], unit: float, levels: list[int], time: float
) -> tuple[Float[Tensor, "M 3 3"], Float[Tensor, "M 3"], Float[Tensor, "M 4"]]:
    """Each bone's rotation, translation in world units, and rotation as a unit quaternion, at a time."""
    basis = sent(torch.cat([spline_weights(time, level) for level in levels]).to(controls.dtype), controls.device)
    sums = (basis @ controls.flatten(1)).unflatten(0, (-1, 7))
    # Around the upright one, 1 0 0 0.
    quats = nn.functional.normalize(torch.cat([1 + sums[:, 3:4], sums[:, 4:]], 1), dim=-1)
    return quats_to_matrices(quats), unit * sums[:, :3], quats


def pose(
    controls: Float[Tensor, "rows M 7"], centres: Float[Tensor, "M 3"], unit: float, levels: list[int], time: float
) -> Float[Tensor, "M 16"]:
    """The bones at a time, as `skin` wants them. Differentiable in the control points, and in nothing else.

    Compiled for float32 on a CPU, plain torch elsewhere.

    Args:
        controls: of all levels, one level after the other; see `Skeleton`.
        centres: what each bone turns about.
        unit: of translations.
        levels: how many control points each level has.
        time: in [0, 1].
    """
    if controls.device.type == "cpu" and controls.dtype == torch.float32:
        return _Pose.apply(controls, centres, unit, levels, time)
    return pose_plain(controls, centres, unit, levels, time)


def pose_plain(
    controls: Float[Tensor, "rows M 7"], centres: Float[Tensor, "M 3"], unit: float, levels: list[int], time: float
) -> Float[Tensor, "M 16"]:
    """The same as `pose`, in plain torch on any device and in any precision."""
    rotations, translations, quats = motions_plain(controls, unit, levels, time)
    shifts = centres - (rotations @ centres[:, :, None])[:, :, 0] + translations
    return torch.cat([rotations.flatten(1), shifts, quats], 1)


def acceleration(controls: Float[Tensor, "rows M 7"], levels: list[int]) -> Float[Tensor, ""]:
    """The sum over the levels of K^2 / 100 times the mean square second difference of their K control points.

    Steps between neighbours that are K times shorter in time may be more abrupt, but not by as much as a true
    acceleration, whose square grows by K^4, would ask. Compiled for float32 on a CPU, plain torch elsewhere.
    """
    if controls.device.type == "cpu" and controls.dtype == torch.float32:
        return _Acceleration.apply(controls, levels)
    return acceleration_plain(controls, levels)


def acceleration_plain(controls: Float[Tensor, "rows M 7"], levels: list[int]) -> Float[Tensor, ""]:
    """The same as `acceleration`, in plain torch on any device and in any precision."""
    terms = [
        (level / 10) ** 2 * points.diff(n=2, dim=0).square().sum(2).mean()
        for level, points in zip(levels, controls.split(levels), strict=True)
    ]
    return torch.stack(terms).sum()


def farthest_points(points: Float[Tensor, "P 3"], count: int) -> Float[Tensor, "M 3"]:
    """`count` of the points, spread out: the first the farthest from the mean, each next the farthest from those before.

    Points are repeated where there are fewer than `count`.
    """
    nearest = (points - points.mean(0)).square().sum(1)
    chosen = []
    for number in range(count):
        index = int(nearest.argmax())
        chosen.append(index)
        squares = (points - points[index]).square().sum(1)
        nearest = squares if number == 0 else torch.minimum(nearest, squares)
    return points[chosen]


def skin(
    logits: Float[Tensor, "N M"],
    bones: Float[Tensor, "M 16"],
    means: Float[Tensor, "N 3"],
    quats: Float[Tensor, "N 4"],
    keep: int,
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 4"]]:
    """Means and quaternions carried along by the bones, weighted by the softmax of the `keep` largest logits.

    Differentiable in all four. Compiled for float32 on a CPU, plain torch elsewhere.

    Args:
        logits: of the bones' weights.
        bones: for each bone a rotation matrix by rows, a translation, and the rotation as a unit quaternion wxyz.
        means: world units.
        quats: wxyz, of any length; what comes back has another length.
        keep: the number of bones that move a Gaussian, at most M.
    """
    if means.device.type == "cpu" and means.dtype == torch.float32:
        return _Skin.apply(logits, bones, means, quats, keep)
    return skin_plain(logits, bones, means, quats, keep)


def skin_plain(
    logits: Float[Tensor, "N M"],
    bones: Float[Tensor, "M 16"],
    means: Float[Tensor, "N 3"],
    quats: Float[Tensor, "N 4"],
    keep: int,
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 4"]]:
    """The same as `skin`, in plain torch on any device and in any precision."""
    if keep < logits.shape[1]:
        kept = logits.detach().topk(keep).indices
        logits = torch.full_like(logits, -math.inf).scatter(1, kept, logits.gather(1, kept))
    blends = logits.softmax(1) @ bones
    moved = (blends[:, :9].unflatten(1, (3, 3)) @ means[:, :, None])[:, :, 0] + blends[:, 9:12]
    return moved, multiply(blends[:, 12:], quats)


def multiply(left: Float[Tensor, "*shape 4"], right: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 4"]:
    """The product of quaternions wxyz: the rotation `right`, then `left`."""
    aw, ax, ay, az = left.unbind(-1)
    bw, bx, by, bz = right.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


class _Pose(torch.autograd.Function):
    @staticmethod
    def forward(ctx, controls, centres, unit, levels, time):
        rows: list[int] = []
        shares: list[float] = []
        first = 0
        for level in levels:
            span, weights = spline_span(time, level)
            rows += range(first + span, first + span + 4)
            shares += weights
            first += level
        ctx.inputs = (
            _array(controls), np.array(rows), np.array(shares, np.float32), _array(centres), np.float32(unit)
        )  # fmt: skip
        bones = np.empty((controls.shape[1], skinning.NUMBERS), np.float32)
        splines.pose(*ctx.inputs, bones)
        return torch.from_numpy(bones)

    @staticmethod
    @once_differentiable
    def backward(ctx, by_bones):
        by_controls = np.zeros_like(ctx.inputs[0])
        splines.pose_backward(*ctx.inputs, _array(by_bones), by_controls)
        return torch.from_numpy(by_controls), None, None, None, None


class _Acceleration(torch.autograd.Function):
    @staticmethod
    def forward(ctx, controls, levels):
        rows, bones = _array(controls).reshape(1, len(controls), -1), controls.shape[1]
        gradient = np.zeros_like(rows)
        total, first = 0.0, 0
        for level in levels:
            here = slice(first, first + level)
            weight = np.float32((level / 10) ** 2 / ((level - 2) * bones))
            total += roughness.roughness(rows[:, here], weight, gradient[:, here])
            first += level
        ctx.gradient = torch.from_numpy(gradient).view_as(controls)
        return controls.new_tensor(total)

    @staticmethod
    @once_differentiable
    def backward(ctx, by_value):
        return by_value * ctx.gradient, None


class _Skin(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, bones, means, quats, keep):
        count, num_bones = logits.shape
        blocks, tall = skinning.padded(count) // skinning.LANES, skinning.padded(num_bones)
        threads = thread_count()
        padded = np.zeros((tall, skinning.NUMBERS), np.float32)
        padded[:num_bones] = _array(bones)
        means, quats = _array(means), _array(quats)
        inputs = (_array(logits), padded, means, quats, keep)
        weights = np.empty((blocks, tall, skinning.LANES), np.float32)
        blends = np.empty((blocks, skinning.NUMBERS, skinning.LANES), np.float32)
        moved, turned = np.empty_like(means), np.empty_like(quats)
        share(
            lambda number: skinning.forward(*part(blocks, number, threads), *inputs, weights, blends, moved, turned),
            threads,
        )
        ctx.num_bones, ctx.saved = num_bones, (padded, means, quats, weights, blends)
        return torch.from_numpy(moved), torch.from_numpy(turned)

    @staticmethod
    @once_differentiable
    def backward(ctx, by_moved, by_turned):
        padded, means, quats, weights, blends = ctx.saved
        threads = thread_count()
        by_logits = np.empty((len(means), ctx.num_bones), np.float32)
        by_means, by_quats = np.empty_like(means), np.empty_like(quats)
        by_bones = np.zeros((STRETCHES, *padded.shape), np.float32)
        saved, incoming = (padded, means, quats, weights, blends), (_array(by_moved), _array(by_turned))
        share(
            lambda number: skinning.backward(
                *part(STRETCHES, number, threads), *saved, *incoming, by_logits, by_bones, by_means, by_quats
            ),
            threads,
        )
        by_bones = by_bones.sum(0)[: ctx.num_bones]
        return *map(torch.from_numpy, (by_logits, by_bones, by_means, by_quats)), None


@spec
class Bases(Deformation):
    """Shared SE(3) spline trajectories with learned skinning weights (as Shape of Motion's bases, Wang et al. 2024).

    Penalties: `acceleration` times the sum over the levels of K^2 / 100 times the mean square of the second differences
    of a level's K control points; `rigidity` times the mean square, over neighbouring bones and in units of half the
    box's longest side, of the difference between where a bone's neighbour is and where the bone's own rotation would
    carry it (nearer ones count more).

    Attributes:
        bones: M.
        times_per_knot: the pyramid; a level has a control point for every so many of the photographs' times.
        warm_up: the share of the training before which nothing moves.
        keep: how many bones move a Gaussian ...
        sparse_from: ... from this share of the training on; all of them before.
        reach: a weight at birth falls as a normal distribution of the distance to the bone, with this standard deviation
            in units of the bones' mean distance to their nearest three.
        rate: Adam's learning rate of the splines, whose translations are in units of half the box's longest side.
        weights_rate: Adam's learning rate of the skinning weights' logits.
        rate_final: what both rates fall to, as a share of themselves.
        rise: the share of the training in which both rates rise from zero, after the warm-up.
    """

    bones: PositiveInt = 32
    times_per_knot: tuple[PositiveFloat, ...] = (16, 8, 4, 2)
    warm_up: Share = 0.05
    keep: PositiveInt = 4
    sparse_from: Share = 0.5
    reach: PositiveFloat = 0.7
    rate: PositiveFloat = 3e-3
    weights_rate: PositiveFloat = 1e-2
    rate_final: PositiveFloat = 0.05
    rise: Share = 0.005
    acceleration: NonNegativeFloat = 1e-2
    rigidity: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        if self.bones > BONES_MAX:
            raise ValueError(
                f"bones ({self.bones}) must be at most {BONES_MAX}: each Gaussian has a weight for each bone"
            )
        if not self.times_per_knot:
            raise ValueError("times_per_knot must name one level at least")
        if self.keep > self.bones:
            raise ValueError(f"keep ({self.keep}) must be at most bones ({self.bones})")
        if self.warm_up >= 1:
            raise ValueError("warm_up must be less than 1")

    @property
    def width(self) -> int:
        """A logit for each bone."""
        return self.bones

    def init(self, bounds: Float[Tensor, "2 3"], num_times: int, generator: Generator) -> Skeleton:
        """Bones that have no place and no motion yet; nothing is drawn from the generator."""
        return Skeleton(self, bounds, num_times)


Spec = Bases
