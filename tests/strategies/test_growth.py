import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import floats, integers, lists

from nfc_gs.config import ConfigError, validate
from nfc_gs.strategies.growth import SPARED, Spec
from tests.strategies.populations import (
    CAMERA,
    assert_equal_edits,
    generator,
    make_population,
    make_rendering,
    opacities_after,
)

ROUNDED = dict(rtol=0, atol=2e-6)  # float32 logits, logarithms and back


def observed(growth, gradients):
    state = growth.init(len(gradients), "cpu")
    growth.observe(state, make_rendering([[g, 0.0] for g in gradients]), CAMERA, 1, 1000)
    return state


def test_the_statistic_is_the_mean_length_in_pixels_where_there_is_a_gradient():
    growth = Spec()
    state = growth.init(2, "cpu")
    growth.observe(state, make_rendering([[3.0, 4.0], [0.0, 0.0]]), CAMERA, 1, 100)
    growth.observe(state, make_rendering([[0.0, 1.0], [0.0, 2.0]]), CAMERA, 2, 100)
    assert state["gradients"].tolist() == [6.0, 2.0]
    assert state["pulled"].tolist() == [2.0, 1.0]


def test_a_split_keeps_the_alpha_at_the_centre_and_moves_the_halves_apart_evenly():
    growth, population = Spec(cap_max=2, grow_until=0.1), make_population([0.6], scales=[[0.3, 0.2, 0.1]])
    edit = growth.edit(observed(growth, [1.0]), population, 100, 1000, generator())
    assert edit.parent.tolist() == [0, 0] and edit.fresh.all()
    halves, old = edit.apply(population.gaussians), population.gaussians
    torch.testing.assert_close(1 - (1 - opacities_after(edit, population)).prod(), torch.tensor(0.6), **ROUNDED)
    torch.testing.assert_close(halves.means.mean(0, keepdim=True), old.means, **ROUNDED)
    torch.testing.assert_close(halves.log_scales.exp() * 1.4, old.log_scales.exp().repeat(2, 1), **ROUNDED)
    assert (halves.means[0] - halves.means[1]).norm() > 0


def test_halves_lie_along_the_covariance():
    n = 20_000
    growth, population = Spec(cap_max=2 * n, grow_until=0.1), make_population([0.6] * n, scales=[[0.3, 0.2, 0.1]])
    object.__setattr__(population.gaussians, "quats", torch.tensor([[0.5, 0.5, 0.5, 0.5]]).expand(n, 4).clone())
    edit = growth.edit(observed(growth, [1.0] * n), population, 100, 1000, generator())
    offsets = (edit.apply(population.gaussians).means[:n] - population.gaussians.means).double()
    # This quaternion takes x to y, y to z, z to x: the variances are those of z, x, y.
    expected = 0.49 * torch.diag(torch.tensor([0.01, 0.09, 0.04], dtype=torch.float64))
    spread = 6 * 0.49 * 0.09 * math.sqrt(2 / n)  # six standard errors of the largest variance
    torch.testing.assert_close(offsets.T @ offsets / n, expected, rtol=0, atol=spread)


def test_the_dead_are_moved_to_where_the_gradients_are():
    growth, population = Spec(cap_max=3), make_population([0.001, 0.5, 0.5])
    edit = growth.edit(observed(growth, [9.0, 0.0, 1.0]), population, 100, 1000, generator())
    assert edit.parent.tolist() == [2, 1, 2]
    assert edit.fresh.tolist() == [True, False, True]


def test_who_is_hidden_in_every_picture_is_moved_and_who_shows_in_one_is_not():
    growth, population = Spec(cap_max=3, min_weight=0.5), make_population([0.9, 0.9, 0.9])
    state = growth.init(3, "cpu")
    for step, weights in enumerate(([0.9, 0.0, 5.0], [0.9, 2.0, 5.0], [0.9, 0.0, 5.0]), 98):
        growth.observe(state, make_rendering([[0.0, 0.0]] * 2 + [[1.0, 0.0]], weights=weights), CAMERA, step, 1000)
    edit = growth.edit(state, population, 100, 1000, generator())
    assert edit.parent.tolist() == [2, 1, 2]
    assert growth.weights and not Spec(min_weight=0).weights
    unseen = Spec(cap_max=3, min_weight=0).edit(state, population, 100, 1000, generator())
    assert unseen.parent.tolist() == [0, 1, 2]


def test_who_shows_only_in_views_that_are_yet_to_come_stays_until_all_had_their_turn():
    growth, population = Spec(cap_max=3, min_weight=0.5), make_population([0.9, 0.9, 0.9])
    for late, moved in ((5.0, False), (0.0, True)):
        state = growth.init(3, "cpu")
        for step in (100, 200, 300):
            # The first is looked at by the last of 250 views alone.
            weights = [late if step == 300 else 0.0, 5.0, 5.0]
            for at in (step - 99, step):
                rendering = make_rendering([[0.0, 0.0]] * 2 + [[1.0, 0.0]], weights=weights)
                growth.observe(state, rendering, CAMERA, at, 1000, 250)
            edit = growth.edit(state, population, step, 1000, generator(), 250)
            assert edit.parent.tolist() == ([2, 1, 2] if moved and step == 300 else [0, 1, 2])
            state = growth.settle(state, edit)


def test_sources_are_drawn_without_repeats_in_proportion_to_mean_gradients():
    growth, population = Spec(cap_max=4, grow_until=0.1), make_population([0.5] * 3)
    state = observed(growth, [1.0, 2.0, 5.0])
    source = generator()
    draws = [int(growth.edit(state, population, 100, 1000, source).parent[3]) for _ in range(2000)]
    shares = np.bincount(draws, minlength=3) / 2000
    np.testing.assert_allclose(shares, [1 / 8, 2 / 8, 5 / 8], atol=4 * 0.5 / math.sqrt(2000))  # four standard errors
    everyone = Spec(cap_max=6, grow_until=0.1).edit(state, population, 100, 1000, source)
    assert sorted(everyone.parent[3:].tolist()) == [0, 1, 2]


def test_growth_is_one_geometric_sequence_from_the_first_number_to_the_cap():
    growth, n, steps = Spec(cap_max=30_000), 8000, 5000
    for step in range(100, 3001, 100):
        n = growth.target(n, step, steps)
        # Each rounding is at most half a Gaussian, and later steps shrink or keep its share.
        assert n == pytest.approx(8000 * (30_000 / 8000) ** (step / 3000), abs=step / 100)
    assert n == 30_000 == growth.target(n, 3500, steps)


def test_changes_are_due_until_the_stop_only():
    growth, population = Spec(stop=0.75), make_population([0.5] * 4)
    due = [s for s in range(1, 1001) if growth.edit(observed(growth, [1.0] * 4), population, s, 1000, generator())]
    assert due == [100, 200, 300, 400, 500, 600, 700]


@settings(max_examples=50, deadline=None)
@given(
    rows=lists(floats(0, 1, width=32).flatmap(lambda o: floats(0, 9, width=32).map(lambda g: (o, g))), max_size=40),
    cap=integers(1, 60),
    step=integers(1, 7).map(lambda i: 100 * i),
)
def test_every_edit_is_in_range_finite_and_within_the_cap(rows, cap, step):
    growth = Spec(cap_max=cap)
    population = make_population(np.clip([o for o, _ in rows], 1e-6, 1 - 1e-6))
    state = growth.init(len(rows), "cpu")
    growth.observe(state, make_rendering(np.reshape([[g, g] for _, g in rows], (-1, 2))), CAMERA, 1, 1000)
    edit = growth.edit(state, population, step, 1000, generator())
    assert ((edit.parent >= 0) & (edit.parent < len(rows))).all()
    assert len(rows) <= len(edit.parent) <= max(cap, len(rows))
    assert all(value.isfinite().all() for _, value in edit.apply(population.gaussians).items())


def test_all_dead_or_unseen_gaussians_stay_as_they_are():
    growth = Spec()
    for opacities, gradients in (([0.001, 0.002], [1.0, 1.0]), ([0.5, 0.5], [0.0, 0.0])):
        population = make_population(opacities)
        edit = growth.edit(observed(growth, gradients), population, 100, 1000, generator())
        assert edit.parent.tolist() == [0, 1] and not edit.fresh.any()


def test_statistics_start_anew_for_the_new_population():
    growth, population = Spec(cap_max=4, grow_until=0.1), make_population([0.5] * 3)
    state = observed(growth, [1.0, 2.0, 5.0])
    settled = growth.settle(state, growth.edit(state, population, 100, 1000, generator()))
    assert settled["gradients"].tolist() == settled["pulled"].tolist() == [0] * 4
    # Only who shows is watched on, and a half not before the next picture that begins a window.
    assert (settled["weight"] < SPARED).sum() == 2
    growth.observe(settled, make_rendering([[0.0, 0.0]] * 4, weights=[1.0, 2.0, 3.0, 4.0]), CAMERA, 101, 1000)
    assert settled["weight"].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_the_same_seed_gives_the_same_change():
    growth, population = Spec(cap_max=6, grow_until=0.2), make_population([0.001, 0.3, 0.6, 0.8])
    state = observed(growth, [1.0, 2.0, 5.0, 1.0])
    assert_equal_edits(*(growth.edit(state, population, 100, 1000, generator(3)) for _ in range(2)))


def test_impossible_settings_are_refused_in_one_line():
    with pytest.raises(ConfigError, match="shares of all steps"):
        validate(Spec, {"stop": 3000}, "here")
