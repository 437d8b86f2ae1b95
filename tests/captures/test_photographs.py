import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from nfc_gs.captures import photographs
from nfc_gs.captures.photographs import PhotographStore, SpillError
from nfc_gs.captures.pictures import DatasetError, PictureFile
from nfc_gs.core.camera import Camera
from nfc_gs.core.scene import Photograph, View

SIDE = 8
CAMERA = Camera(world_to_camera=torch.eye(4), focal=(8.0, 8.0), centre=(4.0, 4.0), width=SIDE, height=SIDE)
# Colours, alpha and mask: what a store must expect of each photograph.
LARGEST = 5 * SIDE * SIDE
PLENTY = 10**9


def photograph(index: int) -> Photograph:
    generator = np.random.default_rng(index)
    return Photograph(
        rgb=generator.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8),
        alpha=generator.integers(0, 255, (SIDE, SIDE)).astype(np.uint8) if index % 2 else None,
        mask=generator.random((SIDE, SIDE)) < 0.5 if index % 3 else None,
    )


def same(found: Photograph, expected: Photograph) -> bool:
    pairs = zip((found.rgb, found.alpha, found.mask), (expected.rgb, expected.alpha, expected.mask), strict=True)
    return all(
        (ours is None) == (theirs is None)
        and (ours is None or (ours.dtype == theirs.dtype and np.array_equal(ours, theirs)))
        for ours, theirs in pairs
    )


class Reader:
    """Counts how often each photograph is read, from any thread."""

    def __init__(self) -> None:
        self.reads: list[int] = []
        self.lock = threading.Lock()

    def views(self, num: int) -> list[View]:
        return [View(name=str(i), camera=CAMERA, read=lambda i=i: self.read(i)) for i in range(num)]

    def read(self, index: int) -> Photograph:
        with self.lock:
            self.reads.append(index)
        return photograph(index)


def memory_of(store: PhotographStore) -> int:
    """The bytes of all photographs that a store holds on to."""
    window = [future.result() for future in store._window.values()]
    return sum(each.bytes for each in (*store._kept.values(), *window))


@pytest.mark.parametrize("memory", [0, 1000, 20 * LARGEST, PLENTY])
@pytest.mark.parametrize("disk", [0, 1000, PLENTY])
def test_photographs_are_the_same_wherever_they_lie_and_in_whatever_order(memory, disk):
    store = PhotographStore(Reader().views(40), memory, disk)
    for epoch in range(3):
        order = np.random.default_rng(epoch).permutation(40).tolist()
        for place, index in enumerate(order):
            found = store.get(index)
            store.prefetch(order[place + 1 : place + 8])
            assert same(found, photograph(index))
    store.close()
    assert memory_of(store) <= memory
    assert store.written_bytes <= disk


@pytest.mark.parametrize("memory", [0, 1000, PLENTY])
def test_with_room_on_disk_every_photograph_is_read_once(memory):
    reader = Reader()
    store = PhotographStore(reader.views(12), memory, PLENTY)
    store.prefetch(range(6))
    for _ in range(3):
        for index in range(12):
            store.get(index)
    store.close()
    assert sorted(reader.reads) == list(range(12))


def test_memory_that_holds_all_is_used_for_all():
    reader = Reader()
    store = PhotographStore(reader.views(40), 40 * LARGEST, 0)
    for index in (*range(40), *range(40)):
        store.get(index)
    store.close()
    assert sorted(reader.reads) == list(range(40))


def test_photographs_asked_for_ahead_are_not_read_again_when_wanted():
    reader = Reader()
    # None can stay, but there is room for as many as are asked for ahead.
    store = PhotographStore(reader.views(40), 8 * LARGEST, 0)
    for index in range(40):
        store.get(index)
        store.prefetch(range(index + 1, min(index + 8, 40)))
    store.close()
    assert sorted(reader.reads) == list(range(40))


def test_asking_ahead_for_more_than_there_is_room_for_reads_the_first_only():
    reader = Reader()
    store = PhotographStore(reader.views(40), 8 * LARGEST, 0)
    store.prefetch(range(40))
    store.prefetch(range(40))
    store._pool.shutdown(wait=True)
    assert sorted(reader.reads) == list(range(8))
    store.close()


def test_threads_that_ask_at_once_share_one_reading():
    reader = Reader()
    store = PhotographStore(reader.views(4), 500, PLENTY)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [store.get(i) for i in range(4)], range(8)))
    assert sorted(reader.reads) == [0, 1, 2, 3]
    store.close()


def test_stores_of_two_runs_do_not_mix():
    ours, theirs = (PhotographStore(Reader().views(n)[n - 12 :], 0, PLENTY) for n in (12, 24))
    for _ in range(2):
        for index in range(12):
            assert same(ours.get(index), photograph(index))
            assert same(theirs.get(index), photograph(12 + index))
    ours.close()
    assert same(theirs.get(3), photograph(15))
    theirs.close()


def test_many_photographs_on_disk_take_one_open_file():
    store = PhotographStore(Reader().views(300), 0, PLENTY)
    before = len(os.listdir("/dev/fd"))
    kept = [store.get(index) for index in (*range(300), *range(300))]
    assert len(os.listdir("/dev/fd")) <= before + 1
    store.close()
    assert same(kept[-1], photograph(299))


KILLED = """
import os, pathlib, signal, sys
from tests.captures.test_photographs import PLENTY, PhotographStore, Reader
store = PhotographStore(Reader().views(3), 0, PLENTY)
for index in range(3):
    store.get(index)
assert store.written_bytes > 0
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_no_file_behind(tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    ended = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True)
    assert ended.returncode == -9, ended.stderr
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("nfc-gs-")]


def test_an_error_of_reading_reaches_the_one_who_asks():
    def fail() -> Photograph:
        raise DatasetError("a.png: the picture is corrupt")

    store = PhotographStore([View(name="a", camera=CAMERA, read=fail)], 100, 0)
    store.prefetch([0])
    with pytest.raises(DatasetError, match="corrupt"):
        store.get(0)
    store.close()


def test_a_file_that_disappears_is_named_in_one_line_when_it_is_wanted_again(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (SIDE, SIDE)).save(path)
    picture = PictureFile(path=path, size=(SIDE, SIDE))
    # The second one pushes the first one out of the window.
    store = PhotographStore([View(name=name, camera=CAMERA, read=picture.read) for name in "ab"], LARGEST, 0)
    store.get(0)
    store.get(1)
    path.unlink()
    with pytest.raises(DatasetError, match=r"a\.jpg: no such picture") as raised:
        store.get(0)
    assert "\n" not in str(raised.value)
    store.close()


def test_a_disk_too_small_for_the_plan_is_told_at_the_start(monkeypatch):
    free = photographs.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(photographs.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(SpillError, match="set photographs_disk_gb=") as raised:
        PhotographStore(Reader().views(40), 0, PLENTY)
    assert "\n" not in str(raised.value)
    PhotographStore(Reader().views(40), 0, 1000).close()
    PhotographStore(Reader().views(40), PLENTY, PLENTY).close()


def test_a_disk_that_fills_up_ends_in_one_line_and_what_was_written_stays_right(monkeypatch):
    written = os.pwrite

    def half(file: int, data: memoryview, place: int) -> int:
        """The disk takes 1000 bytes, of the last piece only a part."""
        if place >= 1000:
            raise OSError(28, "No space left on device")
        return written(file, data[: 1000 - place], place)

    monkeypatch.setattr(photographs.os, "pwrite", half)
    store = PhotographStore(Reader().views(12), 0, PLENTY, workers=1)
    with pytest.raises(SpillError, match="No space left on device; lower photographs_disk_gb") as raised:
        for index in range(12):
            store.get(index)
    assert "\n" not in str(raised.value)
    # 192 + 320 + 320 bytes fit; the fourth has 256.
    assert sorted(store._records) == [0, 1, 2]
    assert all(same(store.get(index), photograph(index)) for index in range(3))
    store.close()


def test_closing_does_not_wait_for_what_has_not_begun():
    def slow() -> Photograph:
        time.sleep(0.05)
        return photograph(0)

    store = PhotographStore([View(name=str(i), camera=CAMERA, read=slow) for i in range(40)], PLENTY, 0, workers=2)
    store.prefetch(range(40))
    began = time.monotonic()
    store.close()
    assert time.monotonic() - began < 0.5  # all of them would take a second
