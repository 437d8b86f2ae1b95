"""What every strategy is: a rule that turns what was observed into one `Edit`."""

import abc

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Edit, Population
from nfc_gs.core.rendering import Rendering
from nfc_gs.core.sums import compiled
from nfc_gs.kernels import watching as kernels


def lengths(vectors: Float[Tensor, "N 2"]) -> Float[Tensor, " N"]:
    """The vectors' lengths; a third of the time of torch's norm."""
    x, y = vectors.unbind(1)
    return x.square().addcmul_(y, y).sqrt_()


def add_lengths(vectors: Float[Tensor, "N 2"], sums: Float[Tensor, " N"], counts: Float[Tensor, " N"]) -> None:
    """Adds the vectors' lengths to sums, and one to the counts of those that are not zero; compiled for float32 on a CPU."""
    if compiled(vectors, sums, counts):
        arrays = vectors.detach().contiguous().view(-1).numpy(), sums.numpy(), counts.numpy()
        kernels.add_lengths(*arrays, len(sums))
    else:
        length = lengths(vectors).to(sums)
        sums += length
        counts += length.sign()


def keep_largest(numbers: Float[Tensor, " N"], largest: Float[Tensor, " N"]) -> None:
    """Makes `largest` the larger one of itself and the numbers; compiled for float32 on a CPU."""
    if compiled(numbers, largest):
        kernels.keep_largest(numbers.detach().contiguous().numpy(), largest.numpy(), len(largest))
    else:
        torch.maximum(largest, numbers.to(largest), out=largest)


class Strategy(abc.ABC):
    """Settings only; what changes is the state that `init` makes: per-Gaussian tensors, which edits carry along."""

    @property
    @abc.abstractmethod
    def absgrad(self) -> bool:
        """Whether `observe` needs the absolute screen gradients."""

    @property
    @abc.abstractmethod
    def weights(self) -> bool:
        """Whether `observe` needs the splats' accumulated compositing weights."""

    @abc.abstractmethod
    def init(self, num_gaussians: int, device: str) -> dict[str, Tensor]:
        """The statistics at the start, tensors [N ...]."""

    @abc.abstractmethod
    def observe(
        self, state: dict[str, Tensor], rendering: Rendering, camera: Camera, step: int, steps: int, views: int = 1
    ) -> None:
        """Adds one backward pass to the statistics, in place; `views` is how many training views there are."""

    @abc.abstractmethod
    def edit(
        self,
        state: dict[str, Tensor],
        population: Population,
        step: int,
        steps: int,
        generator: Generator,
        views: int = 1,
    ) -> Edit | None:
        """The change due after this step (counted from 1) of `steps`, if any. It changes nothing itself."""

    @abc.abstractmethod
    def settle(self, state: dict[str, Tensor], edit: Edit) -> dict[str, Tensor]:
        """The statistics of the new population, for the next interval."""

    @abc.abstractmethod
    def perturb(
        self, population: Population, means_rate: float, step: int, steps: int, generator: Generator
    ) -> Tensor | None:
        """What to add to the means [N 3] after the optimizer's step, if anything; `means_rate`: their learning rate."""
