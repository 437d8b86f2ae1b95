import threading

import numpy as np
import pytest
import torch

from nfc_gs.captures.photographs import PhotographStore
from nfc_gs.captures.pictures import DatasetError
from nfc_gs.core.camera import Camera
from nfc_gs.core.scene import Photograph, View

CAMERA = Camera(world_to_camera=torch.eye(4), focal=(8.0, 8.0), centre=(4.0, 4.0), width=8, height=8)


def photograph(index: int) -> Photograph:
    generator = np.random.default_rng(index)
    return Photograph(
        rgb=generator.integers(0, 255, (8, 8, 3)).astype(np.uint8),
        alpha=generator.integers(0, 255, (8, 8)).astype(np.uint8) if index % 2 else None,
        mask=generator.random((8, 8)) < 0.5 if index % 3 else None,
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


@pytest.mark.parametrize("budget", [0, 1000, 10**9])
def test_every_photograph_is_read_once_and_comes_back_the_same(budget):
    reader = Reader()
    store = PhotographStore(reader.views(12), budget)
    store.prefetch(range(6))
    for _ in range(3):
        for index in range(12):
            found, expected = store.get(index), photograph(index)
            for ours, theirs in zip(
                (found.rgb, found.alpha, found.mask), (expected.rgb, expected.alpha, expected.mask), strict=True
            ):
                assert (ours is None) == (theirs is None)
                assert ours is None or (ours.dtype == theirs.dtype and np.array_equal(ours, theirs))
    assert sorted(reader.reads) == list(range(12))
    assert store.held_bytes <= budget
    store.close()


def test_threads_that_ask_at_once_share_one_reading():
    reader = Reader()
    store = PhotographStore(reader.views(4), 500)
    threads = [threading.Thread(target=lambda: [store.get(i) for i in range(4)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reader.reads) == [0, 1, 2, 3]
    store.close()


def test_what_does_not_fit_lies_in_a_file_that_goes_away(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = PhotographStore(Reader().views(3), 0)
    kept = store.get(2)
    assert isinstance(kept.rgb, np.memmap)
    assert len(list(tmp_path.iterdir())) == 1
    store.close()
    assert not list(tmp_path.iterdir())
    assert np.array_equal(kept.rgb, photograph(2).rgb)


def test_an_error_of_reading_reaches_the_one_who_asks():
    def fail() -> Photograph:
        raise DatasetError("a.png: the picture is corrupt")

    store = PhotographStore([View(name="a", camera=CAMERA, read=fail)], 100)
    store.prefetch([0])
    with pytest.raises(DatasetError, match="corrupt"):
        store.get(0)
    store.close()
