"""What captured photographs have in common, whichever program found their poses: placement, splits, masks, sizes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int

from nfc_gs.captures.lenses import Lens
from nfc_gs.captures.pictures import DatasetError, PictureFile, downscaled, find_picture, is_scaled, read_header
from nfc_gs.core.camera import Camera
from nfc_gs.core.scene import Points, Scene, Similarity, View, camera_extent

Background = Literal["white", "black", "random"]
# A lens that leaves less than this of the straight picture is taken for a mistake in the file.
LEAST_STRAIGHT_SHARE = 0.5
BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0), "random": (1.0, 1.0, 1.0)}


@dataclass(frozen=True, kw_only=True)
class Capture:
    """One photograph with its pose and lens, in the coordinates of the input files.

    `lens` speaks of pictures of its own size, of which the file may be a scaled copy; `mask` as in `PictureFile`.
    `source` names the file that states the camera, for errors.
    """

    name: str
    path: Path
    world_to_camera: Float64[np.ndarray, "4 4"]
    lens: Lens
    source: Path
    camera_name: str
    mask: Path | None = None
    mask_is_alpha: bool = False
    time: float = 0.0

    def view(self, downscale: int, similarity: Similarity) -> View:
        """The view: straight, `downscale` times smaller than the file, in the coordinates of training.

        EXIF's orientation is ignored, as structure from motion ignores it, unless only the turned picture has the shape
        that the camera states.
        """
        header = read_header(self.path)
        stated = (self.lens.width, self.lens.height)
        width, height, upright = header.width, header.height, False
        if not is_scaled((width, height), stated) and header.turned:
            width, height, upright = header.height, header.width, True
        if not is_scaled((width, height), stated):
            raise DatasetError(
                f"{self.path}: is {header.width}x{header.height}, but {self.source} says {stated[0]}x{stated[1]} "
                f"({self.camera_name}); it must be that or a scaled copy"
            )
        lens = self.lens.resized(width, height)
        size = downscaled(width, height, downscale)
        pose = similarity.inverse_camera(torch.from_numpy(self.world_to_camera))
        camera = Camera(
            world_to_camera=pose.float(),
            focal=lens.focal,
            centre=lens.centre,
            width=width,
            height=height,
            time=self.time,
        )
        file = PictureFile(
            path=self.path,
            size=size,
            upright=upright,
            lens=lens,
            mask=self.mask,
            mask_is_alpha=self.mask_is_alpha,
        )
        return View(name=self.name, camera=camera.resized(*size), read=file.read)


def assemble(
    train: Sequence[Capture],
    test: Sequence[Capture],
    *,
    points: tuple[np.ndarray, np.ndarray] | None,
    downscale: int,
    normalise: bool,
    background: Background,
    seen_in: Callable[[str], Sequence[int]] | None = None,
) -> Scene:
    """The scene of these captures; `points` are places [P 3] and colours in 0..255 [P 3].

    `seen_in` tells by a picture's name which of the points, by number, were found in it.

    With `normalise` the training cameras' mean is the origin and their extent (`camera_extent`) is 1.

    Raises:
        DatasetError: no view to train on or to judge by, a picture that does not fit its camera, or a distortion that
            cannot be undone within the picture.
    """
    if not train or not test:
        source = (*train, *test)[0].source
        raise DatasetError(
            f"{source}: {len(train)} views to train on and {len(test)} to judge by; both need some: set "
            "dataset.test_every to 2 or more, but to less than the number of pictures, or name the test pictures"
        )
    _check_lenses((*train, *test))
    similarity = _similarity(train) if normalise else Similarity()
    views = tuple(capture.view(downscale, similarity) for capture in train)
    held_out = tuple(capture.view(downscale, similarity) for capture in test)
    _check_sizes((*train, *test), (*views, *held_out))
    cloud = None
    if points is not None and len(points[0]):
        xyz = similarity.inverse(torch.from_numpy(np.asarray(points[0], dtype=np.float64))).float()
        rgb = torch.from_numpy(np.asarray(points[1], dtype=np.float32) / 255)
        cloud = Points(xyz=xyz, rgb=rgb, sightings=_sightings(train, seen_in) if seen_in is not None else None)
    return Scene(
        train=views,
        test=held_out,
        points=cloud,
        extent=camera_extent(views),
        background=BACKGROUNDS[background],
        random_background=background == "random",
        to_world=similarity,
    )


def every(captures: Sequence[Capture], step: int) -> tuple[list[Capture], list[Capture]]:
    """Training and test captures: by name, every `step`-th from the first is a test (Mip-NeRF 360); none if 0."""
    ordered = sorted(captures, key=lambda capture: capture.name)
    test = ordered[::step] if step else []
    return [capture for index, capture in enumerate(ordered) if not step or index % step], test


def split(captures: Sequence[Capture], is_test: Callable[[str], bool]) -> tuple[list[Capture], list[Capture]]:
    """Training and test captures by name, in order."""
    ordered = sorted(captures, key=lambda capture: capture.name)
    return [c for c in ordered if not is_test(c.name)], [c for c in ordered if is_test(c.name)]


def find_mask(folder: Path, name: str) -> Path | None:
    """The mask of the picture `name`: `name.png`, or the same stem with any picture's ending."""
    appended = folder / f"{name}.png"
    return appended if appended.is_file() else find_picture(folder / name)


def _sightings(
    train: Sequence[Capture], seen_in: Callable[[str], Sequence[int]]
) -> Callable[[], Int[np.ndarray, "S 2"]]:
    """Rows (point, training view), found when they are asked for."""

    def read() -> Int[np.ndarray, "S 2"]:
        points = [np.asarray(seen_in(capture.name), dtype=np.int64) for capture in train]
        views = np.repeat(np.arange(len(train)), [len(seen) for seen in points])
        return np.stack([np.concatenate(points), views], axis=1)

    return read


def _similarity(captures: Sequence[Capture]) -> Similarity:
    poses = np.stack([capture.world_to_camera for capture in captures])
    positions = -np.einsum("nji,nj->ni", poses[:, :3, :3], poses[:, :3, 3])
    middle = positions.mean(axis=0)
    radius = 1.1 * np.linalg.norm(positions - middle, axis=1).max()
    # All cameras in one place: nothing to go by, so the size stays.
    scale = float(radius) if radius > 1e-9 else 1.0
    return Similarity(scale=scale, translation=(float(middle[0]), float(middle[1]), float(middle[2])))


def _check_lenses(captures: Sequence[Capture]) -> None:
    for capture in {capture.lens: capture for capture in reversed(captures)}.values():
        share = capture.lens.straight_share
        if share < LEAST_STRAIGHT_SHARE:
            raise DatasetError(
                f"{capture.source}: {capture.camera_name}: its distortion ({capture.lens.distortion}) cannot be undone: "
                f"the photograph holds {share:.0%} of the straight picture; calibrate it anew, or set it to 0"
            )


def _check_sizes(captures: Sequence[Capture], views: Sequence[View]) -> None:
    """One camera takes pictures of one size."""
    first: dict[str, View] = {}
    for capture, view in zip(captures, views, strict=True):
        other = first.setdefault(capture.camera_name, view)
        if (other.camera.width, other.camera.height) != (view.camera.width, view.camera.height):
            raise DatasetError(
                f"{capture.path}: {view.camera.width}x{view.camera.height} after downscaling, but {other.name} of the "
                f"same {capture.camera_name} is {other.camera.width}x{other.camera.height}; make them one size"
            )
