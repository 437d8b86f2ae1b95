"""Photographs as tensors where they are compared, at the size that is due; on a CUDA device ahead of the step."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from nfc_gs.core.scene import Photograph, Pixels


@dataclass(frozen=True, order=True)
class Wanted:
    """A view's number, and by how much its photograph is downscaled."""

    view: int
    factor: int


class Feed:
    """Hands out photographs as tensors on a device; `read` decodes a view's.

    For a CUDA device a thread copies them there, through page-locked memory and on a stream of its own, so that neither the
    program nor the device waits for a copy that was asked for ahead. For the CPU nothing is copied.
    """

    def __init__(self, read: Callable[[int], Photograph], device: str) -> None:
        self._read, self._device = read, torch.device(device)
        self._copies: dict[Wanted, Future[tuple[Pixels, torch.cuda.Event]]] = {}
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="upload") if self._stream else None

    def get(self, wanted: Wanted) -> Pixels:
        """The photograph, not to be written to; waits for it if it was not asked for ahead.

        Raises:
            UserError: what `read` raises.
        """
        if self._pool is None:
            return Pixels.of(smaller(self._read(wanted.view), wanted.factor))
        self.prefetch([wanted])
        pixels, copied = self._copies.pop(wanted).result()
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(copied)
        for tensor in pixels:
            # Its memory was taken for the other stream, which would take it back while this one still reads.
            tensor.record_stream(stream)
        return pixels

    def prefetch(self, wanted: Iterable[Wanted]) -> None:
        """Has these copied in the background, in this order."""
        if self._pool is None:
            return
        for each in wanted:
            if each not in self._copies:
                self._copies[each] = self._pool.submit(self._copy, each)

    def close(self) -> None:
        """Ends the copying; what was handed out stays."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _copy(self, wanted: Wanted) -> tuple[Pixels, torch.cuda.Event]:
        """What the thread does."""
        pixels = Pixels.of(smaller(self._read(wanted.view), wanted.factor))
        with torch.cuda.stream(self._stream):
            there = pixels.map(lambda tensor: tensor.pin_memory().to(self._device, non_blocking=True))
            copied = torch.cuda.Event()
            copied.record(self._stream)
        return there, copied


def smaller(photograph: Photograph, factor: int) -> Photograph:
    """The photograph downscaled by area averaging; a pixel counts if all that it is made of counts."""
    if factor == 1:
        return photograph
    height, width = photograph.rgb.shape[:2]
    size = (max(width // factor, 1), max(height // factor, 1))
    alpha = None if photograph.alpha is None else cv2.resize(photograph.alpha, size, interpolation=cv2.INTER_AREA)
    mask = None
    if photograph.mask is not None:
        mask = cv2.resize(photograph.mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.999
    return Photograph(rgb=cv2.resize(photograph.rgb, size, interpolation=cv2.INTER_AREA), alpha=alpha, mask=mask)
