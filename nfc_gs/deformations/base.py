"""What every deformation is: a spec that makes a field."""

import abc

from jaxtyping import Float
from torch import Tensor, nn

from nfc_gs.core.gaussians import Gaussians


class DeformationField(nn.Module, abc.ABC):
    """Moves canonical Gaussians to a time; the identity at birth."""

    @abc.abstractmethod
    def forward(self, gaussians: Gaussians, time: float) -> Gaussians:
        """The same Gaussians, in the same order, at `time` in [0, 1]."""

    @abc.abstractmethod
    def penalties(self) -> dict[str, Tensor]:
        """Regularisers of the field itself, weighted scalars by name."""


class Deformation(abc.ABC):
    """The settings of a field."""

    @abc.abstractmethod
    def init(self, bounds: Float[Tensor, "2 3"]) -> DeformationField:
        """A new field for a scene inside the box `bounds`."""
