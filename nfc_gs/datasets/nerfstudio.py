"""Nerfstudio's and instant-ngp's layout: one `transforms.json` beside the photographs."""

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
from plyfile import PlyData, PlyParseError

from nfc_gs.captures.assembly import Background, Capture, assemble, every, split
from nfc_gs.captures.formats import other_format
from nfc_gs.captures.lenses import Lens
from nfc_gs.captures.pictures import find_picture, read_header
from nfc_gs.captures.transforms import Frame, read_transforms
from nfc_gs.config import Folder, NonNegativeInt, PositiveInt, spec
from nfc_gs.core.scene import Scene
from nfc_gs.datasets.base import Dataset, DatasetError

log = logging.getLogger(__name__)

# `camera_model` in transforms.json, and the distortion that COLMAP's model of that name takes, in its order. Nerfstudio
# undistorts perspective pictures with OpenCV's k1, k2, p1, p2, k3, k4 (cameras/camera_utils.py).
DISTORTION = {
    "PINHOLE": (),
    "SIMPLE_PINHOLE": (),
    "SIMPLE_RADIAL": ("k1", "k2", "p1", "p2", "k3", "k4"),
    "RADIAL": ("k1", "k2", "p1", "p2", "k3", "k4"),
    "OPENCV": ("k1", "k2", "p1", "p2", "k3", "k4"),
    "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4"),
}


@spec
class Nerfstudio(Dataset):
    """Photographs posed by `ns-process-data` or an app on a phone; `folder` holds transforms.json.

    With `downscale` f, `images/a.png` is taken from `images_<f>` where that folder exists, otherwise averaged down. The
    file's `train_filenames` and `test_filenames` (or `val_filenames`) split the pictures; without them every
    `test_every`-th by name is held out. `masks` (frames' `mask_path`): 0 is a pixel that does not count (`ignore`), or
    the mask is the subject's opacity before `background` (`alpha`). Points come from `ply_file_path`, in the poses'
    coordinates: `applied_transform` has been applied to both. `normalise` and `skip_missing` are as for COLMAP.
    """

    folder: Folder
    downscale: PositiveInt = 1
    masks: Literal["auto", "none", "ignore", "alpha"] = "auto"
    background: Background = "black"
    test_every: NonNegativeInt = 8
    normalise: bool = True
    skip_missing: bool = False

    def load(self, seed: int) -> Scene:
        """The scene, with the points of its PLY file if it names one."""
        if not self.folder.is_dir():
            raise DatasetError(
                f"{self.folder}: no such folder; set dataset.folder to the one that holds transforms.json"
            )
        path = self.folder / "transforms.json"
        if not path.is_file():
            raise DatasetError(f"{path}: no such file{other_format(self.folder, own=path.name)}")
        content, frames = read_transforms(path)
        names = [(frame.name, frame.time) for frame in frames]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)[0]
            raise DatasetError(
                f"{path}: names {twice} twice; a photograph on both sides of the split would spoil the metrics"
            )
        captures, downscales = self._captures(path, frames)
        train, test = self._split(path, content, captures)
        return assemble(
            train,
            test,
            points=self._points(path, content),
            downscale=downscales,
            normalise=self.normalise,
            background=self.background,
        )

    def _captures(self, path: Path, frames: list[Frame]) -> tuple[list[Capture], int]:
        first = Path(frames[0].name)
        small = self.downscale > 1 and (self.folder / self._smaller(first)).parent.is_dir()
        captures, missing = [], []
        for frame in sorted(frames, key=lambda frame: frame.name):
            wanted = self.folder / (self._smaller(Path(frame.name)) if small else frame.name)
            picture = find_picture(wanted)
            if picture is None:
                missing.append(str(wanted))
                continue
            captures.append(self._capture(frame, picture))
        if missing and (not self.skip_missing or not captures):
            raise DatasetError(
                f"{path} names {len(frames)} photographs; {len(missing)} are missing (first: {missing[0]}). "
                "Restore them, or leave them out with dataset.skip_missing=true"
            )
        if missing:
            log.warning("%s: %d photographs are missing (first: %s)", path, len(missing), missing[0])
        return captures, 1 if small else self.downscale

    def _smaller(self, name: Path) -> Path:
        """`images/a.png` as `images_<f>/a.png`."""
        return name.parent.with_name(f"{name.parent.name}_{self.downscale}") / name.name if name.parent.name else name

    def _capture(self, frame: Frame, picture: Path) -> Capture:
        mask = frame.own.get("mask_path") if self.masks != "none" else None
        if mask is None and self.masks in ("ignore", "alpha"):
            raise DatasetError(f"{frame.source}: {frame.name} has no mask_path, which dataset.masks={self.masks} needs")
        mask_path = self.folder / str(mask) if mask is not None else None
        if mask_path is not None and not mask_path.is_file():
            raise DatasetError(f"{frame.source}: {frame.name} has the mask {mask_path}, which is missing")
        return Capture(
            name=frame.name,
            path=picture,
            world_to_camera=frame.world_to_camera,
            lens=_lens(frame, picture),
            source=frame.source,
            camera_name=f"camera of {frame.name}" if frame.has_own_intrinsics else "camera",
            mask=mask_path,
            mask_is_alpha=self.masks == "alpha",
            time=frame.time,
        )

    def _split(
        self, path: Path, content: dict[str, Any], captures: list[Capture]
    ) -> tuple[list[Capture], list[Capture]]:
        named = {
            key: content[key] for key in ("train_filenames", "test_filenames", "val_filenames") if content.get(key)
        }
        for key, names in named.items():
            if not isinstance(names, list):
                raise DatasetError(f"{path}: {key} is not a list of file paths")
        lists = {key: {str(name).removeprefix("./") for name in names} for key, names in named.items()}
        held_out = lists.get("test_filenames") or lists.get("val_filenames")
        if held_out is None:
            return every(captures, self.test_every)
        train, test = split(captures, lambda name: name in held_out)
        wanted = lists.get("train_filenames")
        return [capture for capture in train if wanted is None or capture.name in wanted], test

    def _points(self, path: Path, content: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
        name = content.get("ply_file_path")
        if name is None:
            return None
        file = self.folder / str(name)
        try:
            vertices = PlyData.read(str(file))["vertex"].data
        except FileNotFoundError:
            raise DatasetError(f"{path}: ply_file_path names {file}, which is missing") from None
        except (OSError, ValueError, KeyError, PlyParseError) as error:
            raise DatasetError(f"{file}: is no PLY of points that can be read ({error})") from None
        wanted = ("x", "y", "z", "red", "green", "blue")
        missing = [field for field in wanted if field not in (vertices.dtype.names or ())]
        if missing:
            raise DatasetError(f"{file}: its vertices have no {missing[0]}; they need {' '.join(wanted)}")
        xyz = np.stack([vertices[field].astype(np.float64) for field in wanted[:3]], axis=1)
        rgb = np.stack([vertices[field] for field in wanted[3:]], axis=1)
        if not np.isfinite(xyz).all():
            raise DatasetError(f"{file}: has vertices with NaN or infinity")
        # Colours in floating point are in [0, 1], those in whole numbers in 0..255.
        return xyz, rgb * 255 if np.issubdtype(rgb.dtype, np.floating) else rgb


def _lens(frame: Frame, picture: Path) -> Lens:
    """The lens as the file states it, for pictures of the stated size, or of the picture's own where none is stated."""
    width, height = frame.pixels("w"), frame.pixels("h")
    if width is None or height is None:
        header = read_header(picture)
        width, height = float(header.width), float(header.height)
    size = (round(width), round(height))
    focal, centre = frame.intrinsics(*size)
    model = frame.numbers.get("camera_model", "OPENCV")
    if not isinstance(model, str) or model not in DISTORTION:
        raise DatasetError(f"{frame.source}: camera_model {model!r} is not among {', '.join(DISTORTION)}")
    distortion = [frame.number(key) or 0.0 for key in DISTORTION[model]]
    kept = "OPENCV_FISHEYE" if model == "OPENCV_FISHEYE" else "FULL_OPENCV"
    if kept == "FULL_OPENCV":
        distortion += [0.0] * (8 - len(distortion))
    return Lens(model=kept, params=(*focal, *centre, *distortion), width=size[0], height=size[1])


Spec = Nerfstudio
