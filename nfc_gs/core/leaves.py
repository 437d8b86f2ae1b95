"""Parameters whose gradients are told by what they are made of, where writing them out would take most of the time."""

import abc

import numpy as np
import torch
from torch import Tensor, nn

from nfc_gs.kernels import rows
from nfc_gs.kernels.threads import thread_count


class Pull(abc.ABC):
    """A parameter's gradient, a row a Gaussian, told by numbers that are fewer than it has.

    Adam, which reads a gradient once, then makes it as it goes. What it is made of must be as it was in the forward pass.
    """

    @abc.abstractmethod
    def write(self, first: int, last: int, gradient: np.ndarray) -> None:
        """Writes the rows first .. last of the gradient, a flat array, out."""

    @abc.abstractmethod
    def step(
        self,
        first: int,
        last: int,
        values: np.ndarray,
        moments: np.ndarray,
        squares: np.ndarray,
        *numbers: np.float32,
    ) -> None:
        """`kernels.adam.step` of these rows, with the gradient that `write` would write."""

    def joined(self, other: "Pull") -> "Pull | None":
        """The sum of both, if that can be told, too."""
        return None


class Leaf(nn.Parameter):
    """A parameter that takes its gradient told, as well as written out in `grad`, while it `listens`.

    `heard` is what was told: a part of its gradient, to which `grad` is to be added.
    """

    listens: bool = False
    heard: Pull | None = None

    def tell(self, pull: Pull) -> None:
        """Adds to its gradient."""
        joined = pull if self.heard is None else self.heard.joined(pull)
        if joined is None:
            written = written_out(pull, self)
            self.grad = written if self.grad is None else self.grad.add_(written)
        else:
            self.heard = joined

    def forget(self) -> None:
        """There is no gradient any more."""
        self.grad, self.heard = None, None


def tell_or_write(pull: Pull, tensor: Tensor) -> Tensor | None:
    """What a backward pass returns as the gradient of a tensor: nothing, if that is a parameter that could be told it."""
    if isinstance(tensor, Leaf) and tensor.listens:
        tensor.tell(pull)
        return None
    return written_out(pull, tensor)


def written_out(pull: Pull, tensor: Tensor) -> Tensor:
    """The gradient of this tensor."""
    gradient = torch.empty(tensor.shape)
    rows.split(pull.write, len(tensor), thread_count(), gradient.view(-1).numpy())
    return gradient
