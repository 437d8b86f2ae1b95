"""A network over position and time: against closed forms and finite differences."""

import math
from dataclasses import replace

import pytest
import torch

from dynamic.deformations.mlp import Mlp, encode
from tests.dynamic.deformations.scenes import (
    BOUNDS,
    NUM_TIMES,
    assert_asleep_then_identity,
    awake_network,
    gaussians,
)

# Doubling an angle six times doubles the error of its sine as often: 64 times 6e-8.
DOUBLED = {"rtol": 0, "atol": 1e-5}
SMALL = Mlp(width_of_network=16, depth=4)


def test_the_encoding_is_sines_and_cosines_of_doubled_angles() -> None:
    values = torch.linspace(-1, 1, 21)[:, None]
    encoded = encode(values, 7)
    assert encoded.shape == (21, 15)
    torch.testing.assert_close(encoded[:, :1], values)
    for n in range(7):
        angle = math.pi / 2 * 2**n * values[:, 0].double()
        torch.testing.assert_close(encoded[:, 1 + 2 * n].double(), angle.sin(), **DOUBLED)
        torch.testing.assert_close(encoded[:, 2 + 2 * n].double(), angle.cos(), **DOUBLED)


def test_the_field_is_the_identity_at_birth_and_untouched_in_the_warm_up() -> None:
    field = assert_asleep_then_identity(SMALL)
    assert field.rates(0.04) == {"network": 0.0}
    assert field.rates(1.0)["network"] == pytest.approx(1e-4)


def test_the_means_are_pulled_by_the_picture_but_not_through_the_network() -> None:
    field = awake_network(SMALL)
    some = gaussians(20, 0)
    means = some.means.requires_grad_()
    field(replace(some, means=means), 0.3).gaussians.means.sum().backward()
    assert torch.equal(means.grad, torch.ones(20, 3))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_network_has_the_gradients_of_finite_differences_in_its_weights(depth: int) -> None:
    field = awake_network(
        replace(SMALL, width_of_network=4, depth=depth, position_frequencies=1, time_frequencies=1)
    ).double()
    some = gaussians(3, 0).map(torch.Tensor.double)
    names, values = zip(*field.named_parameters(), strict=True)

    def moved(*values: torch.Tensor) -> torch.Tensor:
        result = torch.func.functional_call(field, dict(zip(names, values, strict=True)), (some, 0.33)).gaussians
        return torch.cat([result.means, result.quats, result.log_scales], 1)

    assert torch.autograd.gradcheck(moved, [value.detach().requires_grad_() for value in values])


def test_the_moving_field_tells_times_and_places_apart() -> None:
    field = awake_network(SMALL)
    some = gaussians(20, 0)
    early, late = ((field(some, time).gaussians.means - some.means).detach() for time in (0.1, 0.9))
    assert (early - late).abs().max() > 1e-3
    assert early.std(0).max() > 1e-3


def test_a_saved_field_draws_the_same_and_the_same_seed_gives_the_same_field() -> None:
    some = gaussians(50, 0)
    field = awake_network(SMALL)
    again = SMALL.init(BOUNDS, NUM_TIMES, torch.Generator().manual_seed(5))
    again.load_state_dict(field.state_dict())
    assert torch.equal(field(some, 0.4).gaussians.means, again(some, 0.4).gaussians.means)
    one, same = (SMALL.init(BOUNDS, NUM_TIMES, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))


def test_frequencies_finer_than_float32_are_refused() -> None:
    Mlp(position_frequencies=20)
    with pytest.raises(ValueError, match="must be at most 20"):
        Mlp(time_frequencies=21)
