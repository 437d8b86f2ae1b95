"""SSIM, against an 11 x 11 convolution in double precision."""

import pytest
import torch
from torch import Tensor

from nfc_gs.core.ssim import mean_ssim, ssim_map
from nfc_gs.kernels.threads import set_thread_count, thread_count

EXACT = {"rtol": 0, "atol": 1e-12}  # float64; the reference sums 121 terms
SINGLE = {"rtol": 0, "atol": 2e-6}  # float32 variances lose 1e-7, against C2 = 9e-4
SHAPES = [(23, 17), (1, 1), (3, 40), (11, 11), (64, 5)]


def pictures(height: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height)
    x = torch.rand(height, width, 3, dtype=dtype, generator=generator)
    return x, (x + 0.2 * torch.randn(height, width, 3, dtype=dtype, generator=generator)).clamp(0, 1)


def reference(x: Tensor, y: Tensor) -> Tensor:
    """SSIM with one 11 x 11 window, sigma 1.5, zeros outside, the moments kept apart; [H W 3] to [H W 3]."""
    offsets = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2

    def blur(picture: Tensor) -> Tensor:
        planes = torch.nn.functional.pad(picture.permute(2, 0, 1)[:, None], (5, 5, 5, 5))
        return torch.nn.functional.conv2d(planes, window[None, None])[:, 0].permute(1, 2, 0)

    u, v = blur(x), blur(y)
    variance_x, variance_y, covariance = blur(x * x) - u * u, blur(y * y) - v * v, blur(x * y) - u * v
    top = (2 * u * v + 0.01**2) * (2 * covariance + 0.03**2)
    return top / ((u * u + v * v + 0.01**2) * (variance_x + variance_y + 0.03**2))


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_the_map_is_that_of_an_eleven_by_eleven_window_with_zeros_outside(height: int, width: int) -> None:
    x, y = pictures(height, width)
    torch.testing.assert_close(ssim_map(x, y), reference(x, y), **EXACT)


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_the_compiled_mean_and_its_gradient_agree_with_double_precision(height: int, width: int, masked: bool) -> None:
    x, y = pictures(height, width)
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(1)) > 0.4 if masked else None
    x = x.requires_grad_()
    single = x.detach().float().requires_grad_()
    similarity = reference(x, y)
    expected = similarity.mean() if mask is None else similarity[mask].mean()
    found = mean_ssim(single, y.float(), mask)
    torch.testing.assert_close(found.double(), expected, **SINGLE)
    (gradient,) = torch.autograd.grad(3 * found, single)
    (by_x,) = torch.autograd.grad(3 * expected, x)
    # Relative to the largest slope: a mean over few pixels is steep.
    torch.testing.assert_close(gradient.double(), by_x, rtol=0, atol=1e-4 * by_x.abs().max().item())


@pytest.mark.parametrize("masked", [False, True])
def test_double_precision_has_the_gradient_of_finite_differences(masked: bool) -> None:
    x, y = pictures(6, 7)
    mask = torch.rand(6, 7, generator=torch.Generator().manual_seed(1)) > 0.4 if masked else None
    assert torch.autograd.gradcheck(lambda x: mean_ssim(x, y, mask), x.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_picture_is_entirely_similar_to_itself(dtype: torch.dtype) -> None:
    x, _ = pictures(20, 30, dtype)
    torch.testing.assert_close(mean_ssim(x, x).item(), 1.0, **SINGLE)


def test_the_second_picture_gets_no_gradient() -> None:
    x, y = (p.requires_grad_() for p in pictures(12, 12, torch.float32))
    mean_ssim(x, y).backward()
    assert x.grad is not None and y.grad is None


def test_windows_reach_beyond_the_mask_but_its_pixels_alone_are_averaged() -> None:
    x, y = pictures(20, 20, torch.float32)
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[8:12, 5:9] = True
    torch.testing.assert_close(mean_ssim(x, y, mask), ssim_map(x, y)[mask].mean(), **SINGLE)


def test_pictures_need_not_be_contiguous() -> None:
    x, y = pictures(13, 14, torch.float32)
    wide = torch.cat([x, y], -1)
    assert torch.equal(mean_ssim(wide[..., :3], wide[..., 3:]), mean_ssim(x, y))


def test_the_number_of_threads_changes_nothing() -> None:
    x, y = pictures(37, 30, torch.float32)
    threads = thread_count()
    try:
        results = []
        for number in (1, 2, 5):
            set_thread_count(number)
            leaf = x.clone().requires_grad_()
            value = mean_ssim(leaf, y)
            results.append((value.detach(), *torch.autograd.grad(value, leaf)))
    finally:
        set_thread_count(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
