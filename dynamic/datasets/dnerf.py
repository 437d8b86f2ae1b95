"""D-NeRF's layout: NeRF-synthetic's files, in which every frame has a `time`."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

from dynamic.datasets.base import DatasetError, MovingScene, Shot, at_time, check_shots
from nfc_gs.captures.formats import other_format
from nfc_gs.captures.pictures import find_picture
from nfc_gs.captures.transforms import Frame, read_transforms
from nfc_gs.config import Folder, NonNegativeInt, PositiveFloat, PositiveInt, spec
from nfc_gs.core.scene import Scene
from nfc_gs.datasets.blender import Blender, held_out

log = logging.getLogger(__name__)


@spec
class DNerf(MovingScene):
    """A moving subject rendered from all sides, one camera at each time (D-NeRF, Pumarola et al. 2021).

    Where no frame of a file has a `time`, frame i of n is at i / (n - 1). `background`, `downscale`, `test_every` and
    `half_size` are those of `blender`. `test_split: val` judges by transforms_val.json: for choosing settings, and for
    D-NeRF's own lego, whose test pictures show the shovel at another angle than its training pictures do.
    `several_cameras` says whether several pictures may share a time; null goes by whether most of them do.
    """

    folder: Folder
    downscale: PositiveInt = 1
    background: Literal["white", "black", "random"] = "white"
    test_split: Literal["test", "val"] = "test"
    test_every: NonNegativeInt = 0
    half_size: PositiveFloat = 1.3
    several_cameras: bool | None = None

    @property
    def judged_by(self) -> str:
        """As `test_split` and `test_every` say."""
        return held_out(self.test_split, self.test_every)

    def read(self, seed: int) -> Scene:
        """The scene, in the file's own coordinates; there are no points."""
        if not self.folder.is_dir():
            raise DatasetError(f"{self.folder}: no such folder; set dataset.folder to where transforms_train.json is")
        first = self.folder / "transforms_train.json"
        if not first.is_file():
            raise DatasetError(f"{first}: no such file{other_format(self.folder, own=first.name)}")
        times, stated = {}, {}
        times["train"], stated["train"] = self._times("train")
        if not self.test_every:
            path = self.folder / f"transforms_{self.test_split}.json"
            if not path.is_file():
                raise DatasetError(
                    f"{path}: no such file; set dataset.test_split, or dataset.test_every=8 to judge by every 8th "
                    "training view instead"
                )
            times["test"], stated[self.test_split] = self._times(self.test_split)
            if self.folder.name == "lego" and self.test_split == "test":
                log.warning(
                    "%s: if this is D-NeRF's lego, its test pictures do not fit its training pictures (no method "
                    "exceeds about 25 dB): set dataset.test_split=val",
                    self.folder,
                )
        timeless = [f"transforms_{split}.json" for split, has in stated.items() if not has]
        if timeless:
            log.warning(
                "%s: no frame of %s has a `time`: frame i of n is taken to be at i / (n - 1); if nothing moves, use "
                "configs/static/blender.yaml",
                self.folder,
                " and ".join(timeless),
            )
        scene = Blender(
            folder=self.folder,
            downscale=self.downscale,
            background=self.background,
            test_split=self.test_split,
            test_every=self.test_every,
            half_size=self.half_size,
        ).load(seed)
        train = tuple(at_time(view, times["train"][view.name]) for view in scene.train)
        judging = times["train" if self.test_every else "test"]
        return replace(scene, train=train, test=tuple(at_time(view, judging[view.name]) for view in scene.test))

    def _times(self, split: str) -> tuple[dict[str, float], bool]:
        """The time of each picture of a split, by its name, and whether the file states them."""
        path = self.folder / f"transforms_{split}.json"
        _, frames = read_transforms(path)
        self._check_pictures(path, frames)
        stated = [frame.number("time") for frame in frames]
        timeless = [frame.name for frame, time in zip(frames, stated, strict=True) if time is None]
        if timeless and len(timeless) < len(frames):
            raise DatasetError(
                f"{path}: {len(timeless)} of {len(frames)} frames have no `time` (first: {timeless[0]}); give all of "
                "them one, or none"
            )
        last = max(len(frames) - 1, 1)
        times = [index / last if time is None else time for index, time in enumerate(stated)]
        shots = [
            Shot(name=frame.name, time=time, camera_to_world=frame.camera_to_world)
            for frame, time in zip(frames, times, strict=True)
        ]
        # Test cameras may stand wherever, at the same times as each other.
        several = self.several_cameras if split == "train" else True
        check_shots(path, shots, several, remedy="correct it, or set dataset.several_cameras=true")
        return {shot.name: shot.time for shot in shots}, not timeless

    def _check_pictures(self, path: Path, frames: list[Frame]) -> None:
        missing = [frame.name for frame in frames if find_picture(self.folder / frame.name) is None]
        if missing:
            raise DatasetError(
                f"{path}: names {len(frames)} pictures, of which {len(missing)} are missing (first: "
                f"{self.folder / missing[0]}[.png|.jpg|...]); restore them, or take their frames out"
            )


Spec = DNerf
