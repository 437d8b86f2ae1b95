"""View-dependent colour: spherical harmonics of degree 1 to 3, in the signs and order of 3DGS (Kerbl et al. 2023)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

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
        return _Harmonics.apply(base, harmonics, means, position, degree)
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


class _Harmonics(torch.autograd.Function):
    """`evaluate` by the compiled kernels."""

    @staticmethod
    def forward(ctx, base, harmonics, means, position, degree):  # type: ignore[no-untyped-def]
        harmonics, means, position = (t.detach().contiguous() for t in (harmonics, means, position))
        colours = torch.empty_like(base, memory_format=torch.contiguous_format)
        inputs = [t.numpy() for t in (base.detach().contiguous(), harmonics, means, position)]
        rows.split(kernels.forward, len(base), thread_count(), *inputs, degree, colours.numpy())
        ctx.save_for_backward(harmonics, means, position, colours)
        ctx.degree = degree
        return colours

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        harmonics, means, position, colours = ctx.saved_tensors
        gradients = torch.empty_like(colours), torch.empty_like(harmonics), torch.empty_like(means)
        inputs = [harmonics.numpy(), means.numpy(), position.numpy(), ctx.degree, colours.numpy()]
        outputs = [gradient.contiguous().numpy(), *(g.numpy() for g in gradients)]
        rows.split(kernels.backward, len(means), thread_count(), *inputs, *outputs)
        return *gradients, None, None
