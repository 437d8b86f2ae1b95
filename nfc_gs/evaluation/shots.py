"""What a film shows: a camera for every frame, each at its time, and the frames themselves."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from nfc_gs.config import near
from nfc_gs.core.camera import Camera
from nfc_gs.core.rig import rig_of
from nfc_gs.core.scene import Scene, View
from nfc_gs.deformations.static import Rest
from nfc_gs.evaluation import videos
from nfc_gs.evaluation.motion import Trails, draw_speeds, top_speed
from nfc_gs.evaluation.paths import PathError, walk
from nfc_gs.evaluation.pictures import (
    PictureError,
    check_folder_name,
    colour_depth,
    nearness_range,
    to_bytes,
    write_png,
)
from nfc_gs.model import SplatModel

logger = logging.getLogger(__name__)

MODES = ("rgb", "depth", "alpha", "motion", "trajectories")
# What compares with photographs, or comes from all of them, is drawn where photographs were taken.
PICTURE_MODES = ("error", "confidence")
# A film whose length nothing else says lasts so many seconds.
SECONDS = 4
# One scale for all depths of a film, from this many of its frames.
DEPTH_FRAMES = 5


@dataclass(frozen=True, kw_only=True)
class Film:
    """What was asked for; None where nothing was said.

    `times` are those of the frames, or how many, evenly from 0 to 1; `time` is the one at which all stands still. `path` moves
    the camera, `view` names the photograph from which it looks all the time. `split` says whose cameras the path
    "dataset" takes; all other paths go by the training cameras. `size` is (width, height).
    """

    times: tuple[float, ...] | int | None = None
    time: float | None = None
    path: str | None = None
    view: str | None = None
    split: str = "test"
    num_frames: int | None = None
    fps: float = 30.0
    size: tuple[int, int] | None = None


def plan(film: Film, scene: Scene, model: SplatModel) -> list[Camera]:
    """The camera of every frame, at the frame's time and of one size.

    Without `path` and `view`, the camera stands where the first held-out photograph was taken, or, with the time stopped,
    goes through all views of the split. Times run evenly from 0 to 1 where nothing is said of them; along the path
    "dataset" they are the photographs' own.

    Raises:
        PathError: wishes exclude each other, name no view or path, or nothing would move.
    """
    moving = not isinstance(model.field, Rest)
    if film.time is not None and film.times is not None:
        raise PathError("--time stops the time and --times moves it: give one of them")
    if film.view is not None and film.path is not None:
        raise PathError("--view stops the camera and --path moves it: give one of them")
    if not moving and (film.time is not None or film.times is not None):
        logger.warning("this run is still: it looks the same at all times")
    views = {"train": scene.train, "test": scene.test}[film.split]
    path = "dataset" if film.path is None and film.view is None and film.time is not None else film.path
    if not moving and path is None and film.times is None:
        raise PathError(
            "neither the scene nor the camera would move: give --path orbit, spiral, interpolate or dataset"
        )
    count = _count(film, path, len(views))
    if path is None:
        cameras = [_named(film.view, scene, views).camera] * count
    elif path == "dataset" and not views:
        raise PathError(f"the data set has no {film.split} views to go through; choose the other --split")
    else:
        base = [view.camera for view in (views if path == "dataset" else scene.train)]
        middle = model.at(0.0)[0].means.detach().median(0).values
        cameras = walk(path, base, rig_of(base, middle), count)
    if film.time is not None:
        times = [film.time] * count
    elif isinstance(film.times, tuple):
        times = list(film.times)
    elif path == "dataset" and film.times is None:
        times = [camera.time for camera in cameras]
    else:
        times = [i / max(count - 1, 1) if moving else 0.0 for i in range(count)]
    size = film.size or (cameras[0].width, cameras[0].height)
    return [replace(_fitted(camera, *size), time=time) for camera, time in zip(cameras, times, strict=True)]


def shoot(film: Film, scene: Scene, model: SplatModel, mode: str, output: Path) -> str:
    """Draws a film and writes it: to .mp4, .webm or .gif, to a .png (a sheet of some frames), or to a folder of PNGs with
    such a sheet; returns one line for the user.

    Args:
        film: what is shown.
        scene: whose cameras are used.
        model: what is drawn, over its own background.
        mode: "rgb", "depth" and "motion" (coloured, on one scale for the whole film), "alpha", or "trajectories".
        output: the file or folder.

    Raises:
        PathError: what was asked for cannot be shown.
        PictureError: no such mode or format, or a file cannot be written.
    """
    if mode in PICTURE_MODES:
        raise PictureError(
            f"{mode} is drawn as pictures of a split's views, not as a film: give a folder as --output, and none of --times, "
            "--time, --path, --view, --frames and --size"
        )
    if mode not in MODES:
        raise PictureError(f"a film cannot show {mode!r}: one of {', '.join(MODES)}")
    ending = output.suffix.lower()
    check_folder_name(output, "a film is FILE.mp4, .webm or .gif, a sheet of frames FILE.png, and frames are a folder")
    cameras = plan(film, scene, model)
    width, height = videos.even(cameras[0].width, cameras[0].height, ending)
    cut = "" if (width, height) == (cameras[0].width, cameras[0].height) else " (cut to even sides)"
    # The picture's last column or row is left away, and all else stays where it was.
    cameras = [replace(camera, width=width, height=height) for camera in cameras]
    shown = set(videos.sheet_numbers(len(cameras)))
    moving = not isinstance(model.field, Rest)
    if not moving and mode in ("motion", "trajectories"):
        logger.warning("this run is still: there is no motion to show")
    numbered = [(i, camera) for i, camera in enumerate(cameras) if ending != ".png" or i in shown]
    kept: list[tuple[str, UInt8[np.ndarray, "H W 3"]]] = []

    def frames() -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        drawn = draw(model, [camera for _, camera in numbered], mode)
        for (i, camera), frame in zip(numbered, drawn, strict=True):
            if i in shown and ending not in videos.ENDINGS:
                kept.append((f"{i}: t = {camera.time:.3f}" if moving else str(i), frame))
            yield frame

    if ending in videos.ENDINGS:
        count = videos.write_film(frames(), output, film.fps)
        number = "1 frame" if count == 1 else f"{count} frames"
        return f"{output}: {number}, {width}x{height}{cut}, {count / film.fps:.1f} s at {film.fps:g} a second"
    if ending == ".png":
        list(frames())
        write_png(videos.film_sheet(kept), output)
        return f"{output}: {len(kept)} frames on one sheet"
    paths = videos.write_frames(frames(), output, lambda: videos.film_sheet(kept))
    return f"{len(paths)} pictures of {width}x{height} written to {output}, and contact_sheet.png"


@torch.no_grad()
def draw(model: SplatModel, cameras: Sequence[Camera], mode: str) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The frames, one after the other, in one of `MODES`."""
    if mode == "motion":
        top = top_speed(model)
        yield from (draw_speeds(model, camera, top) for camera in cameras)
    elif mode == "trajectories":
        trails = Trails.of(model)
        yield from (trails.draw(camera) for camera in cameras)
    elif mode == "depth":
        some = [cameras[round(i)] for i in np.linspace(0, len(cameras) - 1, min(DEPTH_FRAMES, len(cameras)))]
        ranges = [nearness_range(*_depth(model, camera)) for camera in some]
        limits = (min(low for low, _ in ranges), max(high for _, high in ranges))
        yield from (colour_depth(*_depth(model, camera), limits) for camera in cameras)
    elif mode == "alpha":
        yield from (np.repeat(to_bytes(model.render(c).rendering.alpha)[..., None], 3, axis=2) for c in cameras)
    else:
        yield from (to_bytes(model.render(camera).rgb) for camera in cameras)


def _depth(model: SplatModel, camera: Camera) -> tuple[torch.Tensor, torch.Tensor]:
    rendering = model.render(camera, depth=True).rendering
    assert rendering.depth is not None
    return rendering.depth, rendering.alpha


def _count(film: Film, path: str | None, num_views: int) -> int:
    """How many frames."""
    given = len(film.times) if isinstance(film.times, tuple) else film.times
    if given is not None:
        if film.num_frames not in (None, given):
            raise PathError(
                f"--times asks for {given} frames and --frames for {film.num_frames}: leave one of them out"
            )
        return given
    if film.num_frames is not None:
        return film.num_frames
    return num_views if path == "dataset" else max(round(SECONDS * film.fps), 1)


def _named(name: str | None, scene: Scene, first: tuple[View, ...]) -> View:
    """The view of that name, with or without its ending; without a name the first one of the split."""
    views = [*first, *scene.test, *scene.train]
    if name is None:
        return views[0]
    for view in views:
        if name in (view.name, Path(view.name).stem, str(Path(view.name).with_suffix(""))):
            return view
    names = [view.name for view in views]
    raise PathError(f"no view {name!r} (as {names[0]}){near(name, names)}")


def _fitted(camera: Camera, width: int, height: int) -> Camera:
    """The camera with a picture of another size that shows at least what the old one did, undistorted."""
    zoom = min(width / camera.width, height / camera.height)
    x, y = (width - zoom * camera.width) / 2, (height - zoom * camera.height) / 2
    return replace(
        camera,
        focal=(camera.focal[0] * zoom, camera.focal[1] * zoom),
        centre=(camera.centre[0] * zoom + x, camera.centre[1] * zoom + y),
        width=width,
        height=height,
    )
