"""HyperNeRF's and Nerfies' layout: scene.json, dataset.json and metadata.json beside camera/ and rgb/."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from dynamic.datasets.base import DatasetError, MovingScene, Shot, bounding_box, check_shots, read_array
from nfc_gs.captures.assembly import BACKGROUNDS, LEAST_STRAIGHT_SHARE, Background, Capture
from nfc_gs.captures.lenses import Lens
from nfc_gs.captures.pictures import find_picture, read_header
from nfc_gs.captures.transforms import ROTATION_TOLERANCE, read_json
from nfc_gs.config import Folder, PositiveInt, spec
from nfc_gs.core.scene import Points, Scene, Similarity, camera_extent

# Where no ids are held out: of every four pictures the first is learnt from and the third judged by (HyperNeRF's
# "interp" scenes, whose frames come in the order of time).
EVERY, JUDGED = 4, 2
# A skew below this many pixels, across the whole picture, is rounding.
SKEW_TOLERANCE = 0.05


@spec
class HyperNerf(MovingScene):
    """A clip of one or two hand-held cameras (Nerfies, Park et al. 2021; HyperNeRF, Park et al. 2021).

    Pictures come from `rgb/<f>x`, where f is `downscale` or else its largest divisor that is there, and are averaged
    down by the rest. Times are `time_id`, or `warp_id` in older files, over the largest of them. `val_ids` judge; where
    there are none, of every four ids the first trains and the third judges, and the other two are left out. Training
    happens in `scene.json`'s scaled coordinates.
    """

    folder: Folder
    downscale: PositiveInt = 2
    background: Background = "black"

    def read(self, seed: int) -> Scene:
        """The scene, with the grey points of points.npy where it is there."""
        if not self.folder.is_dir():
            raise DatasetError(f"{self.folder}: no such folder; set dataset.folder to where dataset.json is")
        similarity = self._similarity()
        train_ids, test_ids = self._ids()
        times, cameras = self._times([*train_ids, *test_ids])
        pictures, rest = self._pictures([*train_ids, *test_ids])
        captures = {
            name: self._capture(name, pictures[name], times[name], cameras[name]) for name in (*train_ids, *test_ids)
        }
        self._check_clips([captures[name] for name in train_ids])
        train = tuple(captures[name].view(rest, similarity) for name in train_ids)
        points = self._points(similarity)
        return Scene(
            train=train,
            test=tuple(captures[name].view(rest, similarity) for name in test_ids),
            points=points,
            extent=camera_extent(train),
            background=BACKGROUNDS[self.background],
            random_background=self.background == "random",
            bounds=bounding_box(points) if points is not None else None,
            to_world=similarity,
        )

    def _similarity(self) -> Similarity:
        """Trained coordinates are (x - center) * scale: Nerfies' own."""
        path = self.folder / "scene.json"
        content = _read_json(path)
        scale = _numbers(path, content, "scale", 1)[0]
        centre = _numbers(path, content, "center", 3)
        if scale <= 0:
            raise DatasetError(f"{path}: scale is {scale:g}; it must be above 0")
        return Similarity(scale=1 / scale, translation=(centre[0], centre[1], centre[2]))

    def _ids(self) -> tuple[list[str], list[str]]:
        path = self.folder / "dataset.json"
        content = _read_json(path)
        lists = {key: content.get(key) or [] for key in ("ids", "train_ids", "val_ids")}
        for key, names in lists.items():
            if not isinstance(names, list):
                raise DatasetError(f"{path}: {key} is not a list of names of pictures")
        everything, train, test = ([str(name) for name in names] for names in lists.values())
        for key, names in zip(lists, (everything, train, test), strict=True):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise DatasetError(f"{path}: {key} names {twice[0]} more than once; name it once")
        if not test:
            everything = everything or train
            train, test = everything[::EVERY], everything[JUDGED::EVERY]
        if not train or not test:
            raise DatasetError(
                f"{path}: {len(train)} pictures to train on and {len(test)} to judge by; it needs train_ids and "
                f"val_ids, or three or more ids"
            )
        both = set(train) & set(test)
        if both:
            raise DatasetError(f"{path}: {min(both)} is both to be trained on and to be judged by; it can only be one")
        return train, test

    def _times(self, names: list[str]) -> tuple[dict[str, float], dict[str, int]]:
        """Time in [0, 1] and the camera of each picture."""
        path = self.folder / "metadata.json"
        content = _read_json(path)
        missing = [name for name in names if not isinstance(content.get(name), dict)]
        if missing:
            raise DatasetError(
                f"{path}: has no entry for {len(missing)} of {len(names)} pictures of dataset.json (first: {missing[0]})"
            )
        # Over all pictures of the file, so that leaving some out changes no time.
        moments = {name: _moment(path, name, entry) for name, entry in content.items() if isinstance(entry, dict)}
        last = max(moments.values())
        times = {name: moments[name] / last if last else 0.0 for name in names}
        return times, {name: content[name].get("camera_id", 0) for name in names}

    def _pictures(self, names: list[str]) -> tuple[dict[str, Path], int]:
        """The file of each picture, and by how much it is still to be made smaller."""
        factors = [f for f in range(self.downscale, 0, -1) if self.downscale % f == 0]
        folders = {f: self.folder / "rgb" / f"{f}x" for f in factors if (self.folder / "rgb" / f"{f}x").is_dir()}
        if not folders:
            wanted = " or ".join(f"rgb/{f}x" for f in factors)
            raise DatasetError(f"{self.folder}: has no folder {wanted}; set dataset.downscale to one that is there")
        factor, folder = next(iter(folders.items()))
        found = {name: find_picture(folder / f"{name}.png") for name in names}
        missing = [name for name, path in found.items() if path is None]
        if missing:
            raise DatasetError(
                f"{folder}: {len(missing)} of {len(names)} pictures of dataset.json are missing (first: "
                f"{missing[0]}.png); restore them, or take their ids out"
            )
        return {name: path for name, path in found.items() if path is not None}, self.downscale // factor

    def _capture(self, name: str, picture: Path, time: float, camera: int) -> Capture:
        path = self.folder / "camera" / f"{name}.json"
        content = _read_json(path)
        return Capture(
            name=name,
            path=picture,
            world_to_camera=_pose(path, content),
            lens=_lens(path, content),
            source=path,
            # Each picture of a hand-held clip states its own lens; it is one camera all the same.
            camera_name=f"camera {camera}",
            time=time,
        )

    def _check_clips(self, captures: list[Capture]) -> None:
        """One camera takes one picture at a time, and all of one size."""
        clips: dict[str, list[Capture]] = {}
        for capture in captures:
            clips.setdefault(capture.camera_name, []).append(capture)
        # Where nothing is said to move, one camera may go round and photograph as often as it likes.
        still = len({capture.time for capture in captures}) == 1
        for clip in clips.values():
            shots = [
                Shot(name=capture.name, time=capture.time, camera_to_world=np.linalg.inv(capture.world_to_camera))
                for capture in clip
            ]
            check_shots(self.folder / "metadata.json", shots, several_cameras=still, remedy="correct it")
            sizes = {(header.width, header.height): c for c in clip for header in [read_header(c.path)]}
            if len(sizes) > 1:
                (one, first), (other, second) = list(sizes.items())[:2]
                raise DatasetError(
                    f"{second.path}: is {other[0]}x{other[1]}, but {first.path.name} of the same {second.camera_name} "
                    f"is {one[0]}x{one[1]}; make them one size"
                )

    def _points(self, similarity: Similarity) -> Points | None:
        path = self.folder / "points.npy"
        if not path.is_file():
            return None
        xyz = read_array(path)
        if xyz.ndim != 2 or xyz.shape[1] != 3 or len(xyz) == 0 or not np.isfinite(xyz).all():
            raise DatasetError(f"{path}: holds an array of shape {xyz.shape}; it must be finite places, [P, 3]")
        places = similarity.inverse(torch.from_numpy(xyz.astype(np.float64))).float()
        return Points(xyz=places, rgb=torch.full((len(xyz), 3), 0.5))


def _read_json(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: is no JSON object of names and values")
    return content


def _numbers(path: Path, content: dict[str, Any], key: str, count: int) -> list[float]:
    """`count` finite numbers under a key; one is a bare number."""
    try:
        values = np.array(content[key], dtype=np.float64).reshape(-1)
    except KeyError:
        raise DatasetError(f"{path}: has no `{key}`") from None
    except (TypeError, ValueError):
        values = np.zeros(0)
    if len(values) != count or not np.isfinite(values).all():
        raise DatasetError(f"{path}: {key} is {content[key]!r}; it must be {count} finite number{'s' * (count > 1)}")
    return values.tolist()


def _moment(path: Path, name: str, entry: dict[str, Any]) -> int:
    key = "time_id" if "time_id" in entry else "warp_id"
    moment = entry.get(key)
    if isinstance(moment, bool) or not isinstance(moment, int) or moment < 0:
        raise DatasetError(f"{path}: {key} of {name} is {moment!r}; it must be a whole number, 0 or more")
    return moment


def _pose(path: Path, content: dict[str, Any]) -> Float64[np.ndarray, "4 4"]:
    """`orientation` turns the world to the camera (OpenCV's axes); `position` is where the camera stands."""
    rotation = np.array(_numbers(path, content, "orientation", 9)).reshape(3, 3)
    position = np.array(_numbers(path, content, "position", 3))
    error = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if error > ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        raise DatasetError(f"{path}: orientation is no rotation (off by {error:.2g})")
    pose = np.eye(4)
    pose[:3, :3] = rotation
    pose[:3, 3] = -rotation @ position
    return pose


def _lens(path: Path, content: dict[str, Any]) -> Lens:
    """Nerfies' distortion is OpenCV's; its pixels, too, have their centres at halves."""
    focal = _numbers(path, content, "focal_length", 1)[0]
    aspect = _numbers(path, content, "pixel_aspect_ratio", 1)[0] if "pixel_aspect_ratio" in content else 1.0
    centre = _numbers(path, content, "principal_point", 2)
    size = _numbers(path, content, "image_size", 2)
    k1, k2, k3 = _numbers(path, content, "radial_distortion", 3) if "radial_distortion" in content else (0.0,) * 3
    tangential = "tangential" if "tangential" in content else "tangential_distortion"
    p1, p2 = _numbers(path, content, tangential, 2) if tangential in content else (0.0,) * 2
    skew = _numbers(path, content, "skew", 1)[0] if "skew" in content else 0.0
    if min(focal, aspect, *size) <= 0:
        raise DatasetError(f"{path}: focal_length, pixel_aspect_ratio and image_size must be above 0")
    # Pixels move by skew * y, and y is at most half a picture over the focal length.
    if abs(skew) * size[1] / focal > SKEW_TOLERANCE:
        raise DatasetError(f"{path}: skew is {skew:g}; only cameras without skew can be used")
    params = (focal, focal * aspect, *centre, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0)
    lens = Lens(model="FULL_OPENCV", params=params, width=round(size[0]), height=round(size[1]))
    if lens.straight_share < LEAST_STRAIGHT_SHARE:
        raise DatasetError(
            f"{path}: its distortion ({lens.distortion}) cannot be undone: the picture holds {lens.straight_share:.0%} "
            "of the straight one; calibrate it anew, or set it to 0"
        )
    return lens


Spec = HyperNerf
