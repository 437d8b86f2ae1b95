import pytest
import torch
from torch import nn

from nfc_gs.benchmarks.loads import make_trainer, shells
from nfc_gs.codes.binary import Binary
from nfc_gs.codes.thermometer import Thermometer
from nfc_gs.core.gaussians import Edit, Gaussians
from nfc_gs.core.harmonics import evaluate, evaluate_plain
from nfc_gs.deformations.static import Static
from nfc_gs.kernels.threads import set_thread_count, thread_count
from nfc_gs.rasterizers.cpu import Cpu
from nfc_gs.training.experiment import OptimizerSettings
from nfc_gs.training.optimizer import GaussianOptimizer

EXACT = {"rtol": 0, "atol": 0}  # the same operations on the same numbers
ROUNDING = {"rtol": 1e-5, "atol": 1e-7}  # float32 Adam, fused against written out in float64


def population(num: int) -> Gaussians:
    g = torch.Generator().manual_seed(0)
    return Gaussians(
        means=torch.randn(num, 3, generator=g),
        log_scales=torch.randn(num, 3, generator=g),
        quats=torch.randn(num, 4, generator=g),
        colour_logits=torch.randn(num, 3, 2, generator=g),
        opacity_logits=torch.randn(num, 1, generator=g),
        harmonics=torch.randn(num, 3, 3, generator=g),
        motion=torch.randn(num, 2, generator=g),
    )


def optimizer(num: int = 5, extent: float = 2.0, steps: int = 100) -> GaussianOptimizer:
    field = Static().init(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), 1, torch.Generator())
    return GaussianOptimizer(population(num), field, OptimizerSettings(), extent, steps)


def pull(o: GaussianOptimizer, steps: int) -> None:
    for step in range(steps):
        sum((value**2).sum() for _, value in o.gaussians.items()).backward()
        o.step(step)


def test_the_means_rate_falls_exponentially_and_scales_with_the_extent():
    o = optimizer(extent=2.0, steps=100)
    assert o.rates(0)["means"] == pytest.approx(2 * 1.6e-4)
    assert o.rates(50)["means"] == pytest.approx(2 * 1.6e-4 * 0.1)
    assert o.rates(100)["means"] == pytest.approx(2 * 1.6e-4 * 0.01)


@pytest.mark.parametrize(
    ("hold", "factors"), [(0.0, [1, 0.1**0.5, 0.1**0.8, 0.1]), (0.6, [1, 1, 0.1**0.5, 0.1]), (1.0, [1, 1, 1, 1])]
)
def test_the_other_rates_are_held_and_then_fall_exponentially_to_their_end(hold, factors):
    o = optimizer()
    o = GaussianOptimizer(population(5), o.field, OptimizerSettings(final=0.1, hold=hold, means_final=1.0), 2.0, 100)
    for step, factor in zip((0, 50, 80, 100), factors, strict=True):
        assert o.rates(step)["quats"] == pytest.approx(1e-3 * factor)
        assert o.rates(step)["means"] == pytest.approx(2 * 1.6e-4)


def test_a_step_is_adams():
    o = optimizer()
    p = o.gaussians.quats.detach().double().clone()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for t in range(1, 4):
        g = 2 * p
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p = p - 1e-3 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-15)
    pull(o, 3)
    torch.testing.assert_close(o.gaussians.quats.detach().double(), p, **ROUNDING)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["compiled", "torch"])
def test_steps_are_those_of_torchs_adam_in_double_precision(threads, precision):
    before = thread_count()
    set_thread_count(threads)
    o, plain = optimizer(), dict(population(5).map(lambda value: nn.Parameter(value.double())).items())
    o = GaussianOptimizer(population(5).map(lambda value: value.to(precision)), o.field, o.settings, 2.0, 100)
    assert o.compiled == (precision == torch.float32)
    adam = torch.optim.Adam([{"params": [value], "name": name} for name, value in plain.items()], eps=1e-15)
    for step in range(4):
        for group in adam.param_groups:
            group["lr"] = o.rates(step)[group["name"]]
        g = torch.Generator().manual_seed(step)
        for name, value in o.gaussians.items():
            # As in training, the harmonics join later than the rest, so that each field has its own count of steps.
            if name != "harmonics" or step > 1:
                plain[name].grad = torch.randn(value.shape, generator=g, dtype=torch.float64)
                value.grad = plain[name].grad.to(precision)
        adam.step()
        o.step(step)
        assert all(value.grad is None for _, value in o.gaussians.items())
    set_thread_count(before)
    for name, value in o.gaussians.items():
        torch.testing.assert_close(value.detach().double(), plain[name].detach(), **ROUNDING)
        for key, moment in adam.state[plain[name]].items():
            torch.testing.assert_close(o.tensors()[f"{name}.0.{key}"].double(), moment.double(), **ROUNDING)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["compiled", "torch"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_sparse_step_is_a_full_one_of_the_drawn_rows_and_none_of_the_others(precision, threads):
    before = thread_count()
    set_thread_count(threads)
    field = Static().init(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), 1, torch.Generator())
    settings = [OptimizerSettings(sparse=sparse) for sparse in (False, True)]
    start = population(7).map(lambda value: value.to(precision))
    full, sparse = (GaussianOptimizer(start, field, s, 2.0, 100) for s in settings)
    drawn = torch.tensor([True, True, False, True, False, False, True])
    radii = torch.where(drawn[:, None], 3, torch.tensor([2, 0]))  # a box without height shows nothing
    for step in range(3):
        for o in (full, sparse):
            sum((value**2).sum() for _, value in o.gaussians.items()).backward()
            o.step(step, radii.int())
    set_thread_count(before)
    for name, value in sparse.gaussians.items():
        kept, moved = dict(start.items())[name], dict(full.gaussians.items())[name]
        torch.testing.assert_close(value[~drawn].detach(), kept[~drawn], **EXACT)
        torch.testing.assert_close(value[drawn].detach(), moved[drawn].detach(), **ROUNDING)
        for key in ("exp_avg", "exp_avg_sq"):
            found, expected = (o.tensors()[f"{name}.0.{key}"] for o in (sparse, full))
            assert not found[~drawn].any()
            torch.testing.assert_close(found[drawn], expected[drawn], **ROUNDING)


def test_an_edit_moves_rows_with_their_moments_and_clears_what_is_fresh_or_forgotten():
    o = optimizer()
    pull(o, 3)
    before = {name: value.clone() for name, value in o.tensors().items()}
    values = {name: value.detach().clone() for name, value in o.gaussians.items()}
    parent, fresh = torch.tensor([4, 0, 0]), torch.tensor([False, False, True])
    o.apply(Edit(parent=parent, fresh=fresh, values={"opacity_logits": torch.zeros(3, 1)}, forget=("opacity_logits",)))
    after = o.tensors()
    torch.testing.assert_close(o.gaussians.means.detach(), values["means"][parent], **EXACT)
    torch.testing.assert_close(o.gaussians.opacity_logits.detach(), torch.zeros(3, 1), **EXACT)
    torch.testing.assert_close(after["means.0.exp_avg"][:2], before["means.0.exp_avg"][parent[:2]], **EXACT)
    assert not after["means.0.exp_avg"][2].any() and not after["means.0.exp_avg_sq"][2].any()
    assert not after["opacity_logits.0.exp_avg"].any()
    pull(o, 1)  # and it goes on


def test_a_restored_optimizer_goes_on_bit_for_bit():
    straight, broken = optimizer(), optimizer()
    pull(straight, 3)
    pull(broken, 3)
    kept = {name: value.clone() for name, value in broken.tensors().items()}
    again = optimizer()
    again.gaussians = again.apply(
        Edit(
            parent=torch.arange(5),
            fresh=torch.zeros(5, dtype=torch.bool),
            values={n: v.detach().clone() for n, v in broken.gaussians.items()},
        )
    )
    again.restore(kept)
    for o in (straight, again):
        sum((value**2).sum() for _, value in o.gaussians.items()).backward()
        o.step(3)
    for name, value in straight.gaussians.items():
        torch.testing.assert_close(dict(again.gaussians.items())[name], value, **EXACT)


def averaging(num: int = 5) -> GaussianOptimizer:
    return GaussianOptimizer(population(num), optimizer().field, OptimizerSettings(average=0.2), 1.0, 100)


def test_after_the_last_step_parameters_are_their_mean_over_every_fourth_of_the_last_steps():
    o, plain = averaging(), GaussianOptimizer(population(5), optimizer().field, OptimizerSettings(), 1.0, 100)
    seen = []
    for step in range(100):
        for each in (o, plain):
            sum((value**2).sum() for _, value in each.gaussians.items()).backward()
            each.step(step)
        # The last fifth: 81 to 100 are done, and of those every fourth that ends with the last.
        if step + 1 in (84, 88, 92, 96, 100):
            seen.append(plain.gaussians.map(lambda value: value.detach().double().clone()))
        if step + 1 == 99:
            torch.testing.assert_close(o.gaussians.quats, plain.gaussians.quats, **EXACT)
    for name, value in o.gaussians.items():
        mean = torch.stack([getattr(each, name) for each in seen]).mean(0)
        torch.testing.assert_close(value.double(), mean, **ROUNDING)


def test_a_changed_population_is_averaged_anew():
    o, plain = averaging(), GaussianOptimizer(population(5), optimizer().field, OptimizerSettings(), 1.0, 100)
    edit = Edit(parent=torch.tensor([0, 1, 2, 3]), fresh=torch.zeros(4, dtype=torch.bool))
    for each in (o, plain):
        pull(each, 90)
        each.apply(edit)
    seen = []
    for step in range(90, 100):
        for each in (o, plain):
            sum((value**2).sum() for _, value in each.gaussians.items()).backward()
            each.step(step)
        if step + 1 in (92, 96, 100):
            seen.append(plain.gaussians.means.detach().double().clone())
    assert len(o.gaussians) == 4
    torch.testing.assert_close(o.gaussians.means.double(), torch.stack(seen).mean(0), **ROUNDING)


def test_an_average_goes_on_bit_for_bit_when_restored():
    whole, part = averaging(), averaging()
    pull(whole, 100)
    pull(part, 91)
    later = GaussianOptimizer(
        part.gaussians.map(torch.Tensor.detach), part.field, OptimizerSettings(average=0.2), 1.0, 100
    )
    later.restore({name: value.clone() for name, value in part.tensors().items()})
    for step in range(91, 100):
        sum((value**2).sum() for _, value in later.gaussians.items()).backward()
        later.step(step)
    for name, value in whole.gaussians.items():
        torch.testing.assert_close(getattr(later.gaussians, name), value, **EXACT)


def rich(num: int, precision: torch.dtype) -> Gaussians:
    g = torch.Generator().manual_seed(1)
    shapes = {"means": (3,), "log_scales": (3,), "quats": (4,), "colour_logits": (3, 4), "opacity_logits": (8,)}
    fields = {name: torch.randn(num, *shape, generator=g).to(precision) for name, shape in shapes.items()}
    harmonics = 0.3 * torch.randn(num, 15, 3, generator=g).to(precision)
    return Gaussians(**fields, harmonics=harmonics, motion=torch.zeros(num, 0, dtype=precision))


def shown(gaussians: Gaussians, step: int) -> torch.Tensor:
    """A number of all that may tell its gradient: shaded colours of words, one bit of each, and words of opacity."""
    code, opacity_code, plain = Thermometer(bits=4), Binary(bits=8), gaussians.means.dtype == torch.float64
    shade = evaluate_plain if plain else evaluate
    g = torch.Generator().manual_seed(step)
    like = gaussians.means
    position, wishes = torch.tensor([0.5, -0.2, 6.0]).to(like), torch.randn(len(like), 8, generator=g).to(like)
    base = code.values(gaussians.colour_logits, unit=False)
    colours = shade(base, gaussians.harmonics, gaussians.means, position, min(step + 1, 3))
    total = (colours * wishes[:, :3]).sum() + (
        opacity_code.values(gaussians.opacity_logits, unit=True) * wishes[:, 3]
    ).sum()
    if step != 1:
        total = total + (code.probability(gaussians.colour_logits, step) * wishes[:, 4:7]).sum()
    # A part that is not told.
    return total + (gaussians.opacity_logits.sigmoid().sum(1) * wishes[:, 7]).sum() if step == 2 else total


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("num", [1, 37, 300])
def test_a_step_of_gradients_that_were_told_is_torchs_adam_of_autograds_in_double_precision(num, threads):
    before = thread_count()
    set_thread_count(threads)
    o = GaussianOptimizer(rich(num, torch.float32), optimizer().field, OptimizerSettings(), 2.0, 100)
    plain = rich(num, torch.float64).map(nn.Parameter)
    adam = torch.optim.Adam([{"params": [value], "name": name} for name, value in plain.items()], eps=1e-15)
    for step in range(4):
        for group in adam.param_groups:
            group["lr"] = o.rates(step)[group["name"]]
        adam.zero_grad()
        shown(plain, step).backward()
        with o.listening():
            shown(o.gaussians, step).backward()
        assert o.gaussians.harmonics.grad is None
        assert o.gaussians.colour_logits.grad is None
        assert (o.gaussians.opacity_logits.grad is None) == (step != 2)
        adam.step()
        o.step(step)
        assert not any(value.heard for _, value in o.gaussians.items())
    set_thread_count(before)
    for name, value in o.gaussians.items():
        # Adam takes steps of one rate whatever a gradient's size, and so magnifies the rounding of the smallest.
        torch.testing.assert_close(
            value.detach().double(), getattr(plain, name).detach(), rtol=0, atol=1e-2 * 4 * o.rates(0)[name]
        )
        for key in ("exp_avg", "exp_avg_sq"):
            found = o.tensors().get(f"{name}.0.{key}")
            if found is not None:
                torch.testing.assert_close(found.double(), adam.state[getattr(plain, name)][key], rtol=1e-4, atol=1e-6)


def test_told_gradients_give_the_same_bits_on_any_number_of_threads():
    before, results = thread_count(), []
    for threads in (1, 3):
        set_thread_count(threads)
        o = GaussianOptimizer(rich(211, torch.float32), optimizer().field, OptimizerSettings(), 2.0, 100)
        for step in range(3):
            with o.listening():
                shown(o.gaussians, step).backward()
            o.step(step)
        results.append(o)
    set_thread_count(before)
    for (name, one), (_, other) in zip(*(o.gaussians.items() for o in results), strict=True):
        assert torch.equal(one, other), name


def test_a_gradient_that_is_forgotten_was_never_told():
    o = GaussianOptimizer(rich(20, torch.float32), optimizer().field, OptimizerSettings(), 2.0, 100)
    with o.listening():
        shown(o.gaussians, 0).backward()
    o.forget_gradients()
    o.step(0)
    for name, value in rich(20, torch.float32).items():
        assert torch.equal(value, getattr(o.gaussians, name)), name


def test_gradients_that_a_step_left_behind_are_forgotten_by_the_next() -> None:
    results = []
    for stale in (False, True):
        trainer = make_trainer(shells(64, 0).seen(20, 20), "nfc", Cpu(), 0)
        if stale:
            for _, value in trainer.model.gaussians.items():
                value.grad = torch.ones_like(value)
        trainer.step()
        results.append(trainer.model.gaussians)
        trainer.photographs.close()
        trainer.held_out.close()
    for (name, one), (_, other) in zip(*(gaussians.items() for gaussians in results), strict=True):
        assert torch.equal(one, other), name
