"""Planes over space and time: against grid_sample in float64, closed forms and finite differences."""

from dataclasses import replace

import pytest
import torch

from dynamic.deformations.hexplane import HexPlanes, cut, read, read_plain
from dynamic.fields.residuals import Residuals
from nfc_gs.config import ConfigError
from tests.dynamic.deformations.scenes import (
    BOUNDS,
    NUM_TIMES,
    assert_asleep_then_identity,
    awake_network,
    gaussians,
    population,
)

# Products of six float32 interpolations of numbers near one.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}
# The slope of a position is a difference of samples times the resolution.
STEEP = {"rtol": 1e-3, "atol": 1e-3}
SMALL = HexPlanes(resolution=8, channels=4, width_of_network=16, head_width=8)


def test_the_compiled_reading_and_its_gradients_equal_grid_sample_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    # Some are outside, and some on the border.
    positions = torch.rand(500, 3, generator=generator) * 1.4 - 0.2
    positions[:4] = torch.tensor([[0, 0, 0], [1, 1, 1], [0, 1, 0.5], [2, -1, 0.3]])
    space, lines = torch.rand(3, 9, 9, 8, generator=generator) + 0.5, torch.rand(3, 9, 8, generator=generator) + 0.5
    inputs = (positions, space, lines)
    fused = [value.clone().requires_grad_() for value in inputs]
    plain = [value.double().requires_grad_() for value in inputs]
    weights = torch.randn(500, 8, dtype=torch.float64, generator=generator)
    got, wanted = read(*fused), read_plain(*plain)
    torch.testing.assert_close(got.double(), wanted, **CLOSE)
    (got * weights.float()).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(fused[1].grad.double(), plain[1].grad, **STEEP)
    torch.testing.assert_close(fused[2].grad.double(), plain[2].grad, **STEEP)
    # Exactly at the border, the slope is a matter of taste.
    torch.testing.assert_close(fused[0].grad[4:].double(), plain[0].grad[4:], **STEEP)


def test_the_network_has_the_gradients_of_finite_differences() -> None:
    field = awake_network(SMALL).double()
    some = gaussians(4, 0).map(torch.Tensor.double)
    means = some.means.requires_grad_()

    def moved(means: torch.Tensor) -> torch.Tensor:
        result = field(replace(some, means=means), 0.33).gaussians
        return torch.cat([result.means, result.quats, result.log_scales], 1)

    assert torch.autograd.gradcheck(moved, [means])


def test_time_uses_the_whole_plane() -> None:
    planes = torch.arange(5.0)[None, :, None, None].expand(3, 5, 4, 2)
    for time, wanted in ((0.0, 0.0), (0.25, 1.0), (0.6, 2.4), (1.0, 4.0)):
        torch.testing.assert_close(cut(planes, time), torch.full((3, 4, 2), wanted), **CLOSE)
    assert SMALL.init(BOUNDS, NUM_TIMES, torch.Generator()).time[0].shape == (3, 25, 8, 4)


def test_the_field_is_the_identity_at_birth_and_untouched_in_the_warm_up() -> None:
    field = assert_asleep_then_identity(SMALL)
    assert field.rates(0.04) == {"planes": 0.0, "network": 0.0}


def test_the_planes_at_birth_are_drawn_from_the_generator_near_one() -> None:
    one, same, other = (HexPlanes().init(BOUNDS, 100, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
    assert not torch.equal(one.space[0], other.space[0])
    assert all((plane == 1).all() for plane in one.time)
    assert 0.5 <= float(one.space[1].detach().min()) < 0.51 and 1.49 < float(one.space[1].detach().max()) <= 1.5


def test_a_saved_field_goes_on_as_if_nothing_had_happened() -> None:
    some = gaussians(50, 0)
    field = awake_network(SMALL)
    for _ in range(2):
        field.advance(population(some), 0.5)
    again = SMALL.init(BOUNDS, NUM_TIMES, torch.Generator().manual_seed(9))
    again.load_state_dict(field.state_dict())
    for _ in range(6):
        field.advance(population(some), 0.5)
        again.advance(population(some), 0.5)
        assert field.penalties(some, 0.4) == again.penalties(some, 0.4)
        assert torch.equal(field(some, 0.4).gaussians.means, again(some, 0.4).gaussians.means)


def test_the_penalties_are_zero_on_planes_of_ones_and_known_on_a_parabola() -> None:
    settings = replace(SMALL, levels=(1,), plane_smoothness=3.0, time_smoothness=5.0, time_l1=7.0, every=1)
    field = awake_network(settings, loud=False)
    some = gaussians(5, 0)
    with torch.no_grad():
        field.space[0].fill_(1)
    assert [float(value.detach()) for value in field.penalties(some, 0.0).values()] == [0, 0, 0]
    with torch.no_grad():
        # The second difference of n^2 is 2, so its square is 4; along the other axis it is 0.
        field.space[0].copy_((torch.arange(8.0) ** 2)[None, :, None, None].expand(3, 8, 8, 4))
        field.time[0].copy_(1 + (torch.arange(25.0) ** 2)[None, :, None, None].expand(3, 25, 8, 4))
    penalties = {name: float(value.detach()) for name, value in field.penalties(some, 0.0).items()}
    mean_square = sum(n**2 for n in range(25)) / 25
    assert penalties == pytest.approx(
        {"plane_smoothness": 3 * 4, "time_smoothness": 5 * 4, "time_l1": 7 * mean_square}, rel=1e-5
    )


def test_the_colour_residual_is_bounded_and_zero_at_birth() -> None:
    settings = replace(SMALL, residuals=Residuals(colour=0.1))
    some = gaussians(50, 0)
    assert torch.equal(awake_network(settings, loud=False)(some, 0.2).colour_residual, torch.zeros(50, 3))
    field = awake_network(settings)
    with torch.no_grad():
        field.heads.heads["colour"][-1].bias.fill_(100.0)
    torch.testing.assert_close(field(some, 0.2).colour_residual.detach(), torch.full((50, 3), 0.1))
    assert awake_network(SMALL)(some, 0.2).colour_residual is None


def test_opacity_and_colour_logits_move_where_asked_and_must_fit_their_codes() -> None:
    some = gaussians(50, 0)
    field = awake_network(replace(SMALL, residuals=Residuals(opacity_logits=1, colour_logits=1, log_scales=False)))
    moved = field(some, 0.2).gaussians
    assert not torch.equal(moved.opacity_logits, some.opacity_logits)
    assert not torch.equal(moved.colour_logits, some.colour_logits)
    assert torch.equal(moved.log_scales, some.log_scales)
    with pytest.raises(ConfigError, match=r"colour_logits is 8, but code has 1 logits"):
        awake_network(replace(SMALL, residuals=Residuals(colour_logits=8))).check(some)
