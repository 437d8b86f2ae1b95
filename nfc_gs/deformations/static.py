"""Gaussians that stay where they are."""

from jaxtyping import Float
from torch import Generator, Tensor, nn

from nfc_gs.config import spec
from nfc_gs.core.gaussians import Gaussians, Population
from nfc_gs.deformations.base import Deformation, DeformationField, Moved


class Rest(DeformationField):
    """No motion, no parameters."""

    def forward(self, gaussians: Gaussians, time: float) -> Moved:
        """The Gaussians themselves."""
        return Moved(gaussians=gaussians)

    def advance(self, population: Population, progress: float) -> None:
        """Nothing ever begins."""

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """None."""
        return {}

    def rates(self, progress: float) -> dict[str, float]:
        """None."""
        return {}

    def penalties(self, gaussians: Gaussians, time: float) -> dict[str, Tensor]:
        """None."""
        return {}

    def scalars(self) -> dict[str, float]:
        """None."""
        return {}


@spec
class Static(Deformation):
    """A still scene (3DGS, Kerbl et al. 2023)."""

    def init(self, bounds: Float[Tensor, "2 3"], num_times: int, generator: Generator) -> Rest:
        """The field at rest."""
        return Rest()


Spec = Static
