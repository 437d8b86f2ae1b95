"""Decoded photographs, kept as 8-bit pixels under stated budgets of memory and disk."""

import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from nfc_gs.config import UserError
from nfc_gs.core.scene import Photograph, View
from nfc_gs.kernels import threads

# More workers than this wait for the disk and for one another.
MOST_WORKERS = 8
# How many photographs on their way, or just used, may lie in memory beside those that stay: at least, where the budget
# allows it, and at most.
LEAST_WINDOW, MOST_WINDOW = 8, 32
# Of a pixel: three colours are certain, alpha and mask may come with them.
LEAST_PIXEL, MOST_PIXEL = 3, 5
SETTING = "photographs_disk_gb"


class SpillError(UserError):
    """The temporary file for photographs cannot be written."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """Where in the temporary file one photograph lies: colours, then alpha and mask where it has them."""

    start: int
    height: int
    width: int
    has_alpha: bool
    has_mask: bool


class PhotographStore:
    """Every view's photograph, decoded, downscaled and undistorted by workers, ahead of the one who wants it.

    What is read first stays in memory, up to `memory_bytes`; of the rest, up to `disk_bytes` are written, as decoded, to
    a temporary file without a name, which is gone when the process is, however that ends; what fits in neither is decoded
    anew whenever it is wanted. Which photographs lie where depends on when they were read, the photographs do not.

    A part of the memory is a window for those not kept there: on their way, waiting to be asked for, or just used.
    Memory of the decoders themselves comes on top: some two to six photographs in full size for each worker.
    """

    def __init__(self, views: Sequence[View], memory_bytes: int, disk_bytes: int, workers: int = 0) -> None:
        """Starts nothing yet.

        Args:
            workers: threads that decode; 0: as many as there are cores, from 2 to `MOST_WORKERS`.

        Raises:
            SpillError: the disk has less room than is planned to be used of it.
        """
        self.views = views
        self.held_bytes = 0
        self.written_bytes = 0
        pixels = [view.camera.width * view.camera.height for view in views]
        self._sizes = [MOST_PIXEL * each for each in pixels]
        largest = max(self._sizes, default=0)
        self._window_bytes = min(memory_bytes, MOST_WINDOW * largest, max(memory_bytes // 4, LEAST_WINDOW * largest))
        fits = sum(self._sizes) <= memory_bytes
        self._kept_bytes = memory_bytes if fits else memory_bytes - self._window_bytes
        self._disk_bytes = disk_bytes
        _check_room(min(disk_bytes, LEAST_PIXEL * sum(pixels) - self._kept_bytes))
        self._pool = ThreadPoolExecutor(
            workers or min(max(threads.available(), 2), MOST_WORKERS), thread_name_prefix="decode"
        )
        self._kept: dict[int, Photograph] = {}
        self._records: dict[int, Record] = {}
        # Least recently asked for first; those that were asked for ahead and not yet handed out are not to go.
        self._window: OrderedDict[int, Future[Photograph]] = OrderedDict()
        self._awaited: set[int] = set()
        self._reserved_bytes = 0
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None

    def get(self, number: int) -> Photograph:
        """The photograph of view `number`, not to be written to; waits for it if it is not there yet.

        Raises:
            UserError: the file cannot be decoded.
            SpillError: the temporary file cannot be written.
        """
        with self._lock:
            if number in self._kept:
                return self._kept[number]
            future = self._asked(number)
            self._awaited.discard(number)
        photograph = future.result()
        with self._lock:
            self._make_room(0)
        return photograph

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Has these read in the background, the first ones first, as many as there is room for."""
        with self._lock:
            for number in numbers:
                if number in self._kept:
                    continue
                if number not in self._window and not self._make_room(self._sizes[number]):
                    return
                self._asked(number)
                self._awaited.add(number)

    def close(self) -> None:
        """Ends the decoding and gives the temporary file back; photographs handed out before stay readable."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _asked(self, number: int) -> Future[Photograph]:
        """The reading of a photograph that is not kept in memory, under way or done; with the lock held."""
        if number not in self._window:
            self._window[number] = self._pool.submit(self._read, number)
            self._reserved_bytes += self._sizes[number]
        self._window.move_to_end(number)
        return self._window[number]

    def _make_room(self, size: int) -> bool:
        """Drops what was handed out longest ago until `size` more fits the window, if that helps; with the lock held."""
        excess = self._reserved_bytes + size - self._window_bytes
        for number in list(self._window) if excess > 0 else ():
            if excess > 0 and number not in self._awaited and self._window[number].done():
                del self._window[number]
                self._reserved_bytes -= self._sizes[number]
                excess -= self._sizes[number]
        return excess <= 0

    def _read(self, number: int) -> Photograph:
        """What a worker does."""
        with self._lock:
            record, file = self._records.get(number), self._file
        if record is not None:
            assert file is not None, "the workers end before the file is closed"
            return _from_file(file, record)
        photograph = self.views[number].read()
        with self._lock:
            if self.held_bytes + photograph.bytes <= self._kept_bytes:
                self.held_bytes += photograph.bytes
                self._kept[number] = photograph
                del self._window[number]
                self._awaited.discard(number)
                self._reserved_bytes -= self._sizes[number]
                return photograph
            if self.written_bytes + photograph.bytes > self._disk_bytes:
                return photograph
            start = self.written_bytes
            self.written_bytes += photograph.bytes
        try:
            with self._lock:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(prefix="nfc-gs-")  # noqa: SIM115
                file = self._file
            record = _to_file(file, photograph, start)
        except OSError as error:
            raise SpillError(
                f"{tempfile.gettempdir()}: cannot take the photographs that exceed photographs_gb: "
                f"{error.strerror or error}; lower {SETTING}, or name a larger disk's folder in TMPDIR"
            ) from None
        with self._lock:
            self._records[number] = record
        return photograph


def _check_room(planned: int) -> None:
    """Refuses to begin what the disk would end, when hours have passed."""
    folder = tempfile.gettempdir()
    if planned > 0 and planned > shutil.disk_usage(folder).free:
        free = shutil.disk_usage(folder).free
        raise SpillError(
            f"{folder}: has {free / 1e9:.1f} GB free, and {planned / 1e9:.1f} GB are planned for photographs that exceed "
            f"photographs_gb; set {SETTING}={0.8 * free / 1e9:.0f} (the others are decoded anew whenever they are wanted), or "
            "name a larger disk's folder in TMPDIR"
        )


def _to_file(file: BinaryIO, photograph: Photograph, start: int) -> Record:
    """Writes the pixels from byte `start` on, all of them or an error."""
    height, width = photograph.rgb.shape[:2]
    place = start
    for pixels in (photograph.rgb, photograph.alpha, photograph.mask):
        if pixels is not None:
            rest = np.ascontiguousarray(pixels).view(np.uint8).data.cast("B")
            while rest:
                written = os.pwrite(file.fileno(), rest, place)
                place, rest = place + written, rest[written:]
    return Record(
        start=start,
        height=height,
        width=width,
        has_alpha=photograph.alpha is not None,
        has_mask=photograph.mask is not None,
    )


def _from_file(file: BinaryIO, record: Record) -> Photograph:
    """Reads into memory of its own: a mapped page would be waited for by the one who uses it, not by the worker."""
    place, size = record.start, (record.height, record.width)

    def pixels(*shape: int) -> np.ndarray:
        nonlocal place
        found = np.empty(shape, np.uint8)
        rest = found.data.cast("B")
        while rest:
            count = os.preadv(file.fileno(), [rest], place)
            assert count, "what was recorded was written"
            place, rest = place + count, rest[count:]
        return found

    return Photograph(
        rgb=pixels(*size, 3),
        alpha=pixels(*size) if record.has_alpha else None,
        mask=pixels(*size).view(bool) if record.has_mask else None,
    )
