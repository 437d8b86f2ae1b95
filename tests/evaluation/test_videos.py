import os

import av
import cv2
import numpy as np
import pytest

from nfc_gs.evaluation.pictures import PictureError
from nfc_gs.evaluation.videos import even, film_sheet, sheet_numbers, write_film, write_frames
from tests.disk import full_beyond

# Mean difference of 256 steps: what a visually lossless film, or a common palette of 256 colours, may lose.
LOSSY = 4.0


def frames(count: int, height=36, width=48) -> list[np.ndarray]:
    """A square that goes right over a gradient."""
    made = []
    for i in range(count):
        frame = np.full((height, width, 3), 90, np.uint8)
        frame[..., 0] = np.arange(width) * 4
        frame[10:20, i : i + 10] = (255, 40, 30)
        made.append(frame)
    return made


@pytest.mark.parametrize("ending", ["mp4", "webm", "gif"])
def test_a_film_read_back_has_the_frames_that_were_written(tmp_path, ending):
    path = tmp_path / f"film.{ending}"
    assert write_film(iter(frames(17)), path, 25.0) == 17
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        read = [frame.reformat(format="rgb24").to_ndarray() for frame in container.decode(stream)]
        assert float(stream.average_rate) == 25
    assert len(read) == 17
    for one, other in zip(read, frames(17), strict=True):
        assert one.shape == other.shape
        assert np.abs(one.astype(int) - other).mean() < LOSSY
    assert os.listdir(tmp_path) == [path.name]


def test_opencv_reads_the_film_too(tmp_path):
    write_film(frames(9), tmp_path / "film.mp4", 30.0)
    film = cv2.VideoCapture(str(tmp_path / "film.mp4"))
    size = [int(film.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
    count = 0
    while film.read()[0]:
        count += 1
    assert (size, count) == ([48, 36], 9)


def test_films_say_which_colours_they_mean(tmp_path):
    write_film(frames(2), tmp_path / "film.mp4", 30.0)
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert container.streams.video[0].codec_context.colorspace == 1  # FFmpeg's number for BT.709


def test_sides_of_films_are_even_and_those_of_gifs_need_not_be():
    assert even(269, 479, ".mp4") == (268, 478)
    assert even(269, 479, ".gif") == even(269, 479, "") == (269, 479)


def sheet():
    return film_sheet([("0", frames(1)[0])])


def test_frames_of_an_earlier_longer_film_do_not_stay_behind(tmp_path):
    write_frames(frames(5), tmp_path, sheet)
    (tmp_path / "notes.txt").write_text("mine")
    paths = write_frames(frames(2), tmp_path, sheet)
    assert sorted(os.listdir(tmp_path)) == ["contact_sheet.png", "frame_00000.png", "frame_00001.png", "notes.txt"]
    np.testing.assert_array_equal(cv2.imread(str(paths[1]))[..., ::-1], frames(2)[1])


def test_a_sheet_shows_the_first_and_the_last_frame():
    assert sheet_numbers(1) == [0]
    assert sheet_numbers(3) == [0, 1, 2]
    assert (sheet_numbers(100)[0], sheet_numbers(100)[-1], len(sheet_numbers(100))) == (0, 99, 12)
    sheet = film_sheet([(str(i), frame) for i, frame in enumerate(frames(5))])
    np.testing.assert_array_equal(sheet[18 : 18 + 36, :48], frames(5)[0])
    np.testing.assert_array_equal(sheet[-36:, :48], frames(5)[4])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("film.avi", "no film format '.avi'"),
        ("file/film.mp4", "cannot be written"),
        ("folder.gif", "cannot be written"),
    ],
)
def test_a_film_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, name, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(PictureError, match=message) as error:
        write_film(frames(3), tmp_path / name, 30.0)
    assert "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.gif"]


def test_a_film_that_breaks_off_leaves_the_older_one(tmp_path):
    path = tmp_path / "film.mp4"
    write_film(frames(3), path, 30.0)
    before = path.read_bytes()

    def breaking():
        yield from frames(2)
        raise RuntimeError("broke")

    with pytest.raises(RuntimeError, match="broke"):
        write_film(breaking(), path, 30.0)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["film.mp4"]


def test_a_folder_of_frames_that_is_broken_off_is_as_it_was(tmp_path):
    def stopped():
        yield from frames(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_frames(stopped(), tmp_path / "new", sheet)
    assert os.listdir(tmp_path) == []
    write_frames(frames(3), tmp_path / "old", sheet)
    with pytest.raises(KeyboardInterrupt):
        write_frames(stopped(), tmp_path / "old", sheet)
    assert sorted(os.listdir(tmp_path / "old")) == ["contact_sheet.png", *(f"frame_{i:05d}.png" for i in range(3))]


def test_a_disk_that_is_full_leaves_no_part_of_a_film(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)  # 12 kB, however it is packed
    flat = np.zeros_like(noise)
    for ending in (".mp4", ".webm", ".gif"):
        with full_beyond(2000), pytest.raises(PictureError, match=r"film.*cannot be written: File too large") as error:
            write_film([noise] * 3, tmp_path / f"film{ending}", 30.0)
        assert "\n" not in str(error.value)
    for pictures, largest in (([flat, noise], flat), ([flat, flat], noise)):
        name = "frame_00001" if largest is flat else "contact_sheet"
        with full_beyond(2000), pytest.raises(PictureError, match=f"frames/{name}.png: cannot be written"):
            write_frames(pictures, tmp_path / "frames", lambda sheet=largest: sheet)
    assert os.listdir(tmp_path) == []
