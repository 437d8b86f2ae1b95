"""Films: frames as a folder of PNGs, an MP4, a WebM or a GIF, and as one sheet to look at."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.filter import Graph
from av.stream import Stream
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from nfc_gs.evaluation.pictures import LABEL_HEIGHT, PictureError, draw_label, write_pngs

# Encoders by ending, and their options: visually lossless, and not slower than the frames are drawn.
ENCODERS = {
    ".mp4": ("libx264", {"crf": "16", "preset": "medium"}),
    ".webm": ("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}),
}
ENDINGS = (*ENCODERS, ".gif")
# FFmpeg's numbers for BT.709 (matrix and primaries) and for limited range: said in the file, or players guess.
BT709, LIMITED = 1, 1
SHEET_FRAMES = 12
SHEET_WIDTH = 1200
# GIF counts in hundredths of a second.
GIF_TICKS = 100


def even(width: int, height: int, ending: str) -> tuple[int, int]:
    """The size in which a film can be written: MP4 and WebM halve their colours' resolution, so sides must be even."""
    return (width, height) if ending not in ENCODERS else (max(width // 2 * 2, 2), max(height // 2 * 2, 2))


def write_film(frames: Iterable[UInt8[np.ndarray, "H W 3"]], path: Path, fps: float) -> int:
    """Writes frames of one size as MP4 (H.264), WebM (VP9) or GIF, by the path's ending; returns how many.

    Frames are taken one at a time, and the file appears under its name when it is complete.

    Raises:
        PictureError: the ending is none of these, PyAV lacks the encoder, or the file cannot be written.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise PictureError(f"{path}: no film format {ending!r}: one of {', '.join(ENDINGS)}")
    if ending in ENCODERS and ENCODERS[ending][0] not in av.codecs_available:
        raise PictureError(
            f"{path}: this PyAV has no encoder {ENCODERS[ending][0]}; write another of {', '.join(ENDINGS)}"
        )
    partial = path.with_name(f"{path.stem}.partial{ending}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Asked of the disk itself first, whose answers are plainer than FFmpeg's.
        partial.touch()
        try:
            count = _encode(frames, partial, fps, ending)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    # PyAV's errors are OSErrors where the disk refused, and FFmpegErrors otherwise.
    except (OSError, av.FFmpegError) as error:
        raise PictureError(f"{path}: cannot be written: {error.strerror or error}") from None
    return count


def write_frames(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]], folder: Path, sheet: Callable[[], UInt8[np.ndarray, "A B 3"]]
) -> list[Path]:
    """Writes frames as frame_00000.png and on, and contact_sheet.png; returns the frames' paths.

    Args:
        frames: taken one at a time.
        folder: made if it is not there; frames that an earlier film left there are deleted once all new ones are drawn.
        sheet: asked for after the last frame.

    Raises:
        PictureError: a file cannot be written; there is none then.
    """

    def pictures() -> Iterator[tuple[str, UInt8[np.ndarray, "H W 3"]]]:
        yield from ((f"frame_{i:05d}.png", frame) for i, frame in enumerate(frames))
        yield "contact_sheet.png", sheet()

    return write_pngs(pictures(), folder, outdated="frame_[0-9][0-9][0-9][0-9][0-9].png")[:-1]


def film_sheet(frames: Sequence[tuple[str, UInt8[np.ndarray, "H W 3"]]]) -> UInt8[np.ndarray, "A B 3"]:
    """Labelled frames in rows of four, shrunk so that the sheet is at most 1200 pixels wide; at least one frame."""
    columns = min(4, len(frames))
    height, width = frames[0][1].shape[:2]
    tile_width = min(SHEET_WIDTH // columns, width)
    tile_height = max(1, round(height * tile_width / width))
    rows = -(-len(frames) // columns)
    sheet = np.full((rows * (tile_height + LABEL_HEIGHT), columns * tile_width, 3), 32, dtype=np.uint8)
    for i, (label, frame) in enumerate(frames):
        top, left = i // columns * (tile_height + LABEL_HEIGHT), i % columns * tile_width
        draw_label(sheet, label, left, top, tile_width)
        shrunk = cv2.resize(frame, (tile_width, tile_height), interpolation=cv2.INTER_AREA)
        sheet[top + LABEL_HEIGHT : top + LABEL_HEIGHT + tile_height, left : left + tile_width] = shrunk
    return sheet


def sheet_numbers(num_frames: int) -> list[int]:
    """Which frames a sheet shows: all of a few, or some evenly spread, with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, num_frames - 1, min(SHEET_FRAMES, num_frames))})


def _encode(frames: Iterable[np.ndarray], path: Path, fps: float, ending: str) -> int:
    frames = iter(frames)
    first = next(frames)
    height, width = first.shape[:2]
    rate = Fraction(fps).limit_denominator(1001)
    options = {"movflags": "+faststart"} if ending == ".mp4" else {}
    count = 0
    with av.open(str(path), "w", options=options) as container:
        if ending == ".gif":
            stream = _stream(container.add_stream("gif", rate=rate))
            stream.width, stream.height, stream.pix_fmt = width, height, "pal8"
            pictures = _with_palette(_chain(first, frames), width, height, rate)
        else:
            codec, settings = ENCODERS[ending]
            stream = _stream(container.add_stream(codec, rate=rate, options=settings))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED
            pictures = map(_to_bt709, _chain(first, frames))
        for count, picture in enumerate(pictures, 1):
            picture.pts, picture.time_base = count - 1, 1 / rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return count


def _stream(stream: Stream) -> VideoStream:
    assert isinstance(stream, VideoStream)
    return stream


def _chain(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest


def _to_bt709(frame: np.ndarray) -> VideoFrame:
    picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    return picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")


def _with_palette(frames: Iterator[np.ndarray], width: int, height: int, rate: Fraction) -> Iterator[VideoFrame]:
    """The frames in the 256 colours that suit them all best, which FFmpeg finds when it has seen them all."""
    graph = Graph()
    source = graph.add_buffer(width=width, height=height, format=VideoFormat("rgb24"), time_base=1 / rate)
    split, choose = graph.add("split"), graph.add("palettegen", "stats_mode=full")
    use, sink = graph.add("paletteuse", "dither=bayer:bayer_scale=4"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(choose, 1, 0)
    choose.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    count = 0
    for count, frame in enumerate(frames, 1):
        picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = count - 1, 1 / rate
        source.push(picture)
    source.push(None)
    for _ in range(count):
        coloured = sink.pull()
        assert isinstance(coloured, VideoFrame)
        yield coloured
