from nfc_gs.strategies.fixed import Spec
from tests.strategies.populations import generator, make_population


def test_fixed_never_changes_anything():
    fixed, population = Spec(), make_population([0.001, 0.5])
    state = fixed.init(2, "cpu")

    assert state == {} and not fixed.absgrad
    assert all(fixed.edit(state, population, step, 7000, generator()) is None for step in range(1, 7001, 50))
    assert fixed.perturb(population, 1.0, 100, 7000, generator()) is None
