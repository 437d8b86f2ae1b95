import errno
import io
import math
import os
import tempfile

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dynamic.datasets.neural_3d_video import Neural3DVideo, Video
from nfc_gs.captures.photographs import PhotographStore
from nfc_gs.datasets.base import DatasetError

WIDTH, HEIGHT, FOCAL, NEAR, FAR = 64, 48, 70.0, 2.0, 9.0
# Pixels of about 100 in float32.
PIXEL_TOLERANCE = 2e-3
# Grey levels of a flat frame after MPEG-4 and the way through YUV; other frames are 10 or more away.
CODED_TOLERANCE = 6


def placed(index):
    """Where camera `index` stands and how it is turned: camera-to-world, columns right, up, backward (OpenGL)."""
    angle = 0.15 * index - 0.2
    c, s = math.cos(angle), math.sin(angle)
    rotation = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return rotation, np.array([0.5 * index - 1, 0.1 * index, 4.0])


def row(index):
    """As LLFF writes a camera: columns down, right, backward, position, (height, width, focal); near, far."""
    rotation, position = placed(index)
    right, up, backward = rotation.T
    matrix = np.stack([-up, right, backward, position, [HEIGHT, WIDTH, FOCAL]], axis=1)
    return np.concatenate([matrix.reshape(-1), [NEAR, FAR]])


def project(index, point):
    """NeRF's pinhole for OpenGL's axes: x right, y up, looking along -z."""
    rotation, position = placed(index)
    x, y, z = rotation.T @ (np.array(point) - position)
    return WIDTH / 2 + FOCAL * x / -z, HEIGHT / 2 - FOCAL * y / -z


def level(camera, frame):
    """The grey of a frame, its own for every camera and frame."""
    return 40 + 10 * camera + 15 * frame


@pytest.fixture
def write(tmp_path):
    """Writes a clip of `num` cameras: folders of pictures, or videos."""

    def make(num=3, frames=5, form="folder", inner="", first=0, factor=1):
        np.save(tmp_path / "poses_bounds.npy", np.stack([row(index) for index in range(num)]))
        width, height = WIDTH // factor, HEIGHT // factor
        for camera in range(num):
            name = f"cam{camera:02d}"
            pictures = [np.full((height, width, 3), level(camera, k), dtype=np.uint8) for k in range(frames)]
            if form == "folder":
                folder = tmp_path / name / inner
                folder.mkdir(parents=True)
                for number, pixels in enumerate(pictures):
                    Image.fromarray(pixels).save(folder / f"{first + number:04d}.png")
            else:
                film = cv2.VideoWriter(
                    str(tmp_path / f"{name}.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 30, (width, height)
                )
                assert film.isOpened()
                for pixels in pictures:
                    film.write(pixels)
                film.release()
        return tmp_path

    return make


class Film:
    """An open video that a test can listen to; OpenCV's own class crashes when it is derived from."""

    def __init__(self, video):
        self.capture = cv2.VideoCapture(str(video.path))

    def __getattr__(self, name):
        return getattr(self.capture, name)


def refused(folder, **settings):
    with pytest.raises(DatasetError) as caught:
        scene = Neural3DVideo(folder=folder, **settings).load(0)
        for view in scene.train:
            view.read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("downscale", [1, 2])
def test_points_are_seen_where_llffs_poses_say(write, downscale):
    scene = Neural3DVideo(folder=write(), downscale=downscale).load(0)
    points = np.random.default_rng(0).uniform(-1, 1, size=(20, 3))
    trained = scene.to_world.inverse(torch.from_numpy(points)).float()
    for index, view in ((0, scene.test[0]), (1, scene.train[0]), (2, scene.train[-1])):
        expected = np.array([project(index, point) for point in points]) / downscale
        pixels, depth = view.camera.project(trained)
        assert (depth > 0).all()
        assert np.abs(pixels.numpy() - expected).max() < PIXEL_TOLERANCE
        assert (view.camera.width, view.camera.height) == (WIDTH // downscale, HEIGHT // downscale)


@pytest.mark.parametrize("inner", ["", "images"])
def test_frames_of_a_folder_are_evenly_spread_in_time(write, inner):
    scene = Neural3DVideo(folder=write(inner=inner, first=1)).load(0)
    assert scene.times == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert [view.name for view in scene.test] == [f"cam00/{number:04d}" for number in range(1, 6)]
    for view in scene.train:
        camera, frame = int(view.name[3:5]), int(view.name[-4:]) - 1
        assert view.camera.time == frame / 4
        assert (view.read().rgb == level(camera, frame)).all()
        assert view.read().rgb.shape == (HEIGHT // 2, WIDTH // 2, 3)


def test_frames_of_a_video_are_found_in_any_order(write):
    scene = Neural3DVideo(folder=write(frames=12, form="video")).load(0)
    assert (len(scene.train), len(scene.test)) == (24, 12)
    order = np.random.default_rng(0).permutation(len(scene.train))
    for view in (scene.train[index] for index in order):
        camera, frame = int(view.name[3:5]), int(view.name[-4:])
        rgb = view.read().rgb
        assert rgb.shape == (HEIGHT // 2, WIDTH // 2, 3)
        assert np.abs(rgb.astype(int) - level(camera, frame)).max() <= CODED_TOLERANCE


def test_channels_of_a_video_are_red_green_blue(write, tmp_path):
    folder = write(num=2, frames=2, form="video")
    film = cv2.VideoWriter(str(tmp_path / "cam01.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 30, (WIDTH, HEIGHT))
    for _ in range(2):
        # OpenCV's channels are blue, green, red.
        film.write(np.full((HEIGHT, WIDTH, 3), (20, 60, 220), dtype=np.uint8))
    film.release()
    mean = Neural3DVideo(folder=folder).load(0).train[0].read().rgb.mean(axis=(0, 1))
    # Colour is coded more coarsely than brightness.
    assert mean == pytest.approx([220, 60, 20], abs=3 * CODED_TOLERANCE)


def test_a_video_is_read_a_frame_at_a_time_and_takes_no_budget(write, monkeypatch):
    scene = Neural3DVideo(folder=write(num=2, frames=12, form="video")).load(0)
    read, opened = [], []

    class Counting(Film):
        def __init__(self, video):
            super().__init__(video)
            opened.append(video)

        def read(self):
            read.append(1)
            return self.capture.read()

    monkeypatch.setattr(Video, "_capture", lambda video: Counting(video))
    store = PhotographStore(scene.train, memory_bytes=0, disk_bytes=0)
    for _ in range(2):
        for number in (7, 3, 11, 0, 5):
            photograph = store.get(number)
            assert np.abs(photograph.rgb.astype(int) - level(1, number)).max() <= CODED_TOLERANCE
            assert isinstance(photograph.rgb, np.memmap)
            assert photograph.bytes == 0
    # One pass over the video, however its frames are asked for; and no second copy of them on the disk.
    assert len(opened) == 1
    assert len(read) == 12
    assert store.held_bytes == 0
    assert store.written_bytes == 0
    store.close()


def test_frames_of_a_video_that_are_held_take_no_descriptor_each(write):
    resource = pytest.importorskip("resource", reason="limits of descriptors are Unix's")
    scene = Neural3DVideo(folder=write(num=3, frames=12, form="video")).load(0)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A duplicate gets the lowest number that is free: so many are in use, and a few are left for the three videos.
    used = os.dup(1)
    os.close(used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, before[1]))
    try:
        held = [view.read() for view in (*scene.train, *scene.test)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(held) == 36
    for number, photograph in enumerate(held[:12]):
        assert np.abs(photograph.rgb.astype(int) - level(1, number)).max() <= CODED_TOLERANCE


def test_a_disk_that_is_full_is_named(write, monkeypatch):
    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    scene = Neural3DVideo(folder=write(num=2, frames=4, form="video")).load(0)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(
        DatasetError, match=r"cannot take the frames of cam01.mp4: No space left on device; name a larger"
    ):
        scene.train[0].read()


def test_part_of_a_clip_can_be_chosen(write):
    scene = Neural3DVideo(folder=write(frames=9, form="video"), first_frame=2, num_frames=5).load(0)
    assert scene.times == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert [view.name[-4:] for view in scene.test] == ["0002", "0003", "0004", "0005", "0006"]
    assert np.abs(scene.test[4].read().rgb.astype(int) - level(0, 6)).max() <= CODED_TOLERANCE


def test_one_frame_is_a_still_scene(write):
    assert Neural3DVideo(folder=write(), num_frames=1).load(0).times == (0.0,)


def test_other_cameras_can_judge_or_be_left_out(write):
    scene = Neural3DVideo(folder=write(num=4), test_cameras=("cam02",), skip_cameras=("cam01",)).load(0)
    assert {view.name[:5] for view in scene.test} == {"cam02"}
    assert {view.name[:5] for view in scene.train} == {"cam00", "cam03"}
    assert "no camera 'cam09', which dataset.skip_cameras names" in refused(
        scene_folder(scene), skip_cameras=("cam09",)
    )


def scene_folder(scene):
    return scene.train[0].read.__self__.path.parents[1]


def test_points_lie_in_the_cameras_views_between_the_depths(write):
    scene = Neural3DVideo(folder=write(), points=300).load(0)
    assert len(scene.points.xyz) == 300
    cameras = {view.name[:5]: view.camera for view in scene.train}
    seen = torch.zeros(300, dtype=torch.bool)
    for camera in cameras.values():
        pixels, depth = camera.project(scene.points.xyz)
        inside = ((pixels >= 0) & (pixels <= torch.tensor([camera.width, camera.height]))).all(-1)
        far = depth * scene.to_world.scale
        seen |= inside & (far > NEAR - 1e-3) & (far < FAR + 1e-3)
    # Rounding may put a few of them just beyond the frame.
    assert seen.float().mean() > 0.97
    assert Neural3DVideo(folder=scene_folder(scene), points=0).load(0).points is None


def test_extracted_frames_may_already_be_smaller(write):
    folder = write(factor=2)
    scene = Neural3DVideo(folder=folder, downscale=2).load(0)
    assert scene.train[0].read().rgb.shape == (HEIGHT // 2, WIDTH // 2, 3)
    assert "smaller than the 64x48 asked for; set dataset.downscale=2" in refused(folder, downscale=1)


def test_missing_frames_are_counted(write):
    folder = write(frames=6)
    for number in (2, 4):
        (folder / "cam01" / f"{number:04d}.png").unlink()
    message = refused(folder)
    assert "cam01: 2 of 6 frames are missing (first: 2)" in message
    for camera in ("cam00", "cam02"):
        for number in (2, 4):
            (folder / camera / f"{number:04d}.png").unlink()
    assert "2 frames between 0 and 5 are missing from all cameras (first: 2)" in refused(folder)


def test_clips_of_unequal_length_say_which_is_short(write):
    folder = write(num=2, frames=6, form="video")
    short = folder / "cam01.mp4"
    film = cv2.VideoWriter(str(short), cv2.VideoWriter_fourcc(*"mp4v"), 30, (WIDTH, HEIGHT))
    for _ in range(4):
        film.write(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8))
    film.release()
    assert "cam01.mp4: 2 of 6 frames are missing (first: 4)" in refused(folder)
    assert len(Neural3DVideo(folder=folder, num_frames=4).load(0).times) == 4


def test_videos_that_cannot_be_decoded_are_refused(write):
    folder = write(num=2, form="video")
    (folder / "cam01.mp4").write_bytes(b"no video")
    assert "cam01.mp4: is no video that can be decoded" in refused(folder)


def test_a_video_that_ends_early_is_said_when_it_is_read(write, monkeypatch):
    folder = write(num=2, frames=6, form="video")

    class Promising(Film):
        """A container that promises two frames more than it holds, as recordings that were cut off do."""

        def get(self, what):
            return self.capture.get(what) + 2 * (what == cv2.CAP_PROP_FRAME_COUNT)

    monkeypatch.setattr(Video, "_capture", lambda video: Promising(video))
    message = refused(folder)
    assert "says that it has 8 frames, but frame 6 cannot be decoded" in message
    assert "dataset.num_frames to 6" in message


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((3, 15)), r"shape \(3, 15\); it must be \[cameras, 17\]"),
        (np.zeros(17), r"shape \(17,\)"),
        (np.full((3, 17), math.nan), "row 0 holds NaN"),
        (np.full((3, 17), "one"), "holds str96 values; it must hold numbers"),
        (np.ones((3, 17)), "row 0 is no rotation"),
        (np.stack([row(0), row(1), np.append(row(2)[:-1], 1.0)]), "row 2 states .* depths 2 to 1"),
        (np.stack([row(0), row(1)]), r"has 2 cameras, but there are 3 .*cam00 to cam02"),
    ],
)
def test_poses_that_are_none_are_refused(write, rows, message):
    folder = write()
    np.save(folder / "poses_bounds.npy", rows)
    with pytest.raises(DatasetError, match=message) as caught:
        Neural3DVideo(folder=folder).load(0)
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_refused(write, tmp_path):
    folder = write()
    (folder / "cam01" / "0001.png").write_text("no picture")
    assert "0001.png: is not a picture" in refused(folder)
    (folder / "poses_bounds.npy").write_text("x")
    assert "is no NumPy array" in refused(folder)
    (folder / "poses_bounds.npy").unlink()
    assert "poses_bounds.npy: no such file" in refused(folder)
    assert "no such folder" in refused(tmp_path / "nowhere")
