"""Nobody is added, moved or dropped: the population stays as it was initialized."""

from torch import Generator, Tensor

from nfc_gs.config import spec
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Edit, Population
from nfc_gs.core.rendering import Rendering
from nfc_gs.strategies.base import Strategy


@spec
class Fixed(Strategy):
    """Keeps every Gaussian it was given; for fine-tuning, pruned models and tests."""

    @property
    def absgrad(self) -> bool:
        """Never needed."""
        return False

    @property
    def weights(self) -> bool:
        """Never needed."""
        return False

    def init(self, num_gaussians: int, device: str) -> dict[str, Tensor]:
        """No statistics."""
        return {}

    def observe(
        self, state: dict[str, Tensor], rendering: Rendering, camera: Camera, step: int, steps: int, views: int = 1
    ) -> None:
        """Nothing is kept."""

    def edit(
        self,
        state: dict[str, Tensor],
        population: Population,
        step: int,
        steps: int,
        generator: Generator,
        views: int = 1,
    ) -> Edit | None:
        """No change is ever due."""
        return None

    def settle(self, state: dict[str, Tensor], edit: Edit) -> dict[str, Tensor]:
        """No statistics."""
        return {}

    def perturb(
        self, population: Population, means_rate: float, step: int, steps: int, generator: Generator
    ) -> Tensor | None:
        """No noise."""
        return None


Spec = Fixed
