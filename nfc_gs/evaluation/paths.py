"""Camera paths: where to look from, frame by frame, in a capture's own surroundings.

Every path takes its size, focal length and height from the capture's cameras, so that what is shown has been photographed.
Times are not a path's business: every camera keeps time 0, but for `dataset`, whose cameras are the capture's own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline

from nfc_gs.config import UserError
from nfc_gs.core.camera import Camera
from nfc_gs.core.rig import Rig, look_at

# Cameras that leave a wider gap than this around their subject have not been all around it.
GAP = 2 * math.pi / 3
# Cameras lie all around when their directions from what they look at cancel to less than this share.
SURROUNDED = 0.5
SPIRAL_TURNS = 2
# A spiral leaves its camera by at most this share of the distance to what it looks at.
SPIRAL_REACH = 0.25
# Through the cameras: no more of them than one every so many frames, or the path would jerk from one to the next.
FRAMES_A_CAMERA = 8
# Cameras are taken in the capture's order if that is at most this many times as long as going to the nearest one next.
DETOUR = 1.5


class PathError(UserError):
    """There is no such path, or the cameras do not allow it."""


def walk(path: str, cameras: Sequence[Camera], rig: Rig, num_frames: int) -> list[Camera]:
    """The cameras of `num_frames` frames along one of `PATHS`.

    Raises:
        PathError: for an unknown path, and where `interpolate` has a single camera to go through.
    """
    if path not in PATHS:
        raise PathError(f"no camera path {path!r}: one of {', '.join(PATHS)}")
    return PATHS[path](cameras, rig, num_frames)


def orbit(cameras: Sequence[Camera], rig: Rig, num_frames: int) -> list[Camera]:
    """Around what the cameras look at, at their median height and distance.

    A capture from all sides is circled once, from its first camera on; the last frame is one step before the first, so that
    a film of it runs round and round. One with a gap of more than 120 degrees, behind which nothing has been seen, is
    swung across from end to end and back.
    """
    up, offsets = rig.up, torch.stack([camera.position for camera in cameras]).double().cpu() - rig.target
    heights = offsets @ up
    level = offsets - heights[:, None] * up
    first = torch.nn.functional.normalize(level[0] if level[0].norm() > 1e-9 else _any_across(up), dim=0)
    side = torch.linalg.cross(up, first)
    height, radius = heights.median(), level.norm(dim=1).median()
    turns = torch.arange(num_frames, dtype=torch.float64) / num_frames
    start, stop = _arc(torch.atan2(level @ side, level @ first))
    if stop - start >= 2 * math.pi - GAP:
        angles = 2 * math.pi * turns
    else:
        angles = start + (stop - start) * (1 - torch.cos(2 * math.pi * turns)) / 2
    return [
        _placed(cameras[0], rig.target + height * up + radius * (a.cos() * first + a.sin() * side), rig) for a in angles
    ]


def _arc(angles: torch.Tensor) -> tuple[float, float]:
    """Where the shortest arc that holds all these angles begins and ends, in radians."""
    sorted_angles = angles.sort().values
    following = torch.cat([sorted_angles[1:], sorted_angles[:1] + 2 * math.pi])
    widest = int((following - sorted_angles).argmax())
    start = float(following[widest])
    return start, start + 2 * math.pi - float(following[widest] - sorted_angles[widest])


def spiral(cameras: Sequence[Camera], rig: Rig, num_frames: int) -> list[Camera]:
    """Small loops about the capture's middle camera that keep looking at the same point (as LLFF's films do).

    The middle one is the nearest to the mean of all, or in a capture from all around the one of median height.
    They reach as far as nine in ten cameras lie from the middle one, but at most a quarter of the distance to what is
    looked at, so that a capture from all around is shown from one side.
    """
    positions = torch.stack([camera.position for camera in cameras]).double().cpu()
    heights = (positions - rig.target) @ rig.up
    level = positions - rig.target - heights[:, None] * rig.up
    if level.mean(0).norm() < SURROUNDED * level.norm(dim=1).mean():
        # The camera nearest to the mean of a dome would be the one at its top.
        middle = cameras[int((heights - heights.median()).abs().argmin())]
    else:
        middle = cameras[int((positions - positions.mean(0)).norm(dim=1).argmin())]
    axes = middle.world_to_camera[:3, :3].double().cpu()
    position = middle.position.double().cpu()
    limit = SPIRAL_REACH * (rig.target - position).norm()
    spread = ((positions - position) @ axes.T).abs().quantile(0.9, dim=0)
    # A lone camera has no spread to go by.
    reach = torch.where(spread < 0.1 * limit, limit, spread).minimum(limit)
    frames = []
    for i in range(num_frames):
        angle = 2 * math.pi * SPIRAL_TURNS * i / num_frames
        offset = reach * torch.tensor([math.cos(angle), -math.sin(angle), math.sin(angle / 2)], dtype=torch.float64)
        frames.append(_placed(middle, position + offset @ axes, rig))
    return frames


def interpolate(cameras: Sequence[Camera], rig: Rig, num_frames: int) -> list[Camera]:
    """A smooth flight through the cameras themselves, at an even pace.

    What is before a camera, how far before it, and its orientation follow cubic splines; where it stands follows from these,
    so that between two cameras far apart the subject stays in the picture.

    It takes the cameras in the capture's order where that is a path; where it jumps about, as when every picture was
    taken from a random side, it goes from the first camera to the nearest one left, and so on.
    """
    if len(cameras) < 2:
        raise PathError("path interpolate needs at least two cameras to go through; use orbit or spiral")
    positions = torch.stack([camera.position for camera in cameras]).double().cpu().numpy()
    order = _tour(positions)
    if _length(positions) <= DETOUR * _length(positions[order]):
        order = list(range(len(cameras)))
    order = [i for n, i in enumerate(order) if n == 0 or np.abs(positions[i] - positions[order[n - 1]]).max() > 1e-9]
    num_keys = min(len(order), max(2, num_frames // FRAMES_A_CAMERA))
    keys = [order[round(k)] for k in np.linspace(0, len(order) - 1, num_keys)]
    if len(keys) < 2:
        raise PathError("path interpolate needs cameras in two different places; use orbit or spiral")
    places = positions[keys]
    marks = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(places, axis=0), axis=1) + 1e-9)])
    chosen = [cameras[i] for i in keys]
    rotations = Rotation.from_matrix(np.stack([c.world_to_camera[:3, :3].double().cpu().numpy() for c in chosen]))
    at = np.linspace(0, marks[-1], num_frames)
    turned = RotationSpline(marks, rotations)(at).as_matrix()
    forward = rotations.as_matrix()[:, 2]
    # A camera that looks away from the rig's target has nothing before it to turn about, and flies by its place alone.
    ahead = ((rig.target.numpy() - places) * forward).sum(1, keepdims=True).clip(min=0)
    moved = CubicSpline(marks, places + ahead * forward)(at) - CubicSpline(marks, ahead)(at) * turned[:, 2]
    # What the cameras differ in besides is their focal length, if anything: sizes follow the first camera.
    focals = np.stack([c.resized(chosen[0].width, chosen[0].height).focal for c in chosen])
    zoom = np.stack([np.interp(at, marks, focals[:, axis]) for axis in (0, 1)], axis=1)
    frames = []
    for rotation, position, focal in zip(turned, moved, zoom, strict=True):
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = rotation, -rotation @ position
        pose = torch.from_numpy(matrix).float()
        frames.append(replace(chosen[0], world_to_camera=pose, focal=(float(focal[0]), float(focal[1])), time=0.0))
    return frames


def dataset(cameras: Sequence[Camera], rig: Rig, num_frames: int) -> list[Camera]:
    """The capture's own cameras in its order, `num_frames` of them evenly spread, each at its own time."""
    return [cameras[round(i)] for i in np.linspace(0, len(cameras) - 1, num_frames)]


def _placed(like: Camera, position: torch.Tensor, rig: Rig) -> Camera:
    """`like` moved to a place, and turned to what is looked at."""
    return replace(like, world_to_camera=look_at(position, rig.target, rig.up).float(), time=0.0)


def _any_across(up: torch.Tensor) -> torch.Tensor:
    """Some direction at a right angle to `up`."""
    return torch.linalg.cross(up, torch.eye(3, dtype=up.dtype)[int(up.abs().argmin())])


def _length(places: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(places, axis=0), axis=1).sum())


def _tour(positions: np.ndarray) -> list[int]:
    """From the first place to the nearest one left, until none is."""
    left = set(range(1, len(positions)))
    order = [0]
    while left:
        here = positions[order[-1]]
        order.append(min(left, key=lambda i: (float(((positions[i] - here) ** 2).sum()), i)))
        left.remove(order[-1])
    return order


PATHS: dict[str, Callable[[Sequence[Camera], Rig, int], list[Camera]]] = {
    "orbit": orbit,
    "spiral": spiral,
    "interpolate": interpolate,
    "dataset": dataset,
}
