"""Neural 3D Video's layout: poses_bounds.npy beside one video, or one folder of frames, for each of several cameras."""

import os
import re
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float64, UInt8

from dynamic.datasets.base import DatasetError, MovingScene, bounding_box, read_array
from nfc_gs.captures.assembly import BACKGROUNDS, Background
from nfc_gs.captures.pictures import PICTURE_ENDINGS, PictureFile, develop, downscaled, is_scaled, read_header
from nfc_gs.captures.transforms import ROTATION_TOLERANCE
from nfc_gs.config import Folder, NonNegativeInt, PositiveInt, spec
from nfc_gs.core.camera import Camera
from nfc_gs.core.scene import Photograph, Points, Scene, Similarity, View, camera_extent

VIDEO_ENDINGS = (".mp4", ".MP4", ".mov", ".mkv", ".webm", ".avi")
# Of a row of poses_bounds.npy: a 3x5 matrix of pose and (height, width, focal length), then the near and far depth.
ROW = 17


@spec
class Neural3DVideo(MovingScene):
    """A scene filmed by several still cameras at once (Neural 3D Video, Li et al. 2022; poses as LLFF writes them).

    Cameras are the videos `cam*.mp4`, or the folders `cam*` or `cam*/images` of numbered frames, which go before; in the
    order of their names they are the rows of poses_bounds.npy. Those of `test_cameras` judge, those of `skip_cameras`
    are left out (as where one is out of step). `num_frames` frames from `first_frame` on are used (null: all), at times
    evenly from 0 to 1. Pictures are made `downscale` times smaller than poses_bounds.npy says they are.

    A video is decoded once, frame by frame, when its first frame is wanted; the frames in their final size go to a
    temporary file, so a clip may be longer than the memory. There are no points of structure from motion: `points` grey
    ones are drawn in the training cameras' views between the near and the far depth.
    """

    folder: Folder
    downscale: PositiveInt = 2
    background: Background = "black"
    test_cameras: tuple[str, ...] = ("cam00",)
    skip_cameras: tuple[str, ...] = ()
    first_frame: NonNegativeInt = 0
    num_frames: PositiveInt | None = None
    points: NonNegativeInt = 20_000

    def read(self, seed: int) -> Scene:
        """The scene; its cameras' mean is the origin and their extent 1."""
        if not self.folder.is_dir():
            raise DatasetError(f"{self.folder}: no such folder; set dataset.folder to where poses_bounds.npy is")
        rigs = read_poses_bounds(self.folder / "poses_bounds.npy")
        clips = self._clips(len(rigs))
        named = {clip.name: (clip, rig) for clip, rig in zip(clips, rigs, strict=True)}
        for key, wanted in (("test_cameras", self.test_cameras), ("skip_cameras", self.skip_cameras)):
            unknown = [name for name in wanted if name not in named]
            if unknown:
                raise DatasetError(f"{self.folder}: has no camera {unknown[0]!r}, which dataset.{key} names")
        kept = {name: both for name, both in named.items() if name not in self.skip_cameras}
        trained = [name for name in kept if name not in self.test_cameras]
        judged = [name for name in kept if name in self.test_cameras]
        if not trained or not judged:
            raise DatasetError(
                f"{self.folder}: {len(trained)} cameras to train on and {len(judged)} to judge by; both need some: see "
                "dataset.test_cameras and dataset.skip_cameras"
            )
        frames = self._frames([clip for clip, _ in kept.values()])
        similarity = _similarity([kept[name][1] for name in trained])
        views = {name: self._views(clip, rig, frames, similarity) for name, (clip, rig) in kept.items()}
        train = tuple(view for name in trained for view in views[name])
        points = self._points([(views[name][0].camera, kept[name][1]) for name in trained], similarity, seed)
        return Scene(
            train=train,
            test=tuple(view for name in judged for view in views[name]),
            points=points,
            extent=camera_extent(train),
            background=BACKGROUNDS[self.background],
            random_background=self.background == "random",
            bounds=bounding_box(points) if points is not None else None,
            to_world=similarity,
        )

    def _clips(self, num: int) -> list["Clip"]:
        folders = {path.name: path for path in self.folder.glob("cam*") if path.is_dir()}
        videos = {path.stem: path for path in self.folder.glob("cam*") if path.suffix in VIDEO_ENDINGS}
        names = sorted({*folders, *videos})
        if len(names) != num:
            raise DatasetError(
                f"{self.folder}: poses_bounds.npy has {num} cameras, but there are {len(names)} videos or folders cam* "
                f"({names[0]} to {names[-1]})"
                if names
                else f"{self.folder}: has neither videos cam*.mp4 nor folders cam* of frames"
            )
        return [FrameFolder(name, folders[name]) if name in folders else Video(name, videos[name]) for name in names]

    def _frames(self, clips: Sequence["Clip"]) -> list[int]:
        """The numbers of the frames that are used, the same in every clip."""
        counts = {clip.name: clip.numbers for clip in clips}
        everything = sorted(set().union(*counts.values()))
        stop = None if self.num_frames is None else self.first_frame + self.num_frames
        wanted = everything[self.first_frame : stop]
        if not wanted or (self.num_frames is not None and len(wanted) < self.num_frames):
            raise DatasetError(
                f"{self.folder}: there are {len(everything)} frames; dataset.first_frame={self.first_frame} and "
                f"dataset.num_frames={'null' if self.num_frames is None else self.num_frames} ask for others"
            )
        for clip in clips:
            has = set(counts[clip.name])
            missing = [number for number in wanted if number not in has]
            if missing:
                raise DatasetError(
                    f"{clip.path}: {len(missing)} of {len(wanted)} frames are missing (first: {missing[0]}); restore "
                    "them, or set dataset.num_frames, dataset.first_frame or dataset.skip_cameras"
                )
        # Between first and last, what all cameras lack is still a gap in time.
        gaps = sorted(set(range(wanted[0], wanted[-1] + 1)) - set(wanted))
        if gaps:
            raise DatasetError(
                f"{self.folder}: {len(gaps)} frames between {wanted[0]} and {wanted[-1]} are missing from all cameras "
                f"(first: {gaps[0]}); restore them, or number the frames without gaps"
            )
        return wanted

    def _views(self, clip: "Clip", rig: "Rig", frames: list[int], similarity: Similarity) -> tuple[View, ...]:
        size = downscaled(rig.width, rig.height, self.downscale)
        clip.open(frames, size)
        if not is_scaled(clip.size, (rig.width, rig.height)):
            raise DatasetError(
                f"{clip.path}: is {clip.size[0]}x{clip.size[1]}, but poses_bounds.npy says {rig.width}x{rig.height}; it "
                "must be that or a scaled copy"
            )
        if clip.size[0] < size[0]:
            raise DatasetError(
                f"{clip.path}: is {clip.size[0]}x{clip.size[1]}, smaller than the {size[0]}x{size[1]} asked for; set "
                f"dataset.downscale={-(-rig.width // clip.size[0])}"
            )
        camera = Camera(
            world_to_camera=similarity.inverse_camera(torch.from_numpy(np.linalg.inv(rig.camera_to_world))).float(),
            focal=(rig.focal, rig.focal),
            centre=(0.5 * rig.width, 0.5 * rig.height),
            width=rig.width,
            height=rig.height,
        ).resized(*size)
        last = max(len(frames) - 1, 1)
        return tuple(clip.view(index, camera, index / last) for index in range(len(frames)))

    def _points(self, cameras: list[tuple[Camera, "Rig"]], similarity: Similarity, seed: int) -> Points | None:
        if not self.points:
            return None
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(len(cameras), (self.points,), generator=generator)
        across, along = (torch.rand(self.points, n, generator=generator) for n in (2, 1))
        xyz = torch.empty(self.points, 3)
        for number, (camera, rig) in enumerate(cameras):
            mine = which == number
            pixels = across[mine] * torch.tensor([camera.width, camera.height])
            # Evenly in the logarithm of the depth: near things are seen larger.
            depth = rig.near * (rig.far / rig.near) ** along[mine, 0] / similarity.scale
            xyz[mine] = camera.unproject(pixels, depth)
        return Points(xyz=xyz, rgb=torch.full((self.points, 3), 0.5))


@dataclass(frozen=True, kw_only=True)
class Rig:
    """One still camera as poses_bounds.npy states it; `focal`, in pixels, and `near` and `far`, in the file's units."""

    camera_to_world: Float64[np.ndarray, "4 4"]
    width: int
    height: int
    focal: float
    near: float
    far: float


def read_poses_bounds(path: Path) -> list[Rig]:
    """The cameras of LLFF's file, whose poses' columns point down, right and backward.

    Raises:
        DatasetError: no such file, no array of 17 columns, or a row that is no camera.
    """
    rows = read_array(path)
    if rows.ndim != 2 or rows.shape[1] != ROW or len(rows) == 0:
        raise DatasetError(
            f"{path}: holds an array of shape {rows.shape}; it must be [cameras, {ROW}], as LLFF writes it"
        )
    return [_rig(path, index, row) for index, row in enumerate(rows.astype(np.float64))]


def _rig(path: Path, index: int, row: Float64[np.ndarray, "17"]) -> Rig:
    if not np.isfinite(row).all():
        raise DatasetError(f"{path}: row {index} holds NaN or infinity")
    down, right, backward, position, (height, width, focal) = row[:15].reshape(3, 5).T
    rotation = np.stack([right, down, -backward], axis=1)
    error = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if error > ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        raise DatasetError(f"{path}: the pose of row {index} is no rotation (off by {error:.2g})")
    near, far = row[15:]
    if min(width, height) < 1 or focal <= 0 or not 0 < near < far:
        raise DatasetError(
            f"{path}: row {index} states {width:g}x{height:g} pixels, focal length {focal:g} and depths {near:g} to "
            f"{far:g}; all must be above 0, and far beyond near"
        )
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, position
    return Rig(camera_to_world=pose, width=round(width), height=round(height), focal=focal, near=near, far=far)


class FrameFolder:
    """A camera's frames as numbered pictures in `path` or `path/images`; `numbers` are those of the file names."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path / "images" if (path / "images").is_dir() else path
        self.size = (0, 0)
        self._pictures: list[Path] = []
        self._target = (0, 0)
        self._numbered: dict[int, Path] = {}
        for picture in sorted(self.path.iterdir()):
            digits = re.search(r"\d+$", picture.stem)
            if picture.suffix not in PICTURE_ENDINGS or digits is None:
                continue
            number = int(digits[0])
            if number in self._numbered:
                raise DatasetError(
                    f"{self.path}: {self._numbered[number].name} and {picture.name} are both frame {number}"
                )
            self._numbered[number] = picture
        if not self._numbered:
            raise DatasetError(f"{self.path}: holds no numbered pictures, such as 0000.png")

    @property
    def numbers(self) -> Sequence[int]:
        """The frames there are."""
        return list(self._numbered)

    def open(self, frames: Sequence[int], size: tuple[int, int]) -> None:
        """Settles which frames are wanted, and their final size (width, height); finds their size on disk."""
        self._pictures, self._target = [self._numbered[number] for number in frames], size
        sizes = {(header.width, header.height): header for header in map(read_header, self._pictures)}
        if len(sizes) > 1:
            (one, first), (other, second) = list(sizes.items())[:2]
            raise DatasetError(
                f"{second.path}: is {other[0]}x{other[1]}, but {first.path.name} of the same camera is "
                f"{one[0]}x{one[1]}; make them one size"
            )
        self.size = next(iter(sizes))

    def view(self, index: int, camera: Camera, time: float) -> View:
        """The view of the wanted frame `index`."""
        picture = self._pictures[index]
        return View(
            name=f"{self.name}/{picture.stem}",
            camera=_at(camera, time),
            read=PictureFile(path=picture, size=self._target).read,
        )


class Video:
    """A camera's frames in a video, numbered from 0; decoded in one pass, one frame in memory at a time.

    The wanted frames, in their final size, go to a temporary file without compression, and are mapped from there.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        capture = self._capture()
        self.numbers: Sequence[int] = range(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        decoded, first = capture.read()
        capture.release()
        if not decoded or not self.numbers:
            raise DatasetError(f"{path}: holds no frame that can be decoded; restore it, or encode it anew")
        self.size = (first.shape[1], first.shape[0])
        self._frames: Sequence[int] = ()
        self._target = (0, 0)
        self._lock = threading.Lock()
        self._store: UInt8[np.memmap, "N H W 3"] | None = None

    def open(self, frames: Sequence[int], size: tuple[int, int]) -> None:
        """Settles which frames are wanted, and their final size (width, height)."""
        self._frames, self._target = frames, size

    def view(self, index: int, camera: Camera, time: float) -> View:
        """The view of the wanted frame `index`."""
        return View(
            name=f"{self.name}/{self._frames[index]:04d}",
            camera=_at(camera, time),
            read=_VideoFrame(video=self, index=index).read,
        )

    def read(self, index: int) -> Photograph:
        """The photograph of the wanted frame `index`, mapped into memory.

        Raises:
            DatasetError: the video ends before its last wanted frame, or the temporary file cannot be written.
        """
        with self._lock:
            if self._store is None:
                self._store = self._decode()
        return Photograph(rgb=self._store[index])

    def _decode(self) -> UInt8[np.memmap, "N H W 3"]:
        """The wanted frames, in one map: each map holds a file descriptor, of which a process may have few."""
        wanted = set(self._frames)
        width, height = self._target
        capture = self._capture()
        try:
            with tempfile.TemporaryFile(prefix="nfc-gs-", suffix=".frames") as store:
                for number in range(self._frames[-1] + 1):
                    if number not in wanted:
                        if not capture.grab():
                            raise self._cut_short(number)
                        continue
                    decoded, frame = capture.read()
                    if not decoded:
                        raise self._cut_short(number)
                    store.write(self._developed(frame).tobytes())
                store.flush()
                # Writable, as torch wants what it shares (nobody writes), and shared with the file: a private map that is
                # larger than the memory is refused.
                return np.memmap(store, dtype=np.uint8, mode="r+", shape=(len(self._frames), height, width, 3))
        except OSError as error:
            raise DatasetError(
                f"{tempfile.gettempdir()}: cannot take the frames of {self.path.name}: {error.strerror or error}; name "
                "a larger disk's folder in TMPDIR, or raise dataset.downscale"
            ) from None
        finally:
            capture.release()

    def _developed(self, frame: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        return develop(np.ascontiguousarray(frame[..., ::-1]), size=self._target).rgb

    def _capture(self) -> cv2.VideoCapture:
        # FFmpeg would add lines of its own to ours; read by OpenCV when it opens its first video (-8 is silence).
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            raise DatasetError(f"{self.path}: is no video that can be decoded; restore it, or encode it anew")
        return capture

    def _cut_short(self, number: int) -> DatasetError:
        return DatasetError(
            f"{self.path}: says that it has {len(self.numbers)} frames, but frame {number} cannot be decoded; restore "
            f"it, or set dataset.num_frames to {max(number - self._frames[0], 1)} or less"
        )


Clip = FrameFolder | Video


@dataclass(frozen=True, kw_only=True)
class _VideoFrame:
    """One frame of a video, by its index among the wanted ones."""

    video: Video
    index: int

    def read(self) -> Photograph:
        return self.video.read(self.index)


def _at(camera: Camera, time: float) -> Camera:
    return replace(camera, time=time)


def _similarity(rigs: Sequence[Rig]) -> Similarity:
    """The cameras' mean becomes the origin, and their extent 1."""
    positions = np.stack([rig.camera_to_world[:3, 3] for rig in rigs])
    middle = positions.mean(axis=0)
    radius = 1.1 * float(np.linalg.norm(positions - middle, axis=1).max())
    # A lone camera: nothing to go by, so the size stays.
    scale = radius if radius > 1e-9 else 1.0
    return Similarity(scale=scale, translation=(float(middle[0]), float(middle[1]), float(middle[2])))


Spec = Neural3DVideo
