"""COLMAP's sparse models: found, checked byte by byte, and then read by pycolmap.

pycolmap reads every version, but of a truncated file it makes an odd error, a wrong model or an endless wait; so the
lengths are checked here first. The layouts are those of COLMAP's `src/colmap/scene/reconstruction_io_binary.cc`.
"""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pycolmap

from nfc_gs.captures.formats import other_format
from nfc_gs.captures.pictures import DatasetError

# What every model has; `rigs` and `frames` come with COLMAP 3.12.
PARTS = ("cameras", "images", "points3D")


def find_model(folder: Path, chosen: str | None) -> tuple[Path, dict[Path, int]]:
    """The folder of the sparse model with the most registered images, and the number of them of every model there.

    Looks in `chosen` if given, otherwise in `sparse`, `colmap/sparse` and their subfolders.

    Raises:
        DatasetError: there is none, or it lacks a file.
    """
    places = [folder / chosen] if chosen is not None else [folder / "sparse", folder / "colmap" / "sparse"]
    for place in places:
        if not place.is_dir():
            continue
        below = [] if chosen is not None else sorted(path for path in place.iterdir() if path.is_dir())
        found = [path for path in (place, *below) if any(_part(path, part) for part in PARTS)]
        if not found:
            raise DatasetError(f"{place}: holds no cameras, images and points3D (.bin or .txt), nor do its subfolders")
        counts = {model: num_registered(model) for model in found}
        return max(found, key=lambda model: counts[model]), counts
    hint = other_format(folder, own="sparse")
    raise DatasetError(
        f"{' and '.join(map(str, places))}: no such folder; COLMAP's sparse model is expected there{hint}"
    )


def num_registered(model: Path) -> int:
    """How many images a model registers, read off the start of its file."""
    path = _existing(model, "images")
    if path.suffix == ".bin":
        with path.open("rb") as file:
            start = file.read(8)
        if len(start) < 8:
            raise DatasetError(f"{path}: is truncated at {len(start)} bytes; copy the model again")
        return struct.unpack("<Q", start)[0]
    # Two lines an image, the second of which may be empty.
    return len([line for line in _lines(path) if not line.startswith("#")]) // 2


def read_model(model: Path) -> pycolmap.Reconstruction:
    """The model in `model`, .bin before .txt.

    Raises:
        DatasetError: a file is missing, truncated or corrupt, or names a camera model that COLMAP does not know.
    """
    suffix = _existing(model, "cameras").suffix
    for part in PARTS:
        if _existing(model, part).suffix != suffix:
            raise DatasetError(f"{model}: {part}{suffix} is missing beside cameras{suffix}")
    if suffix == ".bin":
        for part, walk in (("cameras", _cameras), ("images", _images), ("points3D", _points)):
            _check(model / f"{part}.bin", walk)
        for part, walk in (("rigs", _rigs), ("frames", _frames)):
            if (model / f"{part}.bin").is_file():
                _check(model / f"{part}.bin", walk)
    else:
        for line in _lines(model / "cameras.txt"):
            words = line.split()
            if words and not line.startswith("#") and (len(words) < 4 or words[1] not in _model_names()):
                name = words[1] if len(words) > 1 else line
                raise DatasetError(f"{model / 'cameras.txt'}: camera {words[0]} has the unknown model {name!r}")
    try:
        reconstruction = pycolmap.Reconstruction(str(model))
    # Whatever the files hold, pycolmap answers with ValueError, IndexError, RuntimeError or MemoryError.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(f"{model}: is corrupt or not a COLMAP model ({reason[:200]})") from None
    if not reconstruction.num_reg_images():
        raise DatasetError(f"{model}: registers no images")
    for image in _registered(reconstruction):
        if not np.isfinite(image.cam_from_world().matrix()).all():
            raise DatasetError(f"{model}: the pose of {image.name} holds NaN or infinity")
    return reconstruction


def registered_images(reconstruction: pycolmap.Reconstruction) -> list[pycolmap.Image]:
    """The images that have poses, sorted by name."""
    return sorted(_registered(reconstruction), key=lambda image: image.name)


def _registered(reconstruction: pycolmap.Reconstruction) -> Iterator[pycolmap.Image]:
    return (image for image in reconstruction.images.values() if image.has_pose)


def _part(model: Path, part: str) -> Path | None:
    paths = (model / f"{part}{suffix}" for suffix in (".bin", ".txt"))
    return next((path for path in paths if path.is_file()), None)


def _existing(model: Path, part: str) -> Path:
    path = _part(model, part)
    if path is None:
        raise DatasetError(f"{model}: neither {part}.bin nor {part}.txt is there; copy the whole model")
    return path


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: is no text that can be read ({error})") from None


def _model_names() -> set[str]:
    return set(pycolmap.CameraModelId.__members__) - {"INVALID"}


class _Bytes:
    """A place in a file's bytes that moves on as they are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = path.read_bytes()
        self.place = 0

    def read(self, form: str) -> tuple:
        """The values of a `struct` format."""
        values = struct.unpack_from("<" + form, self.content, self.place)
        self.place += struct.calcsize("<" + form)
        return values

    def skip(self, count: int) -> None:
        """Moves on by `count` bytes, which must be there."""
        self.place += count
        if self.place > len(self.content):
            raise struct.error


def _check(path: Path, walk: Callable[[_Bytes], None]) -> None:
    """Follows the counts of a file from start to end; they must end where it does."""
    content = _Bytes(path)
    try:
        (count,) = content.read("Q")
        for _ in range(count):
            walk(content)
    except (struct.error, ValueError, OverflowError):
        raise DatasetError(
            f"{path}: is truncated or corrupt ({len(content.content)} bytes are fewer than it announces); copy it again"
        ) from None
    if content.place != len(content.content):
        raise DatasetError(
            f"{path}: is corrupt: {len(content.content)} bytes, of which it accounts for {content.place}; copy it again"
        )


def _cameras(content: _Bytes) -> None:
    number, model, _, _ = content.read("IiQQ")
    by_number = {int(value): name for name, value in pycolmap.CameraModelId.__members__.items() if name != "INVALID"}
    if model not in by_number:
        known = ", ".join(by_number.values())
        raise DatasetError(f"{content.path}: camera {number} has the unknown model number {model} (known: {known})")
    info = pycolmap.Camera.create_from_model_name(1, by_number[model], 1.0, 1, 1).params_info
    content.skip(8 * len(info.split(",")))


def _images(content: _Bytes) -> None:
    content.skip(4 + 7 * 8 + 4)
    content.place = content.content.index(b"\0", content.place) + 1
    (num_points,) = content.read("Q")
    content.skip(24 * num_points)


def _points(content: _Bytes) -> None:
    content.skip(8 + 24 + 3 + 8)
    (track,) = content.read("Q")
    content.skip(8 * track)


def _rigs(content: _Bytes) -> None:
    _, num_sensors = content.read("II")
    if num_sensors:
        content.skip(8)
    for _ in range(num_sensors - 1):
        content.skip(8)
        (has_pose,) = content.read("B")
        content.skip(56 if has_pose else 0)


def _frames(content: _Bytes) -> None:
    content.skip(8 + 56)
    (num_images,) = content.read("I")
    content.skip(16 * num_images)
