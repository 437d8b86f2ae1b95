"""Shared rigid motions: against plain torch in float64, closed forms and scipy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

from dynamic.deformations.bases import (
    Bases,
    Skeleton,
    acceleration,
    acceleration_plain,
    farthest_points,
    pose,
    pose_plain,
    skin,
    skin_plain,
    spline_weights,
)
from nfc_gs.core.gaussians import Gaussians
from nfc_gs.kernels.threads import set_thread_count, thread_count
from tests.dynamic.deformations.scenes import BOUNDS, NUM_TIMES, gaussians, population

# Sums of at most 64 float32 products of numbers near one.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}
# Gradients of bones are sums over hundreds of Gaussians.
SUMMED = {"rtol": 1e-4, "atol": 2e-3}
EXACT = {"rtol": 0, "atol": 1e-12}


def awake(settings: Bases, motion: float = 0.0) -> tuple[Skeleton, Gaussians]:
    field = settings.init(BOUNDS, NUM_TIMES, torch.Generator().manual_seed(0))
    some = gaussians(400, settings.width)
    field.advance(population(some), settings.warm_up)
    with torch.no_grad():
        field.controls.add_(motion * torch.randn(field.controls.shape, generator=torch.Generator().manual_seed(1)))
    return field, some


def random_bones(num: int) -> torch.Tensor:
    rotations = Rotation.random(num, rng=np.random.default_rng(0))
    quats = rotations.as_quat()[:, [3, 0, 1, 2]]
    shifts = np.random.default_rng(1).normal(size=(num, 3))
    return torch.from_numpy(np.concatenate([rotations.as_matrix().reshape(num, 9), shifts, quats], 1))


# Whole blocks of sixteen and broken ones, of Gaussians and of bones.
@pytest.mark.parametrize(("num", "bones"), [(300, 24), (304, 32), (1, 1), (17, 3)])
@pytest.mark.parametrize("keep", [1, 4, 99])
def test_the_compiled_skinning_and_its_gradients_equal_plain_torch_in_float64(num: int, bones: int, keep: int) -> None:
    some, keep = gaussians(num, bones), min(keep, bones)
    logits = 3 * torch.randn(num, bones, generator=torch.Generator().manual_seed(2))
    inputs = [logits, random_bones(bones), some.means, some.quats]
    plain = [value.double().clone().requires_grad_() for value in inputs]
    fused = [value.float().clone().requires_grad_() for value in inputs]
    outputs, expected = skin(*fused, keep), skin_plain(*plain, keep)
    for got, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(got.double(), wanted, **CLOSE)
    weights = [torch.randn(num, k, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in (3, 4)]
    sum((w * y).sum() for w, y in zip(weights, expected, strict=True)).backward()
    sum((w.float() * y).sum() for w, y in zip(weights, outputs, strict=True)).backward()
    for got, wanted in zip(fused, plain, strict=True):
        torch.testing.assert_close(got.grad.double(), wanted.grad, **SUMMED)


def test_the_skinning_is_the_same_on_two_threads_but_for_the_order_of_sums() -> None:
    some = gaussians(300, 24)
    inputs = [torch.randn(300, 24, generator=torch.Generator().manual_seed(2)), random_bones(24).float()]
    inputs += [some.means, some.quats]
    found = []
    before = thread_count()
    try:
        for threads in (1, 2):
            set_thread_count(threads)
            leaves = [value.clone().requires_grad_() for value in inputs]
            means, quats = skin(*leaves, 4)
            (means.square().sum() + quats.square().sum()).backward()
            found.append([means.detach(), quats.detach(), *(leaf.grad for leaf in leaves)])
    finally:
        set_thread_count(before)
    for place, (one, two) in enumerate(zip(*found, strict=True)):
        if place == 3:
            torch.testing.assert_close(one, two, **SUMMED)
        else:
            assert torch.equal(one, two)


@pytest.mark.parametrize("time", [0.0, 0.37, 1.0])
def test_the_compiled_pose_and_its_gradient_equal_plain_torch_in_float64(time: float) -> None:
    levels, generator = [4, 9, 25], torch.Generator().manual_seed(4)
    plain = (0.5 * torch.randn(38, 7, 7, dtype=torch.float64, generator=generator)).requires_grad_()
    centres = torch.randn(7, 3, dtype=torch.float64, generator=generator)
    weights = torch.randn(7, 16, dtype=torch.float64, generator=generator)
    fused = plain.detach().float().requires_grad_()
    got, wanted = pose(fused, centres.float(), 1.3, levels, time), pose_plain(plain, centres, 1.3, levels, time)
    torch.testing.assert_close(got.double(), wanted, **CLOSE)
    (got * weights.float()).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(fused.grad.double(), plain.grad, **CLOSE)
    assert torch.autograd.gradcheck(lambda controls: pose_plain(controls, centres, 1.3, levels, time), [plain])


def test_the_compiled_acceleration_and_its_gradient_equal_plain_torch_in_float64() -> None:
    levels = [4, 9, 25]
    plain = torch.randn(38, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    fused = plain.detach().float().requires_grad_()
    got, wanted = acceleration(fused, levels), acceleration_plain(plain, levels)
    torch.testing.assert_close(got.double(), wanted, **CLOSE)
    (0.3 * got).backward()
    (0.3 * wanted).backward()
    torch.testing.assert_close(fused.grad.double(), plain.grad, **CLOSE)


def test_of_equal_logits_as_many_bones_as_asked_are_kept() -> None:
    logits = torch.zeros(2, 20)
    logits[1, [3, 17, 5]] = torch.tensor([2.0, 2.0, 1.0])
    bones = random_bones(20).float()
    means, _ = skin(logits, bones, torch.ones(2, 3), torch.ones(2, 4), 4)
    # By hand: the first four of twenty equal ones; then the two largest, the third, and the first of the seventeen zeros.
    for row, kept in ((0, [0, 1, 2, 3]), (1, [3, 17, 5, 0])):
        blend = logits[row, kept].softmax(0) @ bones[kept]
        torch.testing.assert_close(means[row], blend[:9].reshape(3, 3) @ torch.ones(3) + blend[9:12], **CLOSE)


def test_plain_skinning_has_the_gradients_of_finite_differences() -> None:
    some = gaussians(5, 6).map(torch.Tensor.double)
    logits = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    inputs = [value.requires_grad_() for value in (logits, random_bones(6), some.means, some.quats)]
    for keep in (6, 2):
        assert torch.autograd.gradcheck(lambda *values, keep=keep: skin_plain(*values, keep), inputs)


def test_extreme_logits_give_the_lone_bone_and_no_nan() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-3e4, -3e4, -2e4]])
    bones = random_bones(3).float()
    means, _ = skin(logits, bones, torch.ones(2, 3), torch.ones(2, 4), 3)
    for row, bone in ((0, 0), (1, 2)):
        wanted = bones[bone, :9].reshape(3, 3) @ torch.ones(3) + bones[bone, 9:12]
        torch.testing.assert_close(means[row], wanted, **CLOSE)


def test_spline_weights_are_those_of_scipys_uniform_b_spline() -> None:
    for controls in (4, 7, 50):
        knots = (np.arange(controls + 4) - 3) / (controls - 3)
        for time in (0.0, 0.123, 0.5, 0.999):
            wanted = BSpline.design_matrix(np.array([time]), knots, 3).toarray()[0]
            torch.testing.assert_close(spline_weights(time, controls), torch.from_numpy(wanted), **EXACT)
        torch.testing.assert_close(spline_weights(1.0, controls)[-3:], torch.tensor([1, 4, 1]).double() / 6, **EXACT)


def test_nothing_moves_during_the_warm_up_nor_at_birth() -> None:
    settings = Bases(bones=8)
    field = settings.init(BOUNDS, NUM_TIMES, torch.Generator())
    some = gaussians(100, 8)
    field.advance(population(some), 0.049)
    assert field(some, 0.3).gaussians is some
    assert field.penalties(some, 0.3) == {}
    field.advance(population(some), 0.05)
    moved = field(some, 0.3).gaussians
    torch.testing.assert_close(moved.means, some.means, **CLOSE)
    torch.testing.assert_close(moved.quats, some.quats, **CLOSE)
    assert some.motion.abs().sum() > 0


def test_one_bone_moves_everything_rigidly_about_its_centre() -> None:
    field, some = awake(Bases(bones=1, keep=1, times_per_knot=(100,)))
    turn = Rotation.from_euler("xyz", [0.3, -0.2, 0.5])
    w, x, y, z = turn.as_quat()[[3, 0, 1, 2]]
    # A constant spline: all control points are the same. The quaternion is found by its direction only.
    with torch.no_grad():
        field.controls[:] = torch.tensor([0.1, 0.2, 0.3, 2 * w - 1, 2 * x, 2 * y, 2 * z])
    moved = field(some, 0.37).gaussians
    centre = field.centres[0].double().numpy()
    wanted = turn.apply(some.means.double().numpy() - centre) + centre + 1.3 * np.array([0.1, 0.2, 0.3])
    torch.testing.assert_close(moved.means.double(), torch.from_numpy(wanted), **CLOSE)
    before = Rotation.from_quat(some.quats.double().numpy()[:, [1, 2, 3, 0]])
    after = Rotation.from_quat(moved.quats.double().detach().numpy()[:, [1, 2, 3, 0]])
    assert (after * (turn * before).inv()).magnitude().max() < 1e-6


def test_only_the_largest_weights_are_left_in_the_sparse_phase() -> None:
    field, some = awake(Bases(bones=16), motion=0.1)
    assert field.weights(some)[0].shape == (400, 16)
    field.advance(population(some), 0.5)
    bones, weights = field.weights(some)
    assert bones.shape == (400, 4)
    torch.testing.assert_close(weights.sum(1), torch.ones(400))
    # The exported form, four bones and four weights, moves the Gaussians as the field does.
    rotations, translations, _ = field.motions(0.7)
    each = rotations[bones] @ (some.means[:, None] - field.centres[bones])[..., None]
    each = each[..., 0] + field.centres[bones] + translations[bones]
    torch.testing.assert_close(field(some, 0.7).gaussians.means, (weights[..., None] * each).sum(1), **CLOSE)


def test_a_saved_field_draws_the_same_in_every_phase() -> None:
    for progress in (0.04, 0.3, 0.7):
        settings = Bases(bones=8)
        field = settings.init(BOUNDS, NUM_TIMES, torch.Generator())
        some = gaussians(100, 8)
        field.advance(population(some), progress)
        with torch.no_grad():
            field.controls.normal_(generator=torch.Generator().manual_seed(0))
        again = settings.init(BOUNDS, NUM_TIMES, torch.Generator())
        again.load_state_dict({name: value.clone() for name, value in field.state_dict().items()})
        motion = some.motion.clone()
        again.advance(population(some), progress)
        assert torch.equal(motion, some.motion), "placing the bones again would lose what was learned"
        assert torch.equal(field(some, 0.4).gaussians.means, again(some, 0.4).gaussians.means)


def test_bones_stand_on_opaque_gaussians_far_from_each_other() -> None:
    some = gaussians(400, 8)
    some = replace(some, opacity_logits=torch.where(some.means[:, :1] > 0, 3.0, -3.0))
    field = Bases(bones=8).init(BOUNDS, NUM_TIMES, torch.Generator())
    field.advance(population(some), 0.2)
    assert (field.centres[:, 0] > 0).all()
    # Each Gaussian first hangs on the bone that is nearest to it.
    assert torch.equal(some.motion.argmax(1), torch.cdist(some.means, field.centres).argmin(1))


def test_farthest_points_of_a_line_are_its_ends_and_then_its_middle() -> None:
    line = torch.stack([torch.linspace(0, 1, 11) ** 1.01, torch.zeros(11), torch.zeros(11)], 1)
    assert sorted(farthest_points(line, 3)[:, 0].mul(10).round().tolist()) == [0, 5, 10]


def test_the_acceleration_penalty_is_the_scaled_mean_square_of_second_differences() -> None:
    settings = Bases(bones=3, keep=3, times_per_knot=(20, 5), acceleration=0.5)
    field, some = awake(settings, motion=0.3)
    controls = field.controls.detach().double().numpy()
    wanted = 0.0
    for first, level in ((0, 5), (5, 20)):
        second = np.diff(controls[first : first + level], n=2, axis=0)
        wanted += 0.5 * level**2 / 100 * (second**2).sum(2).mean()
    assert float(field.penalties(some, 0.5)["acceleration"].detach()) == pytest.approx(wanted, rel=1e-5)


def test_a_rigid_motion_of_all_bones_costs_no_rigidity_and_a_shear_does() -> None:
    settings = Bases(bones=12, rigidity=1.0, times_per_knot=(100,))
    field, some = awake(settings)
    turn = Rotation.from_euler("z", 0.4)
    w, x, y, z = turn.as_quat()[[3, 0, 1, 2]]
    about_origin = turn.apply(field.centres.numpy()) - field.centres.numpy()
    with torch.no_grad():
        field.controls[..., :3] = torch.from_numpy(about_origin).float() / 1.3
        field.controls[..., 3:] = torch.tensor([w - 1, x, y, z])
    rigid = float(field.penalties(some, 0.5)["rigidity"].detach())
    with torch.no_grad():
        field.controls[..., 3:] = 0
    assert rigid < 1e-10 < 1e-4 < float(field.penalties(some, 0.5)["rigidity"].detach())


def test_rates_rise_after_the_warm_up_and_fall_to_their_last_share() -> None:
    field = Bases().init(BOUNDS, NUM_TIMES, torch.Generator())
    assert field.rates(0.049) == {"splines": 0.0, "motion": 0.0}
    assert field.rates(0.055)["splines"] == pytest.approx(3e-3 * 0.05 ** (0.005 / 0.95))
    assert field.rates(1.0)["motion"] == pytest.approx(5e-4)
