"""What every callback is: settings that make a listener, and what the listener hears."""

import abc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from nfc_gs.core.scene import Scene
from nfc_gs.evaluation import Evaluation
from nfc_gs.losses.base import mean_distance
from nfc_gs.model import Picture, SplatModel, Target

# How a training ends: `finished` after its last step; `stopped` between two steps, by the user or by a listener's error;
# `failed` in the middle of a step, so that the model is half changed.
End = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """One finished step: `step` counts from 1. Tensors are detached and may live on a device: read them only when due.

    `terms` are the weighted losses by kind; `rates` the learning rates; `milliseconds` the wall time of each phase;
    `target` what the picture was compared with, and `chances` [H W] of each of its pixels to show the scene, where they are
    classified (`distractors`); `evaluation` the held-out views, at the steps where they were looked at;
    `seconds` the training's wall time so far, evaluation and saving not counted.
    """

    step: int
    terms: Mapping[str, Tensor]
    picture: Picture
    target: Target
    rates: Mapping[str, float]
    milliseconds: Mapping[str, float]
    num_gaussians: int
    seconds: float
    evaluation: Evaluation | None = None
    chances: Tensor | None = None

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The terms by kind, and "squared error", the mean over the pixels that count, of colours as they are shown.

        Worked out when somebody asks, and read from a device at one go, which waits for it.
        """
        shown = self.picture.rgb.detach().clamp(0, 1)
        error = mean_distance(shown, self.target.rgb, self.target.mask, squared=True)
        read = torch.stack([error, *self.terms.values()]).tolist()
        return dict(zip(["squared error", *self.terms], read, strict=True))

    @property
    def psnr(self) -> float:
        """Of this step's picture, in dB; at most 100."""
        return -10 * math.log10(max(self.numbers["squared error"], 1e-10))

    @property
    def loss(self) -> float:
        """The sum of the terms."""
        return sum(self.numbers[kind] for kind in self.terms)


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a listener may know of the training it listens to.

    `settings` is the experiment as YAML text; `first_step` is 0, or where a resumed run goes on;
    `best_psnr` the best held-out PSNR so far in dB; `save` writes a
    checkpoint to a path; `model` always returns the present model.
    """

    folder: Path
    settings: str
    hyperparameters: Mapping[str, float | int | str]
    steps: int
    first_step: int
    best_psnr: float
    scene: Scene
    model: Callable[[], SplatModel]
    save: Callable[[Path], None]


class Listener(abc.ABC):
    """Hears every step, and the end."""

    @abc.abstractmethod
    def hear(self, report: Report) -> None:
        """Called after every step."""

    @abc.abstractmethod
    def close(self, end: End) -> None:
        """Called once at the end, whatever it is."""


class Callback(abc.ABC):
    """The settings of a listener."""

    @abc.abstractmethod
    def start(self, session: Session) -> Listener:
        """A listener for one training."""
