"""What every code is: one scalar as a word of K numbers in [0, 1], and back."""

import abc
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfc_gs.config import spec
from nfc_gs.core.leaves import Pull, tell_or_write
from nfc_gs.kernels import rows
from nfc_gs.kernels import words as kernels
from nfc_gs.kernels.threads import threads_for

CPU = torch.device("cpu")
# Halvings of an interval of logits some 60 wide: a step of 4e-6, a hundredth of what `logits` promises.
BISECTIONS = 24


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

    @property
    def adapts(self) -> bool:
        """Whether it must be fitted to a scene's colours before it is used."""
        return False

    def fit(self, colours: Float[Tensor, "P 3"]) -> "TargetCode":
        """The code made for a scene of these colours in [0, 1]; itself, if it is the same for all."""
        return self

    @abc.abstractmethod
    def encode(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape K"]:
        """Labels in [0, 1] of values in [0, 1] (values outside are clamped): the word, most significant bit first."""

    def encode_bit(self, values: Float[Tensor, "*shape"], bit: int) -> Float[Tensor, "*shape"]:
        """`encode`'s bit number `bit` alone."""
        return self.encode(values)[..., bit]

    def ramp(self, bit: int) -> tuple[float, float] | None:
        """(a, b) if `encode_bit` of this bit is a value times a, less b, between 0 and 1."""
        return None

    @abc.abstractmethod
    def words(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape K"]:
        """The hard words of values in [0, 1] (others are clamped): every bit 0 or 1, however soft `encode` is."""

    @abc.abstractmethod
    def decode(self, probabilities: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape"]:
        """The expected value in [0, 1] if the bits were independent coins with these probabilities; differentiable."""

    @abc.abstractmethod
    def probabilities(self, logits: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape K"]:
        """What is composited and classified, each from its own logit; in [0, 1] for every code but `identity`."""

    def probability(self, logits: Float[Tensor, "*shape K"], bit: int) -> Float[Tensor, "*shape"]:
        """`probabilities`' bit number `bit` alone."""
        # A copy of its own: every K-th number would be read again and again otherwise.
        return self.probabilities(logits[..., bit].contiguous())

    @abc.abstractmethod
    def values(self, logits: Float[Tensor, "*shape K"], unit: bool) -> Float[Tensor, "*shape"]:
        """The values that logits mean; with `unit` they are opacities and must lie in [0, 1], else colours, which
        `identity` leaves unbounded as 3DGS does.
        """

    @abc.abstractmethod
    def logits(self, values: Float[Tensor, "*shape"], unit: bool) -> Float[Tensor, "*shape K"]:
        """Logits whose `values` are the given ones (to 1e-4, clamped to `bounded` where the code is bounded) and whose
        bits differ, so that Adam does not move them in lock-step.
        """


@spec
class LevelCode(TargetCode):
    """A code that has one word for each of 2^bits equidistant levels of [0, 1]; members say which, and what it means.

    `bits` 1 to 16. `soft`: labels are the mean word of the levels within `soft` of the nearest one (0: hard words).
    `margin`: how sure the first logits are.
    """

    bits: int = 8
    soft: int = 0
    margin: float = 2.0

    def __post_init__(self) -> None:
        check_bits(self.bits, 16)
        if self.soft < 0:
            raise ValueError(f"soft must be 0 (hard words) or a number of levels, found {self.soft}")

    @property
    def width(self) -> int:
        """The number of bits."""
        return self.bits

    @abc.abstractmethod
    def word_of(self, levels: Int[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape K"]:
        """The words of levels 0 to 2^bits - 1."""

    def encode(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape K"]:
        """The word of the nearest level, or with `soft` the mean word of its neighbourhood.

        At the ends the last level stands for those that are missing.
        """
        if not self.soft:
            return self.words(values)
        nearest, last = self._nearest(values), 2**self.bits - 1
        neighbours = [(nearest + offset).clamp(0, last) for offset in range(-self.soft, self.soft + 1)]
        return torch.stack([self.word_of(levels, values.dtype) for levels in neighbours]).mean(0)

    def words(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape K"]:
        """The word of the nearest level."""
        return self.word_of(self._nearest(values), values.dtype)

    def probabilities(self, logits: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape K"]:
        """Sigmoids."""
        return torch.sigmoid(logits)

    def probability(self, logits: Float[Tensor, "*shape K"], bit: int) -> Float[Tensor, "*shape"]:
        """One bit's sigmoids."""
        return chance(logits, bit)

    def values(self, logits: Float[Tensor, "*shape K"], unit: bool) -> Float[Tensor, "*shape"]:
        """Decoded sigmoids, in [0, 1] for colours and opacities alike."""
        return self.decode(torch.sigmoid(logits))

    def _nearest(self, values: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        return (values.clamp(0, 1) * (2**self.bits - 1)).round().int()


def check_bits(bits: int, most: int) -> None:
    """Refuses widths that a code does not have."""
    if not 1 <= bits <= most:
        raise ValueError(f"bits must be 1 to {most}, found {bits}")


def bits_of(levels: Int[Tensor, "*shape"], bits: int, dtype: torch.dtype) -> Float[Tensor, "*shape K"]:
    """Binary words, most significant bit first."""
    places = torch.arange(bits - 1, -1, -1, dtype=levels.dtype, device=levels.device)
    return (levels[..., None] >> places & 1).to(dtype)


@functools.lru_cache
def place_values(bits: int, device: torch.device = CPU, dtype: torch.dtype = torch.float64) -> Float[Tensor, " K"]:
    """2^-k / sum 2^-k; kept, since a copy to a CUDA device makes the program wait."""
    values = 2.0 ** -torch.arange(bits, dtype=torch.float64)
    return (values / values.sum()).to(device, dtype)


@functools.lru_cache
def equal_values(bits: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, " K"]:
    """1 / K, as often; kept, too."""
    return torch.full((bits,), 1 / bits, device=device, dtype=dtype)


def bounded(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Values clamped to [1/512, 1 - 1/512], half a step of eight bits from where logits would be infinite."""
    return values.clamp(1 / 512, 1 - 1 / 512)


def start(words: Float[Tensor, "*shape K"], margin: float) -> Float[Tensor, "*shape K"]:
    """Logits that say a word with confidence: +margin for a one and -margin for a zero.

    The margin falls by a fifth from the first bit to the last: bits of equal logits would move in lock-step under Adam,
    and the words of black and white are all zeros and all ones.
    """
    tilt = torch.linspace(1.1, 0.9, words.shape[-1], dtype=words.dtype, device=words.device)
    return (2 * words - 1) * margin * tilt


def solve(
    values: Float[Tensor, "*shape"], value_at: Callable[[Tensor], Tensor], low: float, high: float
) -> Float[Tensor, "*shape"]:
    """The arguments, one for each value, at which `value_at` passes that value, by bisection.

    `value_at` must be continuous, at most the value at `low` and at least the value at `high`.
    """
    below, above = torch.full_like(values, low), torch.full_like(values, high)
    for _ in range(BISECTIONS):
        middle = (below + above) / 2
        short = value_at(middle) < values
        below, above = torch.where(short, middle, below), torch.where(short, above, middle)
    return (below + above) / 2


def expected(logits: Float[Tensor, "*shape K"], weights: Float[Tensor, " K"]) -> Float[Tensor, "*shape"]:
    """The weighted sum of the logits' sigmoids: what a word means where decoding is linear. Differentiable in the logits.

    The weights are of the logits' type, and on their device.
    """
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        # The kernels take rows of words.
        return _Expected.apply(logits, weights) if logits.ndim > 1 else _Expected.apply(logits[None], weights)[0]
    return torch.sigmoid(logits) @ weights


def chance(logits: Float[Tensor, "*shape K"], bit: int) -> Float[Tensor, "*shape"]:
    """The sigmoids of one bit of every word. Differentiable in the logits."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        return _Chance.apply(logits, bit) if logits.ndim > 1 else _Chance.apply(logits[None], bit)[0]
    return torch.sigmoid(logits[..., bit])


def level(values: Float[Tensor, "*shape"], bits: int, bit: int) -> Float[Tensor, "*shape"]:
    """How far values in [0, 1] are above threshold number `bit` of `bits`, in steps, between 0 and 1. Differentiable."""
    if values.device.type != "cpu" or values.dtype != torch.float32 or values.requires_grad:
        return (values * bits - bit).clamp(0, 1)
    levels = torch.empty(values.shape)
    arrays = _flat(values), bits, bit, levels.view(-1).numpy()
    rows.split(kernels.levels, values.numel(), threads_for(values.numel()), *arrays)
    return levels


@dataclass(frozen=True, kw_only=True)
class _WordsPull(Pull):
    """The gradient of words of logits [N * K], from those of their values and of the sigmoids of a bit that is marked."""

    logits: np.ndarray
    weights: np.ndarray
    marks: np.ndarray
    together: int
    by_values: np.ndarray
    by_chances: np.ndarray

    @classmethod
    def of_values(cls, logits: Tensor, weights: Tensor, gradient: Tensor) -> "_WordsPull":
        """By the gradient of the words' values, which are sums of these weights."""
        return cls._of(logits, gradient, _flat(weights), np.zeros(len(weights), np.float32))

    @classmethod
    def of_chances(cls, logits: Tensor, bit: int, gradient: Tensor) -> "_WordsPull":
        """By that of the sigmoids of one bit."""
        marks = np.zeros(logits.shape[-1], np.float32)
        marks[bit] = 1
        return cls._of(logits, gradient, np.zeros_like(marks), marks)

    @classmethod
    def _of(cls, logits: Tensor, gradient: Tensor, weights: np.ndarray, marks: np.ndarray) -> "_WordsPull":
        pull, together = _flat(gradient), logits.shape[1:-1].numel()
        return cls(
            logits=_flat(logits), weights=weights, marks=marks, together=together, by_values=pull, by_chances=pull
        )

    def write(self, first: int, last: int, gradient: np.ndarray) -> None:
        """See `Pull`."""
        kernels.write(first, last, *self._inputs, self.logits, gradient)

    def step(
        self, first: int, last: int, values: np.ndarray, moments: np.ndarray, squares: np.ndarray, *numbers: np.float32
    ) -> None:
        """See `Pull`."""
        kernels.step(first, last, *self._inputs, values, moments, squares, *numbers)

    def joined(self, other: Pull) -> "Pull | None":
        """With one of a bit, if this one is of values, or the other way round."""
        if not isinstance(other, _WordsPull):
            return None
        if not self.marks.any() and not other.weights.any():
            return replace(self, marks=other.marks, by_chances=other.by_chances)
        if not self.weights.any() and not other.marks.any():
            return replace(self, weights=other.weights, by_values=other.by_values)
        return None

    @property
    def _inputs(self) -> tuple[object, ...]:
        return self.by_values, self.weights, self.by_chances, self.marks, self.together


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().contiguous().view(-1).numpy()


class _Expected(torch.autograd.Function):
    """`expected` by the compiled kernels."""

    @staticmethod
    def forward(ctx, logits, weights):  # type: ignore[no-untyped-def]
        values = torch.empty(logits.shape[:-1])
        arrays = _flat(logits), _flat(weights), values.view(-1).numpy()
        rows.split(kernels.expectations, values.numel(), threads_for(logits.numel()), *arrays)
        ctx.save_for_backward(logits, weights)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        logits, weights = ctx.saved_tensors
        return tell_or_write(_WordsPull.of_values(logits, weights, gradient), logits), None


class _Chance(torch.autograd.Function):
    """`chance` by the compiled kernels."""

    @staticmethod
    def forward(ctx, logits, bit):  # type: ignore[no-untyped-def]
        chances = torch.empty(logits.shape[:-1])
        arrays = _flat(logits), logits.shape[-1], bit, chances.view(-1).numpy()
        rows.split(kernels.one_bit, chances.numel(), threads_for(logits.numel()), *arrays)
        ctx.save_for_backward(logits)
        ctx.bit = bit
        return chances

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (logits,) = ctx.saved_tensors
        return tell_or_write(_WordsPull.of_chances(logits, ctx.bit, gradient), logits), None
