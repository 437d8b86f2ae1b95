"""Ctrl-C, and a request to terminate, without leaving anything half done."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def listening() -> Iterator[list[int]]:
    """A block in which Ctrl-C and SIGTERM are only noted, in the list it yields. A second one comes at once.

    Signals reach the main thread only, so in another one there is nothing to note.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def hold(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        # Not print: a handler may run in the middle of another print. And if nobody listens, it does not matter.
        with suppress(OSError):
            os.write(2, b"nfc-gs: stopping after this step (again: at once)\n")

    before = {number: signal.signal(number, hold) for number in STOPPING}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def held_back() -> Iterator[None]:
    """A block that Ctrl-C and SIGTERM do not break off: KeyboardInterrupt comes at its end. A second one comes at once.

    A step of training that is broken off leaves some parameters updated and others not, so the run could not go on as
    if nothing had happened.
    """
    with listening() as asked:
        yield
    if asked:
        raise KeyboardInterrupt
