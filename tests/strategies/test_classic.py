import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import floats, integers, lists, tuples

from nfc_gs.config import ConfigError, validate
from nfc_gs.strategies.classic import Spec
from tests.strategies.populations import (
    CAMERA,
    assert_equal_edits,
    generator,
    make_population,
    make_rendering,
    opacities_after,
)

STEPS = 30_000
ROUNDED = dict(rtol=0, atol=2e-6)  # float32 logits, logarithms and back


def observed(classic, gradients):
    """Statistics of one picture, with mean gradients in units of half the picture."""
    state = classic.init(len(gradients), "cpu")
    state["gradients"] += torch.tensor(gradients, dtype=torch.float32)
    state["drawn"] += 1
    return state


def test_gradients_are_measured_in_half_pictures_over_the_views_that_drew():
    classic = Spec()
    state = classic.init(2, "cpu")
    # The camera is 200 by 100 pixels: half a picture is 100 by 50.
    classic.observe(state, make_rendering([[0.03, 0.08], [7.0, 7.0]], drawn=[1, 0]), CAMERA, 1, STEPS)
    classic.observe(state, make_rendering([[0.01, 0.0], [0.0, 0.02]]), CAMERA, 2, STEPS)
    torch.testing.assert_close(state["gradients"], torch.tensor([5.0 + 1.0, 1.0]), **ROUNDED)
    assert state["drawn"].tolist() == [2.0, 1.0]


def test_absgrad_uses_the_absolute_sums():
    classic = Spec(absgrad=True)
    state = classic.init(1, "cpu")
    classic.observe(state, make_rendering([[0.0, 0.0]], absolute=[[0.0, 0.02]]), CAMERA, 1, STEPS)
    torch.testing.assert_close(state["gradients"], torch.tensor([1.0]), **ROUNDED)


@pytest.mark.parametrize(("absgrad", "threshold"), [(False, 2e-4), (True, 8e-4)])
def test_growth_begins_above_the_threshold(absgrad, threshold):
    classic, population = Spec(absgrad=absgrad), make_population([0.5, 0.5], scales=0.001)
    edit = classic.edit(observed(classic, [0.99 * threshold, 1.01 * threshold]), population, 600, STEPS, generator())
    assert edit.parent.tolist() == [0, 1, 1]


def test_small_ones_are_cloned_large_ones_split_and_faint_ones_dropped():
    classic = Spec()
    # calm; pulled and small; pulled and large; faint, pulled or not.
    population = make_population([0.5, 0.5, 0.5, 0.004, 0.004], scales=[0.05, 0.019, 0.021, 0.019, 0.1], extent=2.0)
    edit = classic.edit(observed(classic, [1e-5, 1e-3, 1e-3, 1e-3, 0]), population, 600, STEPS, generator())
    assert edit.parent.tolist() == [0, 1, 1, 2, 2]
    assert edit.fresh.tolist() == [False, False, True, True, True]
    new, old = edit.apply(population.gaussians), population.gaussians
    assert torch.equal(new.means[:3], old.means[[0, 1, 1]])
    torch.testing.assert_close(new.log_scales[:3], old.log_scales[[0, 1, 1]], **ROUNDED)
    torch.testing.assert_close(new.log_scales[3:].exp() * 1.6, old.log_scales[[2, 2]].exp(), **ROUNDED)
    assert torch.equal(new.opacity_logits, old.opacity_logits[[0, 1, 1, 2, 2]])
    assert torch.equal(new.harmonics, old.harmonics[[0, 1, 1, 2, 2]])


def test_children_are_samples_of_their_parent():
    n = 20_000
    classic, population = Spec(), make_population([0.5] * n, scales=[[0.3, 0.2, 0.1]])
    object.__setattr__(population.gaussians, "quats", torch.tensor([[0.5, 0.5, 0.5, 0.5]]).expand(n, 4).clone())
    edit = classic.edit(observed(classic, [1.0] * n), population, 600, STEPS, generator())
    offsets = (edit.apply(population.gaussians).means - population.gaussians.means[edit.parent]).double()
    # This quaternion takes x to y, y to z, z to x: the variances are those of z, x, y.
    expected = torch.diag(torch.tensor([0.01, 0.09, 0.04], dtype=torch.float64))
    spread = 6 * 0.09 * math.sqrt(2 / (2 * n))  # six standard errors of the largest variance
    torch.testing.assert_close(offsets.T @ offsets / (2 * n), expected, rtol=0, atol=spread)


def test_large_ones_are_dropped_only_after_the_first_reset():
    classic, population = Spec(), make_population([0.5, 0.5, 0.5], scales=[0.09, 0.11, 0.15])
    gradients = [0, 0, 1.0]  # the third splits, and its children are small enough
    before = classic.edit(observed(classic, gradients), population, 3000, STEPS, generator())
    after = classic.edit(observed(classic, gradients), population, 3100, STEPS, generator())
    assert before.parent.tolist() == [0, 1, 2, 2]
    assert after.parent.tolist() == [0, 2, 2]


def test_the_population_changes_between_start_and_stop_every_hundred_steps():
    classic, population = Spec(reset_every=0), make_population([0.5])
    due = [s for s in range(STEPS + 1) if classic.edit(observed(classic, [0]), population, s, STEPS, generator())]
    assert due == list(range(600, 15_000, 100))


def test_the_reset_fires_at_step_3000_and_every_3000_until_the_stop():
    classic, population = Spec(), make_population([0.5])
    state = observed(classic, [0])
    due = [s for s in range(STEPS + 1) if (e := classic.edit(state, population, s, STEPS, generator())) and e.forget]
    assert due == [3000, 6000, 9000, 12_000]


def test_a_reset_that_could_not_heal_before_the_end_is_left_out():
    assert [s for s in range(7001) if Spec().resets(s, 7000)] == [3000]
    assert [s for s in range(3001) if Spec().resets(s, 3000)] == []


def test_a_reset_lowers_opacities_to_a_hundredth_and_raises_none():
    classic, population = Spec(), make_population([0.9, 0.02, 0.01, 0.007])
    edit = classic.edit(observed(classic, [0] * 4), population, 3000, STEPS, generator())
    new = opacities_after(edit, population)
    torch.testing.assert_close(new, torch.tensor([0.01, 0.01, 0.01, 0.007]), **ROUNDED)
    assert edit.forget == ("opacity_logits",)
    assert not edit.fresh.any()


def test_a_reset_applies_to_those_just_grown_and_their_growth_saw_the_old_opacities():
    classic, population = Spec(), make_population([0.5, 0.004], scales=0.001)
    edit = classic.edit(observed(classic, [1.0, 0]), population, 3000, STEPS, generator())
    assert edit.parent.tolist() == [0, 0]
    torch.testing.assert_close(opacities_after(edit, population), torch.tensor([0.01, 0.01]), **ROUNDED)


def test_statistics_from_before_a_reset_are_forgotten_even_between_two_refinements():
    classic, population = Spec(reset_every=3050), make_population([0.5], scales=0.001)
    state = observed(classic, [1.0])
    edit = classic.edit(state, population, 3050, STEPS, generator())
    assert edit.parent.tolist() == [0] and edit.forget == ("opacity_logits",)
    state = classic.settle(state, edit)
    assert len(classic.edit(state, population, 3100, STEPS, generator()).parent) == 1


def test_the_cap_keeps_the_strongest_gradients():
    classic, population = Spec(cap_max=5), make_population([0.5] * 4, scales=0.001)
    edit = classic.edit(observed(classic, [1.0, 3.0, 2.0, 0.5]), population, 600, STEPS, generator())
    assert edit.parent.tolist() == [0, 1, 2, 3, 1]


@settings(max_examples=60, deadline=None)
@given(
    rows=lists(tuples(floats(1e-4, 0.999), floats(1e-4, 0.5), floats(0, 1e-3)), max_size=40),
    cap=integers(0, 60),
    step=integers(6, 150).map(lambda i: 100 * i),
)
def test_every_edit_is_in_range_finite_and_within_the_cap(rows, cap, step):
    opacities, scales, gradients = np.array(rows, dtype=np.float32).reshape(-1, 3).T
    classic, population = Spec(cap_max=cap), make_population(opacities, scales=scales)
    state = observed(classic, gradients.tolist())
    edit = classic.edit(state, population, step, STEPS, generator())
    if edit is None:
        assert step >= 15_000
        return
    assert ((edit.parent >= 0) & (edit.parent < len(rows))).all()
    assert len(edit.parent) <= max(cap, len(rows))
    assert all(value.isfinite().all() for _, value in edit.apply(population.gaussians).items())
    assert all(len(value) == len(edit.parent) for value in classic.settle(state, edit).values())


@pytest.mark.parametrize("opacities", [[], [0.001, 0.002]])
def test_a_population_with_nobody_left_is_an_empty_one(opacities):
    classic, population = Spec(), make_population(opacities)
    edit = classic.edit(observed(classic, [1.0] * len(opacities)), population, 3000, STEPS, generator())
    assert len(edit.apply(population.gaussians)) == 0


def test_the_same_seed_gives_the_same_change():
    classic, population = Spec(), make_population([0.5] * 5, scales=[0.001, 0.01, 0.05, 0.1, 0.2])
    state = observed(classic, [1.0] * 5)
    assert_equal_edits(*(classic.edit(state, population, 600, STEPS, generator(3)) for _ in range(2)))


def test_a_reset_below_the_pruning_opacity_is_refused():
    with pytest.raises(ConfigError, match="reset_opacity must be above prune_opacity"):
        validate(Spec, {"reset_opacity": 0.001}, "here")
