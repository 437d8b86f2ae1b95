"""Gaussians that stay where they are."""

from jaxtyping import Float
from torch import Tensor

from nfc_gs.config import spec
from nfc_gs.core.gaussians import Gaussians
from nfc_gs.deformations.base import Deformation, DeformationField


class Rest(DeformationField):
    """No motion, no parameters."""

    def forward(self, gaussians: Gaussians, time: float) -> Gaussians:
        """The Gaussians themselves."""
        return gaussians

    def penalties(self) -> dict[str, Tensor]:
        """None."""
        return {}


@spec
class Static(Deformation):
    """A still scene (3DGS, Kerbl et al. 2023)."""

    def init(self, bounds: Float[Tensor, "2 3"]) -> Rest:
        """The field at rest."""
        return Rest()


Spec = Static
