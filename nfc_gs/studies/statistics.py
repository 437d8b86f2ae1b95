"""Means with Student's intervals, and curves read between their points."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from nfc_gs.studies.results import Look

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean of `count` numbers, their sample standard deviation, and half the width of the mean's 95 % interval.

    The last two are None of a single number, which says nothing of its own spread.
    """

    mean: float
    deviation: float | None
    half: float | None
    count: int

    @property
    def above(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.half is not None and self.mean - self.half > 0

    @property
    def below(self) -> bool:
        """Whether the whole interval is below zero."""
        return self.half is not None and self.mean + self.half < 0


def estimate(values: Iterable[float]) -> Estimate | None:
    """The mean and its interval by Student's t (Student 1908), for independent normal numbers; None of nothing."""
    numbers = list(values)
    count = len(numbers)
    if not count:
        return None
    mean = math.fsum(numbers) / count
    if count == 1:
        return Estimate(mean, None, None, 1)
    deviation = math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / (count - 1))
    quantile = float(stdtrit(count - 1, 0.5 + LEVEL / 2))
    return Estimate(mean, deviation, quantile * deviation / math.sqrt(count), count)


def at_seconds(curve: Sequence[Look], seconds: float) -> float | None:
    """The PSNR after so many seconds of training: on straight lines between looks, and after the last one what it saw.

    None before the first look, of which nothing is known.
    """
    if not curve or seconds < curve[0].seconds:
        return None
    for before, after in itertools.pairwise(curve):
        if seconds <= after.seconds:
            share = (seconds - before.seconds) / max(after.seconds - before.seconds, 1e-12)
            return before.psnr + share * (after.psnr - before.psnr)
    return curve[-1].psnr


def seconds_to(curve: Sequence[Look], psnr: float) -> float | None:
    """After how many seconds a curve first reaches a PSNR, on the same lines; None if it never does.

    A curve that is there at its first look may have been there before: that look's seconds are an upper bound.
    """
    if curve and curve[0].psnr >= psnr:
        return curve[0].seconds
    for before, after in itertools.pairwise(curve):
        if after.psnr >= psnr:
            share = (psnr - before.psnr) / (after.psnr - before.psnr)
            return before.seconds + share * (after.seconds - before.seconds)
    return None
