"""View-dependent colour, against scipy's spherical harmonics and plain torch."""

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y
from torch import Tensor

from nfc_gs.core.harmonics import basis, evaluate, evaluate_plain
from nfc_gs.kernels.threads import set_thread_count, thread_count

EXACT = {"rtol": 0, "atol": 1e-12}  # float64, polynomials of degree 3
SINGLE = {"rtol": 1e-5, "atol": 2e-6}  # float32 sums of 16 terms of order one
LENGTHS = {0: 0, 1: 3, 2: 8, 3: 15}


def case(degree: int, dtype: torch.dtype, num: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(degree)
    base = torch.rand(num, 3, dtype=dtype, generator=generator)
    harmonics = 0.5 * torch.randn(num, LENGTHS[degree], 3, dtype=dtype, generator=generator)
    means = torch.randn(num, 3, dtype=dtype, generator=generator)
    return base, harmonics, means, torch.tensor([0.5, -0.2, 3.0], dtype=dtype)


def test_the_basis_is_scipys_real_harmonics_with_the_condon_shortley_phase() -> None:
    directions = torch.nn.functional.normalize(case(0, torch.float64)[2], dim=-1)
    x, y, z = directions.numpy().T
    polar, azimuth = np.arccos(z), np.arctan2(y, x)
    expected = []
    for degree in (1, 2, 3):
        for order in range(-degree, degree + 1):
            complex_value = sph_harm_y(degree, abs(order), polar, azimuth)
            if order < 0:
                expected.append(np.sqrt(2) * complex_value.imag)
            elif order == 0:
                expected.append(complex_value.real)
            else:
                expected.append(np.sqrt(2) * complex_value.real)
    torch.testing.assert_close(basis(directions, 3), torch.from_numpy(np.stack(expected, -1)), **EXACT)


def test_a_gaussian_on_each_axis_sees_the_signs_of_3dgs() -> None:
    # Degree 1 is (-y, z, -x) times 0.4886, of the direction from the camera to the Gaussian.
    harmonics = torch.eye(3)[None].expand(3, 3, 3).contiguous()
    colours = evaluate(torch.ones(3, 3), harmonics, torch.eye(3) * 7, torch.zeros(3), 1)
    expected = 1 + 0.4886025 * torch.tensor([[0.0, 0, -1], [-1, 0, 0], [0, 1, 0]])
    torch.testing.assert_close(colours, expected, **SINGLE)


@pytest.mark.parametrize(("held", "degree"), [(held, degree) for held in (1, 2, 3) for degree in range(held + 1)])
def test_the_compiled_version_agrees_with_plain_torch_in_double_precision(held: int, degree: int) -> None:
    single = [t.requires_grad_() for t in case(held, torch.float32)[:3]]
    double = [t.detach().double().requires_grad_() for t in single]
    position = case(held, torch.float32)[3]
    colours = evaluate(*single, position, degree)
    expected = evaluate_plain(*double, position.double(), degree)
    torch.testing.assert_close(colours, expected.float(), **SINGLE)
    outward = torch.randn(colours.shape, generator=torch.Generator().manual_seed(5))
    gradients = torch.autograd.grad(colours, single, outward, allow_unused=True, materialize_grads=True)
    references = torch.autograd.grad(expected, double, outward.double(), allow_unused=True, materialize_grads=True)
    for gradient, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient, reference.float(), **SINGLE)
    assert (gradients[1][:, LENGTHS[degree] :] == 0).all()


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_plain_torch_has_the_gradient_of_finite_differences(degree: int) -> None:
    base, harmonics, means, position = case(degree, torch.float64, num=5)
    inputs = tuple(t.requires_grad_() for t in (base, harmonics, means))
    assert torch.autograd.gradcheck(lambda b, h, m: evaluate_plain(b, h, m, position, degree), inputs)


def test_a_gaussian_where_the_camera_stands_has_no_direction_and_finite_gradients() -> None:
    base, harmonics, means, position = case(3, torch.float32)
    means[0] = position
    inputs = [t.requires_grad_() for t in (base, harmonics, means)]
    colours = evaluate(*inputs, position, 3)
    assert all(g.isfinite().all() for g in torch.autograd.grad(colours.sum(), inputs))


def test_colours_below_black_are_black_and_push_nothing() -> None:
    base, harmonics, means, position = case(2, torch.float32)
    inputs = [t.requires_grad_() for t in (base - 100, harmonics, means)]
    colours = evaluate(*inputs, position, 2)
    assert (colours == 0).all()
    assert all((g == 0).all() for g in torch.autograd.grad(colours.sum(), inputs))


def test_without_harmonics_the_colour_is_the_base() -> None:
    base = torch.tensor([[-0.5, 0.25, 2.0]])
    colours = evaluate(base, torch.zeros(1, 0, 3), torch.ones(1, 3), torch.zeros(3), 0)
    assert colours.tolist() == [[0, 0.25, 2]]


def test_the_number_of_threads_changes_nothing() -> None:
    inputs = case(3, torch.float32, num=1001)
    threads = thread_count()
    try:
        results = []
        for number in (1, 3):
            set_thread_count(number)
            leaves = [t.clone().requires_grad_() for t in inputs[:3]]
            colours = evaluate(*leaves, inputs[3], 3)
            results.append([colours, *torch.autograd.grad(colours.square().sum(), leaves)])
    finally:
        set_thread_count(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
