"""Decoded photographs, kept as 8-bit pixels under a stated budget of memory."""

import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from nfc_gs.config import UserError
from nfc_gs.core.scene import Photograph, View


class SpillError(UserError):
    """The temporary file for photographs cannot be written."""


class PhotographStore:
    """Every view's photograph is decoded, downscaled and undistorted once, when it is first wanted.

    What fits into `budget_bytes` stays in memory; the rest is written, as decoded, to a temporary file that is mapped
    into memory, so the operating system may drop it when memory is short and read it back without decoding anything.
    """

    def __init__(self, views: Sequence[View], budget_bytes: int, workers: int = 2) -> None:
        self.views, self.budget_bytes = views, budget_bytes
        self.held_bytes = 0
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._photographs: dict[int, Future[Photograph]] = {}
        self._lock = threading.Lock()
        self._spill: tempfile._TemporaryFileWrapper | None = None

    def get(self, number: int) -> Photograph:
        """The photograph of view `number`; waits for it if it is not decoded yet.

        Raises:
            UserError: the file cannot be decoded.
        """
        return self._ask(number).result()

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Has these decoded in the background."""
        for number in numbers:
            self._ask(number)

    def close(self) -> None:
        """Ends the decoding and deletes the temporary file; photographs handed out before stay readable."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._spill is not None:
            self._spill.close()
            self._spill = None

    def _ask(self, number: int) -> Future[Photograph]:
        with self._lock:
            if number not in self._photographs:
                self._photographs[number] = self._pool.submit(self._keep, number)
            return self._photographs[number]

    def _keep(self, number: int) -> Photograph:
        photograph = self.views[number].read()
        with self._lock:
            if self.held_bytes + photograph.bytes <= self.budget_bytes:
                self.held_bytes += photograph.bytes
                return photograph
            try:
                return self._spilled(photograph)
            except OSError as error:
                raise SpillError(
                    f"{tempfile.gettempdir()}: cannot take the photographs that exceed photographs_gb: "
                    f"{error.strerror or error}; raise photographs_gb, or name a larger disk's folder in TMPDIR"
                ) from None

    def _spilled(self, photograph: Photograph) -> Photograph:
        """The same photograph, its pixels at the end of the temporary file."""
        if self._spill is None:
            self._spill = tempfile.NamedTemporaryFile(prefix="nfc-gs-", suffix=".photographs")  # noqa: SIM115
        file = self._spill

        def moved(pixels: np.ndarray | None) -> np.ndarray | None:
            if pixels is None:
                return None
            start = file.seek(0, 2)
            file.write(np.ascontiguousarray(pixels).tobytes())
            file.flush()
            # Copy on write: torch refuses to share memory that it may not write to, and nobody writes.
            return np.memmap(file.name, dtype=pixels.dtype, mode="c", offset=start, shape=pixels.shape)

        rgb = moved(photograph.rgb)
        assert rgb is not None
        return Photograph(rgb=rgb, alpha=moved(photograph.alpha), mask=moved(photograph.mask))
