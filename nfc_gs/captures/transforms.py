"""`transforms.json`, the file of poses of instant-ngp, NeRF-synthetic, D-NeRF and Nerfstudio.

Its matrices are camera-to-world with OpenGL axes (+x right, +y up, +z backward); what is returned here is OpenCV's.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from nfc_gs.captures.pictures import DatasetError, is_scaled

# How far a pose's rotation may be from orthonormal; files written with 6 digits stay well below.
ROTATION_TOLERANCE = 1e-2


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One entry of `frames`; `numbers` holds the file's global entries, overridden by the frame's own."""

    name: str
    camera_to_world: Float64[np.ndarray, "4 4"]
    numbers: dict[str, Any]
    own: dict[str, Any]
    source: Path

    def number(self, key: str) -> float | None:
        """A finite number of this frame, or None where neither it nor the file states one."""
        value = self.numbers.get(key)
        if value is None:
            return None
        # Compared rather than converted: JSON's whole numbers may be larger than any float.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
            raise DatasetError(f"{self.source}: {key} of {self.name} is {value!r}; it must be a finite number")
        return float(value)

    def pixels(self, key: str) -> float | None:
        """A side of the picture, `w` or `h`, or None where it is not stated."""
        value = self.number(key)
        if value is not None and value < 1:
            raise DatasetError(f"{self.source}: {key} of {self.name} is {value:g}; it must be 1 pixel or more")
        return value

    def intrinsics(self, width: int, height: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Focal lengths and centre in pixels of a picture of this real size.

        `fl_x`, `cx`, ... are in pixels of the file's `w` x `h` where it states them, otherwise of the picture itself;
        `camera_angle_x` needs no size. Without a centre it is the middle, without `fl_y` pixels are square.
        """
        stated = (self.pixels("w") or float(width), self.pixels("h") or float(height))
        if not is_scaled((width, height), (round(stated[0]), round(stated[1]))):
            raise DatasetError(
                f"{self.source}: {self.name} is said to be {stated[0]:g}x{stated[1]:g} (w, h), but the picture is "
                f"{width}x{height}, which is no scaled copy of that"
            )
        ratio = (width / stated[0], height / stated[1])
        focal_x, focal_y = self.number("fl_x"), self.number("fl_y")
        angle_x, angle_y = self.number("camera_angle_x"), self.number("camera_angle_y")
        for key, angle in (("camera_angle_x", angle_x), ("camera_angle_y", angle_y)):
            if angle is not None and not 0 < angle < math.pi:
                raise DatasetError(f"{self.source}: {key} of {self.name} is {angle:g}; it must be in (0, pi) radians")
        if focal_x is None and angle_x is not None:
            focal_x = 0.5 * stated[0] / math.tan(0.5 * angle_x)
        if focal_y is None and angle_y is not None and "fl_x" not in self.numbers:
            focal_y = 0.5 * stated[1] / math.tan(0.5 * angle_y)
        if focal_x is None or focal_x <= 0:
            raise DatasetError(
                f"{self.source}: no focal length for {self.name}: it needs camera_angle_x or fl_x, above 0"
            )
        centre_x, centre_y = self.number("cx"), self.number("cy")
        centre_x = 0.5 * stated[0] if centre_x is None else centre_x
        centre_y = 0.5 * stated[1] if centre_y is None else centre_y
        focal_y = focal_x if focal_y is None else focal_y
        return (focal_x * ratio[0], focal_y * ratio[1]), (centre_x * ratio[0], centre_y * ratio[1])

    @property
    def time(self) -> float:
        """The moment, in [0, 1]; 0 where the file has none."""
        time = self.number("time") or 0.0
        if not 0 <= time <= 1:
            raise DatasetError(f"{self.source}: time of {self.name} is {time:g}; it must be in [0, 1]")
        return time

    @property
    def world_to_camera(self) -> Float64[np.ndarray, "4 4"]:
        """The pose with OpenCV axes."""
        opencv = self.camera_to_world.copy()
        opencv[:3, 1:3] *= -1
        return np.linalg.inv(opencv)

    @property
    def has_own_intrinsics(self) -> bool:
        """Whether this frame, rather than the file, states its camera."""
        return any(key in self.own for key in ("fl_x", "camera_angle_x", "w"))


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DatasetError: no such file, unreadable, or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from None
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}: is not JSON (line {error.lineno}: {error.msg})") from None


def read_transforms(path: Path) -> tuple[dict[str, Any], list[Frame]]:
    """The file's global entries and its frames, in the order of the file.

    Raises:
        DatasetError: no such file, not JSON, no frames, or a pose that is no rigid motion.
    """
    content = read_json(path)
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames:
        raise DatasetError(f"{path}: has no `frames`; a transforms.json lists its pictures there")
    shared = {key: value for key, value in content.items() if key != "frames"}
    return content, [_frame(path, index, entry, shared) for index, entry in enumerate(frames)]


def _frame(path: Path, index: int, entry: Any, shared: dict[str, Any]) -> Frame:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_path"), str):
        raise DatasetError(f"{path}: frame {index} has no `file_path`")
    name = entry["file_path"].removeprefix("./")
    try:
        pose = np.array(entry.get("transform_matrix"), dtype=np.float64)
    except (ValueError, TypeError):
        pose = np.zeros(0)
    if pose.shape == (3, 4):
        pose = np.vstack([pose, [0.0, 0.0, 0.0, 1.0]])
    if pose.shape != (4, 4):
        raise DatasetError(f"{path}: transform_matrix of {name} is not a 4x4 matrix of numbers")
    if not np.isfinite(pose).all():
        raise DatasetError(f"{path}: transform_matrix of {name} holds NaN or infinity")
    rotation = pose[:3, :3]
    error = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if error > ROTATION_TOLERANCE or np.linalg.det(rotation) < 0 or not np.allclose(pose[3], [0, 0, 0, 1]):
        raise DatasetError(f"{path}: transform_matrix of {name} is no rotation and translation (off by {error:.2g})")
    return Frame(name=name, camera_to_world=pose, numbers=shared | entry, own=entry, source=path)
