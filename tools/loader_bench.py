"""How fast photographs come from the loader, whether a step waits for them, and what memory they take.

Generates a few pictures, gives each many names (hard links, so that the disk holds few bytes), and asks the loader for them
as a training does: in another order every epoch, the next ones ahead. `python tools/loader_bench.py --help`.
"""

import argparse
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch
from PIL import Image

from nfc_gs.captures.photographs import PhotographStore
from nfc_gs.captures.pictures import PictureFile, downscaled
from nfc_gs.config import UserError
from nfc_gs.core.camera import Camera
from nfc_gs.core.scene import View
from nfc_gs.training.trainer import PREFETCH

# A wait below this is the cost of asking.
STALL_SECONDS = 1e-3
DISTINCT = 8


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of the loader; sizes in pixels."""

    pictures: int
    size: tuple[int, int]
    downscale: int
    memory_gb: float
    disk_gb: float
    workers: int
    looks: int
    step_ms: float


def photographs(folder: Path, load: Load) -> list[View]:
    """Views of generated JPEGs of smooth shapes with sensor noise, about as many bits a pixel as a camera's."""
    folder.mkdir(parents=True, exist_ok=True)
    width, height = load.size
    for i in range(min(DISTINCT, load.pictures)):
        generator = np.random.default_rng(i)
        coarse = generator.random((height // 16 + 1, width // 16 + 1, 3), dtype=np.float32)
        smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * 255
        noisy = smooth + generator.normal(0, 4, smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=92)
    size = downscaled(width, height, load.downscale)
    camera = Camera(
        world_to_camera=torch.eye(4),
        focal=(float(size[0]), float(size[0])),
        centre=(size[0] / 2, size[1] / 2),
        width=size[0],
        height=size[1],
    )
    views = []
    for i in range(load.pictures):
        path = folder / f"{i:05d}.jpg"
        if not path.exists():
            path.hardlink_to(folder / f"{i % DISTINCT:05d}.jpg")
        views.append(View(name=path.name, camera=camera, read=PictureFile(path=path, size=size).read))
    return views


class Peak:
    """The largest resident memory since `begin`, looked at fifty times a second."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Ends the watching; the bytes."""
        self._stopped.set()
        self._thread.join()
        return self.bytes

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stopped.wait(0.02):
            self.bytes = max(self.bytes, process.memory_info().rss)


def measured(views: list[View], load: Load) -> Iterator[str]:
    """Rows of a table: one for each pass of `looks` looks; the first one finds nothing decoded."""
    store = PhotographStore(views, int(load.memory_gb * 1e9), int(load.disk_gb * 1e9), load.workers)
    order: list[int] = []
    while len(order) < 4 * load.looks + PREFETCH:
        order += np.random.default_rng([0, len(order)]).permutation(len(views)).tolist()
    look = 0
    for name, step_ms in (("first", 0.0), ("second", 0.0), ("third", 0.0), ("with steps", load.step_ms)):
        peak = Peak()
        waits, began, busy = [], time.perf_counter(), time.process_time()
        for _ in range(load.looks):
            asked = time.perf_counter()
            photograph = store.get(order[look])
            waits.append(time.perf_counter() - asked)
            store.prefetch(order[look + 1 : look + PREFETCH])
            look += 1
            # A step reads every pixel once, and then leaves the processor alone, as one on a GPU does.
            assert photograph.rgb.max() > 0
            if step_ms:
                time.sleep(step_ms / 1e3)
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
        stalled = np.array(waits) > STALL_SECONDS
        yield (
            f"| {name} | {load.looks / seconds:.0f} | {1e3 * busy / load.looks:.1f} | {1e3 * np.median(waits):.2f} | "
            f"{1e3 * np.quantile(waits, 0.99):.1f} | "
            f"{1e3 * max(waits):.1f} | {stalled.mean():.1%} | {store.held_bytes / 1e9:.2f} | {store.written_bytes / 1e9:.2f} | "
            f"{peak.stop() / 1e9:.2f} |"
        )
    store.close()


def main() -> int:
    """Runs what was asked for and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--size", type=_size, default=(800, 600), metavar="WxH", help="(default: 800x600)")
    parser.add_argument("--downscale", type=int, default=1)
    parser.add_argument("--memory-gb", type=float, default=4.0, help="photographs_gb (default: 4)")
    parser.add_argument("--disk-gb", type=float, default=64.0, help="photographs_disk_gb (default: 64)")
    parser.add_argument("--workers", type=int, default=0, help="threads that decode (default: by the number of cores)")
    parser.add_argument("--looks", type=int, default=1000, help="photographs a pass (default: 1000)")
    parser.add_argument("--step-ms", type=float, default=50.0, help="of the pass with steps (default: 50)")
    parser.add_argument("--folder", type=Path, help="for the pictures (default: a temporary one)")
    chosen = parser.parse_args()
    cv2.setNumThreads(1)
    load = Load(**{name: getattr(chosen, name) for name in Load.__dataclass_fields__})
    folder = Path(tempfile.mkdtemp(prefix="nfc-gs-", dir=chosen.folder))
    try:
        views = photographs(folder, load)
        before = psutil.Process().memory_info().rss
        print(f"{load}\n{before / 1e9:.2f} GB resident before any photograph\n")
        print(
            "| pass | pictures/s | CPU ms a picture | wait, median ms | 99 % ms | longest ms | waits > 1 ms "
            "| kept GB | on disk GB | resident GB |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
        for row in measured(views, load):
            print(row, flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder)
    unit = 1 if sys.platform == "darwin" else 1024
    print(f"\n{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB at the most, all in all")
    return 0


def _size(text: str) -> tuple[int, int]:
    width, height = text.split("x")
    return int(width), int(height)


if __name__ == "__main__":
    raise SystemExit(main())
