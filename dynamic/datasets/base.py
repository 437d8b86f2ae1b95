"""What data sets of moving scenes share: times in [0, 1], what contradicts in a clip, and two controls."""

import abc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64

from nfc_gs.config import PositiveInt, spec
from nfc_gs.core.scene import Points, Scene, View
from nfc_gs.datasets.base import Dataset, DatasetError

__all__ = ["DatasetError", "MovingScene", "Shot", "at_time", "bounding_box", "check_shots", "read_array"]

# Of the stream of random numbers that a run's seed starts: the order of the shuffled times.
SHUFFLE_STREAM = 41
# Two poses closer than this, in every entry of their matrices, are one pose; files state six digits or more.
SAME_POSE = 1e-6
# The box of the subject holds the points between these shares of each coordinate, and a margin: stray points of
# structure from motion would else blow it up.
LOW, HIGH, MARGIN = 0.01, 0.99, 0.1


@spec
class MovingScene(Dataset):
    """A scene photographed at several times in [0, 1]; a scene of one time is a still one, and loads all the same.

    `test_stride` k judges by every k-th test view only. Two settings are controls, for experiments and not for results:
    `train_stride` k keeps the training views of every k-th training time, counted from the earliest (the test views
    stay), and `shuffle_times` deals the training views' times out among them at random, by the run's seed: each picture
    keeps its camera but lies about its time, so a model that gains by it over a still one has only used its capacity.
    """

    train_stride: PositiveInt = 1
    test_stride: PositiveInt = 1
    shuffle_times: bool = False

    @abc.abstractmethod
    def read(self, seed: int) -> Scene:
        """The whole scene, before stride and shuffle.

        Raises:
            DatasetError: one line for whatever is missing, corrupt or contradictory.
        """

    def load(self, seed: int) -> Scene:
        """The scene of `read`, with what `train_stride`, `test_stride` and `shuffle_times` leave of it."""
        scene = self.read(seed)
        kept = set(scene.times[:: self.train_stride])
        train = tuple(view for view in scene.train if view.camera.time in kept)
        if self.shuffle_times:
            times = np.random.default_rng((seed, SHUFFLE_STREAM)).permutation([view.camera.time for view in train])
            train = tuple(at_time(view, float(time)) for view, time in zip(train, times, strict=True))
        return replace(scene, train=train, test=scene.test[:: self.test_stride])


@dataclass(frozen=True, kw_only=True)
class Shot:
    """What a file says of one training picture; `camera_to_world` in any axes, as long as all shots use the same."""

    name: str
    time: float
    camera_to_world: Float64[np.ndarray, "4 4"]


def check_shots(source: Path, shots: Sequence[Shot], several_cameras: bool | None, remedy: str) -> None:
    """Refuses times outside [0, 1], a picture named twice, and times that repeat where they contradict.

    Two pictures of one time and one pose contradict each other. Two poses at one time are two cameras, unless this is
    the clip of one camera: with `several_cameras` None, a clip most of whose times occur once is taken for one.

    Args:
        remedy: what to do about times that one camera cannot have taken, in words for the message.

    Raises:
        DatasetError: naming `source`, the file that states the times.
    """
    outside = [shot for shot in shots if not 0 <= shot.time <= 1]
    if outside:
        times = [shot.time for shot in shots]
        raise DatasetError(
            f"{source}: time of {outside[0].name} is {outside[0].time:.9g}; times must be in [0, 1], but the "
            f"{len(shots)} of this file run from {min(times):.9g} to {max(times):.9g}"
        )
    names = Counter(shot.name for shot in shots)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise DatasetError(f"{source}: names the picture {twice[0]} {names[twice[0]]} times; name it once")
    together: dict[float, list[Shot]] = {}
    for shot in shots:
        together.setdefault(shot.time, []).append(shot)
    alone = sum(len(group) == 1 for group in together.values())
    one_camera = not several_cameras if several_cameras is not None else 2 * alone > len(together)
    for time, group in sorted(together.items()):
        for index, shot in enumerate(group):
            for other in group[:index]:
                if np.allclose(shot.camera_to_world, other.camera_to_world, rtol=0, atol=SAME_POSE):
                    raise DatasetError(
                        f"{source}: {other.name} and {shot.name} have the same time {time:g} and the same pose; "
                        "one of the two is wrong"
                    )
        if len(group) > 1 and one_camera:
            raise DatasetError(
                f"{source}: {group[0].name} and {group[1].name} have the same time {time:g}, which one camera cannot "
                f"take ({alone} of {len(together)} times occur once); {remedy}"
            )


def at_time(view: View, time: float) -> View:
    """The same view, said to have been taken at another time."""
    return replace(view, camera=replace(view.camera, time=time))


def read_array(path: Path) -> np.ndarray:
    """The one array of numbers in a .npy file.

    Raises:
        DatasetError: no such file, another kind of file, or no numbers.
    """
    try:
        with path.open("rb") as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError):
        raise DatasetError(f"{path}: is no NumPy array that can be read; restore it") from None
    if array.dtype.kind not in "fiu":
        raise DatasetError(f"{path}: holds {array.dtype.name} values; it must hold numbers")
    return array


def bounding_box(points: Points) -> Float[torch.Tensor, "2 3"]:
    """The box [min, max] that holds all but a few stray points."""
    low, high = (torch.from_numpy(np.quantile(points.xyz.numpy(), share, axis=0)) for share in (LOW, HIGH))
    margin = MARGIN * (high - low)
    return torch.stack([low - margin, high + margin]).float()
