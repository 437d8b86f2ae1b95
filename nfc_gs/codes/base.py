"""What every code is: one scalar as a word of K numbers in [0, 1], and back."""

import abc

from jaxtyping import Float
from torch import Tensor


class TargetCode(abc.ABC):
    """A code for scalars; the same class serves colour channels, opacities and any other scalar field.

    A Gaussian holds logits; a logit's sigmoid is the probability that its bit is one; `decode` gives the value that the
    probabilities mean. `values` is that whole way, and `logits` its inverse.
    """

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """K, how many numbers a scalar becomes."""

    @property
    @abc.abstractmethod
    def linear(self) -> bool:
        """Whether decoding is linear in the probabilities, so that it commutes with alpha compositing."""

    @abc.abstractmethod
    def encode(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape K"]:
        """Labels in [0, 1] of values in [0, 1] (values outside are clamped): the word, most significant bit first."""

    @abc.abstractmethod
    def decode(self, probabilities: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape"]:
        """The expected value, in [0, 1], if the bits were independent coins with these probabilities; differentiable."""

    @abc.abstractmethod
    def probabilities(self, logits: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape K"]:
        """What is composited and classified, in [0, 1] for every code but `identity`."""

    @abc.abstractmethod
    def values(self, logits: Float[Tensor, "*shape K"], unit: bool) -> Float[Tensor, "*shape"]:
        """The values that logits mean; with `unit` they are opacities and must lie in [0, 1], else colours, which
        `identity` leaves unbounded as 3DGS does.
        """

    @abc.abstractmethod
    def logits(self, values: Float[Tensor, "*shape"], unit: bool) -> Float[Tensor, "*shape K"]:
        """Logits whose `values` are the given ones (to 1e-4, clamped to [1/512, 1 - 1/512] where the code is bounded) and whose bits
        differ, so that Adam does not move them in lock-step.
        """
