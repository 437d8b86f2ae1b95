"""View-dependent colour: spherical harmonics of degree 1 to 3, in the signs and order of 3DGS (Kerbl et al. 2023)."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfc_gs.core.leaves import Pull, tell_or_write
from nfc_gs.kernels import harmonics as kernels
from nfc_gs.kernels import rows
from nfc_gs.kernels.threads import thread_count


def evaluate(
    base: Float[Tensor, "N 3"],
    harmonics: Float[Tensor, "N L 3"],
    means: Float[Tensor, "N 3"],
    position: Float[Tensor, "3"],
    degree: int,
) -> Float[Tensor, "N 3"]:
    """max(0, base + sum of the harmonics at the direction from the camera to the Gaussian); not clamped above.

    Differentiable in everything but `position`. Compiled for float32 on a CPU, plain torch elsewhere.

    Args:
        base: the view-independent colour.
        harmonics: coefficients of degree 1 and up; L = 0, 3, 8 or 15.
        means: where the Gaussians are, in world units.
        position: where the camera is.
        degree: the highest degree to use, at most what L holds; higher coefficients are ignored and get zero gradient, or
            none at degree 0.
    """
    held = {0: 0, 3: 1, 8: 2, 15: 3}[harmonics.shape[1]]
    assert 0 <= degree <= held, f"harmonics of degree {degree} asked of coefficients up to degree {held}"
    if degree == 0:
        # The coefficients get no gradient at all, rather than zeros that an optimizer would work through.
        return base.relu()
    if base.device.type == "cpu" and base.dtype == torch.float32:
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (base, harmonics, means))
        return _Harmonics.apply(base, harmonics, means, position, degree, wanted)
    return evaluate_plain(base, harmonics, means, position, degree)


def evaluate_plain(
    base: Float[Tensor, "N 3"],
    harmonics: Float[Tensor, "N L 3"],
    means: Float[Tensor, "N 3"],
    position: Float[Tensor, "3"],
    degree: int,
) -> Float[Tensor, "N 3"]:
    """The same as `evaluate`, in plain torch on any device and in any precision."""
    directions = torch.nn.functional.normalize(means - position.detach(), dim=-1)
    values = basis(directions, degree)
    return (base + (values[..., None] * harmonics[:, : values.shape[1]]).sum(1)).relu()


def basis(directions: Float[Tensor, "N 3"], degree: int) -> Float[Tensor, "N L"]:
    """The harmonics of degree 1 to `degree` at unit directions, in the order of 3DGS: L = (degree + 1)^2 - 1."""
    x, y, z = directions.unbind(-1)
    values: list[Tensor] = []
    if degree > 0:
        values += [-kernels.SH_C1 * y, kernels.SH_C1 * z, -kernels.SH_C1 * x]
    if degree > 1:
        xx, yy, zz = x * x, y * y, z * z
        factors = [x * y, y * z, 2 * zz - xx - yy, x * z, xx - yy]
        values += [c * f for c, f in zip(kernels.SH_C2, factors, strict=True)]
    if degree > 2:
        factors = [
            y * (3 * xx - yy),
            x * y * z,
            y * (4 * zz - xx - yy),
            z * (2 * zz - 3 * xx - 3 * yy),
            x * (4 * zz - xx - yy),
            z * (xx - yy),
            x * (xx - 3 * yy),
        ]
        values += [c * f for c, f in zip(kernels.SH_C3, factors, strict=True)]
    return torch.stack(values, -1) if values else directions.new_zeros(len(directions), 0)


@dataclass(frozen=True, kw_only=True)
class _HarmonicsPull(Pull):
    """The gradient of coefficients [N `held` 3], by that of the colours before they are clamped [N 3]."""

    by_sum: np.ndarray
    means: np.ndarray
    position: np.ndarray
    degree: int
    held: int

    def write(self, first: int, last: int, gradient: np.ndarray) -> None:
        """See `Pull`."""
        kernels.write(first, last, *self._inputs, gradient)

    def step(
        self, first: int, last: int, values: np.ndarray, moments: np.ndarray, squares: np.ndarray, *numbers: np.float32
    ) -> None:
        """See `Pull`."""
        kernels.step(first, last, *self._inputs, values, moments, squares, *numbers)

    @property
    def _inputs(self) -> tuple[object, ...]:
        return self.by_sum, self.means, self.position, self.degree, self.held


class _Harmonics(torch.autograd.Function):
    """`evaluate` by the compiled kernels."""

    @staticmethod
    def forward(ctx, base, harmonics, means, position, degree, wanted):  # type: ignore[no-untyped-def]
        arrays = [t.detach().contiguous().numpy() for t in (base, harmonics, means, position)]
        count, threads = len(base), thread_count()
        colours = torch.empty_like(base, memory_format=torch.contiguous_format)
        if not wanted:
            rows.split(kernels.forward, count, threads, *arrays, degree, colours.numpy())
            return colours
        slopes = torch.empty(3, count, 3)
        rows.split(kernels.forward_with_slopes, count, threads, *arrays, degree, colours.numpy(), slopes.numpy())
        ctx.save_for_backward(harmonics, means, position, colours, slopes)
        ctx.degree = degree
        return colours

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        harmonics, means, position, colours, slopes = ctx.saved_tensors
        count, threads = len(means), thread_count()
        by_base, by_means = torch.empty_like(colours), torch.empty_like(colours)
        arrays = [t.numpy() for t in (colours, slopes, gradient.contiguous(), by_base, by_means)]
        rows.split(kernels.backward, count, threads, *arrays)
        by_harmonics = None
        if ctx.needs_input_grad[1]:
            pull = _HarmonicsPull(
                by_sum=arrays[3],
                means=means.detach().contiguous().numpy(),
                position=position.detach().contiguous().numpy(),
                degree=ctx.degree,
                held=harmonics.shape[1],
            )
            by_harmonics = tell_or_write(pull, harmonics)
        return by_base, by_harmonics, by_means, None, None, None
