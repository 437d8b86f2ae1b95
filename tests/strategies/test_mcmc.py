import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import floats, integers, lists
from scipy.integrate import quad

from nfc_gs.config import ConfigError, validate
from nfc_gs.core.rotations import quats_to_matrices
from nfc_gs.strategies.mcmc import COPIES_MAX, Spec, divide
from tests.strategies.populations import assert_equal_edits, generator, make_population, opacities_after

CLOSED = dict(rtol=0, atol=1e-12)  # one float64 power
ROUNDED = dict(rtol=0, atol=2e-6)  # float32 logits and back


@given(opacity=floats(0.006, 0.999), copies=integers(1, COPIES_MAX))
def test_copies_together_keep_the_alpha_at_the_centre(opacity, copies):
    new, _ = divide(torch.tensor([opacity], dtype=torch.float64), torch.tensor([copies]))
    torch.testing.assert_close(1 - (1 - new) ** copies, torch.tensor([opacity], dtype=torch.float64), **CLOSED)


@pytest.mark.parametrize("copies", [1, 2, 3, 7, COPIES_MAX])
@pytest.mark.parametrize("opacity", [0.01, 0.5, 0.95, 0.999])
def test_copies_together_keep_the_integral_of_alpha_along_a_line(opacity, copies):
    new, factor = divide(torch.tensor([opacity], dtype=torch.float64), torch.tensor([copies]))
    o, s = float(new), float(factor)
    alpha, _ = quad(lambda x: 1 - (1 - o * math.exp(-0.5 * (x / s) ** 2)) ** copies, -20, 20, limit=200, points=[0])
    assert alpha == pytest.approx(opacity * math.sqrt(2 * math.pi), rel=1e-6)  # the quadrature's accuracy


def test_scales_follow_equation_9_as_it_is_printed():
    old, n = 0.8, 5
    new = 1 - (1 - old) ** (1 / n)
    total = sum(
        math.comb(i - 1, k) * (-1) ** k * new ** (k + 1) / math.sqrt(k + 1) for i in range(1, n + 1) for k in range(i)
    )
    _, factor = divide(torch.tensor([old], dtype=torch.float64), torch.tensor([n]))
    assert float(factor) == pytest.approx(old / total, rel=1e-12)  # float64 sums of 15 terms


def test_division_by_the_most_copies_is_finite_at_every_opacity():
    opacities = torch.linspace(0.005, 1 - 1e-6, 1000)
    new, factor = divide(opacities, torch.full((1000,), COPIES_MAX))
    assert ((new > 0) & (new < opacities)).all()
    assert ((factor > 0) & (factor <= 1 + 1e-6)).all()  # float32's rounding


def test_the_dead_move_onto_the_living_and_share_their_alpha():
    population = make_population([0.001, 0.6, 0.005])
    mcmc = Spec(cap_max=3)
    edit = mcmc.edit({}, population, 600, 30_000, generator())
    assert edit.parent.tolist() == [1, 1, 1]
    assert edit.fresh.all()
    new = opacities_after(edit, population)
    torch.testing.assert_close(1 - (1 - new).prod(), torch.tensor(0.6), **ROUNDED)
    moved = edit.apply(population.gaussians)
    assert torch.equal(moved.means, population.gaussians.means[[1, 1, 1]])


def test_untouched_gaussians_keep_their_rows_and_moments():
    population = make_population([0.3] * 100)
    edit = Spec(cap_max=1000).edit({}, population, 600, 30_000, generator())
    moved, kept = edit.apply(population.gaussians), ~edit.fresh
    assert 90 <= int(kept.sum()) < 100  # at most five sources of the five newcomers
    for name, value in moved.items():
        assert torch.equal(value[kept], dict(population.gaussians.items())[name][edit.parent[kept]])


def test_the_population_grows_by_a_share_to_the_cap_between_start_and_stop():
    mcmc = Spec(cap_max=1060, start=500, stop=0.8)
    sizes = {}
    for step in (100, 500, 550, 600, 7900, 8000, 8100, 10_000):
        edit = mcmc.edit({}, make_population([0.5] * 1000), step, 10_000, generator())
        sizes[step] = edit and len(edit.parent)
    assert sizes == {100: None, 500: None, 550: None, 600: 1050, 7900: 1050, 8000: 1050, 8100: None, 10_000: None}
    assert len(mcmc.edit({}, make_population([0.5] * 1055), 600, 10_000, generator()).parent) == 1060
    assert mcmc.edit({}, make_population([0.5] * 1060), 600, 10_000, generator()) is None


def test_sources_are_drawn_in_proportion_to_their_opacities():
    population = make_population([0.2, 0.6] + [0.001] * 4000)
    edit = Spec(cap_max=1).edit({}, population, 600, 30_000, generator())
    share = float((edit.parent[2:] == 1).float().mean())
    assert share == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 4000))  # four standard errors


def test_noise_has_the_covariance_of_equation_8():
    n, rate = 200_000, 1e-4
    one = make_population([0.001], scales=[[0.5, 0.2, 0.05]])
    many = make_population([0.001] * n, scales=[[0.5, 0.2, 0.05]])
    gaussians = many.gaussians.map(lambda value: value)
    object.__setattr__(gaussians, "quats", one.gaussians.quats.expand(n, 4).clone())
    object.__setattr__(many, "gaussians", gaussians)
    noise = Spec().perturb(many, rate, 1, 100, generator())

    rotation = quats_to_matrices(one.gaussians.quats)[0].double()
    covariance = rotation @ torch.diag(torch.tensor([0.5, 0.2, 0.05], dtype=torch.float64) ** 2) @ rotation.T
    gate = 1 / (1 + math.exp(-100 * ((1 - 0.001) - 0.995)))
    # Noise is the covariance matrix times normals, so its own covariance is the square of that matrix.
    expected = (5e5 * rate * gate) ** 2 * covariance @ covariance
    measured = noise.double().T @ noise.double() / n
    spread = 6 * float(expected.diagonal().max()) * math.sqrt(2 / n)  # six standard errors of the largest variance
    torch.testing.assert_close(measured, expected, rtol=0, atol=spread)


def test_opaque_gaussians_are_not_shaken():
    population = make_population([0.9, 0.004])
    noise = Spec().perturb(population, 1e-4, 1, 100, generator())
    assert noise[0].abs().max() < 1e-12 < noise[1].abs().max()
    assert Spec(noise_rate=0).perturb(population, 1e-4, 1, 100, generator()) is None


@settings(max_examples=50, deadline=None)
@given(opacities=lists(floats(0, 1, width=32), max_size=40), cap=integers(1, 60), seed=integers(0, 5))
def test_every_edit_is_in_range_finite_and_within_the_cap(opacities, cap, seed):
    population = make_population(np.clip(opacities, 1e-6, 1 - 1e-6))
    edit = Spec(cap_max=cap, growth=0.5).edit({}, population, 600, 30_000, generator(seed))
    if edit is None:
        return
    assert ((edit.parent >= 0) & (edit.parent < len(opacities))).all()
    assert len(opacities) <= len(edit.parent) <= max(cap, len(opacities))
    assert all(value.isfinite().all() for _, value in edit.apply(population.gaussians).items())


@pytest.mark.parametrize("opacities", [[], [0.001, 0.002]])
def test_nobody_alive_means_no_change(opacities):
    population = make_population(opacities)
    assert Spec().edit({}, population, 600, 30_000, generator()) is None
    assert Spec().perturb(population, 1e-4, 600, 30_000, generator()).shape == (len(opacities), 3)


def test_the_same_seed_gives_the_same_change():
    population = make_population([0.001, 0.3, 0.6, 0.8])
    first, again = (Spec().edit({}, population, 600, 30_000, generator(3)) for _ in range(2))
    assert_equal_edits(first, again)


def test_impossible_settings_are_refused_in_one_line():
    with pytest.raises(ConfigError, match="stop is a share"):
        validate(Spec, {"stop": 25_000}, "here")
