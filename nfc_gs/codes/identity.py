"""No code at all: plain regression with 3DGS's own activations, the control of every experiment with bits."""

import torch
from jaxtyping import Float
from torch import Tensor

from nfc_gs.codes.base import TargetCode, equal_values, expected
from nfc_gs.config import spec

# The spherical harmonic of degree 0: 3DGS (Kerbl et al. 2023) keeps a colour v as the coefficient (v - 0.5) / SH_C0.
SH_C0 = 0.28209479177387814
# Opacities are kept this far from 0 and 1, where their logits would be infinite.
OPACITY_MARGIN = 1e-6


@spec
class Identity(TargetCode):
    """One number a scalar: a sigmoid's logit for opacities, 3DGS's `f_dc` for colours (3DGS, Kerbl et al. 2023)."""

    @property
    def width(self) -> int:
        """1."""
        return 1

    @property
    def linear(self) -> bool:
        """True: a value is its own code."""
        return True

    def encode(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape K"]:
        """The values themselves, not clamped; K = 1."""
        return values[..., None]

    def words(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape K"]:
        """The only bit there could be: whether the value is at least one half."""
        return (values >= 0.5).to(values.dtype)[..., None]

    def decode(self, probabilities: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape"]:
        """The values themselves; the inverse of `encode`."""
        return probabilities.squeeze(-1)

    def probabilities(self, logits: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape K"]:
        """The colours that the coefficients mean, as unbounded as 3DGS leaves them."""
        return 0.5 + SH_C0 * logits

    def values(self, logits: Float[Tensor, "*shape K"], unit: bool) -> Float[Tensor, "*shape"]:
        """3DGS's activations: a sigmoid for opacities (`unit`), 0.5 + SH_C0 x for colours."""
        if unit:
            return expected(logits, equal_values(1, logits.device, logits.dtype))
        return 0.5 + SH_C0 * logits.squeeze(
            -1
        )  # a view in the backward pass too; an index would be filled up with zeros

    def logits(self, values: Float[Tensor, "*shape"], unit: bool) -> Float[Tensor, "*shape K"]:
        """The inverse of `values`; opacities are kept `OPACITY_MARGIN` away from 0 and 1."""
        if unit:
            return torch.logit(values, eps=OPACITY_MARGIN)[..., None]
        return ((values - 0.5) / SH_C0)[..., None]


Spec = Identity
