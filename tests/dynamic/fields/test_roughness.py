"""Second differences: against plain torch in float64 and finite differences."""

import pytest
import torch

from dynamic.fields.roughness import roughness, roughness_plain

# A mean of some hundred float32 squares.
CLOSE = {"rtol": 2e-6, "atol": 1e-7}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_compiled_roughness_and_its_gradient_equal_plain_torch_in_float64(axis: int) -> None:
    plain = torch.randn(3, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    fused = plain.detach().float().requires_grad_()
    got, wanted = roughness(fused, axis), roughness_plain(plain, axis)
    torch.testing.assert_close(got.double(), wanted, **CLOSE)
    (3 * got).backward()
    (3 * wanted).backward()
    torch.testing.assert_close(fused.grad.double(), plain.grad, **CLOSE)
    assert torch.autograd.gradcheck(lambda values: roughness_plain(values, axis), [plain])


def test_a_straight_line_is_not_rough_and_a_parabola_is_the_same_everywhere() -> None:
    ramp = torch.arange(9.0)[:, None].expand(9, 5)
    assert float(roughness(ramp, 0)) == 0
    # The second difference of n^2 is 2.
    assert float(roughness(ramp**2, 0)) == 4
