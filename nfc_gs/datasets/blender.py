"""NeRF-synthetic's layout: `transforms_train.json` and `transforms_test.json` beside pictures with transparency."""

from typing import Literal

import torch

from nfc_gs.captures.formats import other_format
from nfc_gs.captures.pictures import Header, PictureFile, downscaled, find_picture, read_header
from nfc_gs.captures.transforms import Frame, read_transforms
from nfc_gs.config import Folder, NonNegativeInt, PositiveFloat, PositiveInt, spec
from nfc_gs.core.camera import Camera
from nfc_gs.core.scene import Scene, View, camera_extent
from nfc_gs.datasets.base import Dataset, DatasetError

BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0), "random": (1.0, 1.0, 1.0)}


@spec
class Blender(Dataset):
    """A subject rendered from all sides (NeRF, Mildenhall et al. 2020; D-NeRF's `time` is kept in the cameras).

    `background` is drawn behind transparent pixels; `random` draws another one at each training step and judges on
    white. `test_stride` k judges by every k-th view of `test_split` only. `test_every` k takes every k-th training view
    for judging instead, for folders without a test file. `half_size`: the subject is within the cube [-h, h]^3, in the
    file's units.
    """

    folder: Folder
    downscale: PositiveInt = 1
    background: Literal["white", "black", "random"] = "white"
    test_split: Literal["test", "val"] = "test"
    test_stride: PositiveInt = 1
    test_every: NonNegativeInt = 0
    half_size: PositiveFloat = 1.3

    @property
    def judged_by(self) -> str:
        """As `test_split` and `test_every` say."""
        return held_out(self.test_split, self.test_every)

    def load(self, seed: int) -> Scene:
        """The scene, in the file's own coordinates; there are no points."""
        if not self.folder.is_dir():
            raise DatasetError(f"{self.folder}: no such folder; set dataset.folder to where transforms_train.json is")
        train = self._split("train")
        if self.test_every:
            test = train[:: self.test_every]
            train = tuple(view for index, view in enumerate(train) if index % self.test_every)
        else:
            test = self._split(self.test_split)[:: self.test_stride]
        if not train:
            raise DatasetError(f"{self.folder}: dataset.test_every={self.test_every} leaves no view to train on")
        return Scene(
            train=train,
            test=test,
            points=None,
            extent=camera_extent(train),
            background=BACKGROUNDS[self.background],
            random_background=self.background == "random",
            bounds=torch.tensor([[-self.half_size] * 3, [self.half_size] * 3]),
        )

    def _split(self, split: str) -> tuple[View, ...]:
        path = self.folder / f"transforms_{split}.json"
        if not path.is_file():
            hint = "; set dataset.test_every=8 to judge by every 8th training view instead"
            hint = other_format(self.folder, own=path.name) if split == "train" else hint
            raise DatasetError(f"{path}: no such file{hint}")
        _, frames = read_transforms(path)
        headers = [self._header(frame) for frame in frames]
        sizes = {(h.width, h.height): h for h, f in zip(headers, frames, strict=True) if not f.has_own_intrinsics}
        if len(sizes) > 1:
            one, other = list(sizes.values())[:2]
            raise DatasetError(
                f"{path}: one camera, but pictures of two sizes: {one.path.name} is {one.width}x{one.height} and "
                f"{other.path.name} is {other.width}x{other.height}"
            )
        return tuple(self._view(frame, header) for frame, header in zip(frames, headers, strict=True))

    def _header(self, frame: Frame) -> Header:
        path = find_picture(self.folder / frame.name)
        if path is None:
            raise DatasetError(
                f"{frame.source}: names {frame.name}, but {self.folder / frame.name}[.png|.jpg|...] is missing"
            )
        return read_header(path)

    def _view(self, frame: Frame, header: Header) -> View:
        focal, centre = frame.intrinsics(header.width, header.height)
        camera = Camera(
            world_to_camera=torch.from_numpy(frame.world_to_camera).float(),
            focal=focal,
            centre=centre,
            width=header.width,
            height=header.height,
            time=frame.time,
        )
        size = downscaled(header.width, header.height, self.downscale)
        return View(name=frame.name, camera=camera.resized(*size), read=PictureFile(path=header.path, size=size).read)


def held_out(test_split: str, test_every: int) -> str:
    """What two settings make the held-out views, in words for a record."""
    return f"one in {test_every} of train" if test_every else test_split


Spec = Blender
