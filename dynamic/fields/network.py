"""What the fields have in common that ask a network where each Gaussian goes."""

import abc

from jaxtyping import Float
from torch import Tensor

from dynamic.fields.residuals import Heads
from nfc_gs.core.gaussians import Gaussians
from nfc_gs.deformations.base import DeformationField, Moved


class NetworkField(DeformationField):
    """A field whose `heads` turn features of each Gaussian into residuals, once it is `awake`; a member makes both."""

    heads: Heads
    awake: Tensor

    @abc.abstractmethod
    def features(self, gaussians: Gaussians, time: float) -> Float[Tensor, "N F"]:
        """What the heads are given at a time in [0, 1]; they begin with a rectifier."""

    def check(self, gaussians: Gaussians) -> None:
        """Refuses codes with another number of logits than `residuals` names, with a ConfigError."""
        self.heads.check(gaussians)

    def forward(self, gaussians: Gaussians, time: float) -> Moved:
        """The Gaussians with the network's residuals on their raw parameters."""
        if not self.awake:
            return Moved(gaussians=gaussians)
        return self.heads(self.features(gaussians, time), gaussians)
