"""What every deformation is: a spec that makes a field."""

import abc
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Generator, Tensor, nn

from nfc_gs.core.gaussians import Gaussians, Population


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Gaussians at a time: the same ones in the same order.

    `colour_residual`, where a field has one, is added to the decoded colours, in value space.
    """

    gaussians: Gaussians
    colour_residual: Float[Tensor, "N 3"] | None = None


class DeformationField(nn.Module, abc.ABC):
    """Moves canonical Gaussians to a time; the identity at birth.

    All that changes in training is in its parameters, in its buffers and in `Gaussians.motion`: a checkpoint saves these
    and nothing else, and a picture depends on these and nothing else. Buffers of one number, flags and counters, stay on the
    CPU wherever the field is moved to: steps ask them, and would wait for a device.
    """

    def _apply(self, *arguments: Any, **settings: Any) -> "DeformationField":
        """What moves a module: `to`, `cuda` and the like."""
        super()._apply(*arguments, **settings)
        for name, buffer in self.named_buffers(recurse=False):
            if buffer.ndim == 0:
                setattr(self, name, buffer.cpu())
        return self

    @abc.abstractmethod
    def forward(self, gaussians: Gaussians, time: float) -> Moved:
        """The Gaussians at `time` in [0, 1]."""

    def check(self, gaussians: Gaussians) -> None:
        """Told before the training begins what it will move.

        Raises:
            ConfigError: its settings do not fit them; by default all do.
        """
        return

    @abc.abstractmethod
    def advance(self, population: Population, progress: float) -> None:
        """Told before each training step what share of the training, in [0, 1), is done: this is where phases begin.

        It may change buffers, and write `population.gaussians.motion` in place; it must come to the same state whether or not the
        training was interrupted in between.
        """

    @abc.abstractmethod
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Its parameters, by the learning rate they share."""

    @abc.abstractmethod
    def rates(self, progress: float) -> dict[str, float]:
        """Adam's learning rate for each of `groups`, and for "motion" (`Gaussians.motion`), at this share of the training."""

    @abc.abstractmethod
    def penalties(self, gaussians: Gaussians, time: float) -> dict[str, Tensor]:
        """Regularisers of the motion, weighted scalars by name; `gaussians` are the canonical ones."""

    @abc.abstractmethod
    def scalars(self) -> dict[str, float]:
        """What is worth a curve in TensorBoard, as the norms of planes and splines."""


class Deformation(abc.ABC):
    """The settings of a field."""

    @property
    def width(self) -> int:
        """The numbers it learns for each Gaussian, `Gaussians.motion`'s D."""
        return 0

    @abc.abstractmethod
    def init(self, bounds: Float[Tensor, "2 3"], num_times: int, generator: Generator) -> DeformationField:
        """A new field for a scene inside the box `bounds` that was photographed at `num_times` different times."""
