"""Rasterization alone, this project's by that of the Numba prototype it began with, in turn in one process, on one thread.

The prototype (nbrast.py) is not part of this repository: FOLDER is where it lies. Both draw the same projected splats;
forming the lists, the forward and the backward pass are timed. `python benchmarks/prototype_race.py FOLDER --help`.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from nfc_gs.benchmarks.loads import shells
from nfc_gs.rasterizers import cpu
from nfc_gs.training.run import use_threads

Times = tuple[float, float, float]
# Rows hold the root of the conic, scaled for powers of two; this leads back.
CONIC = np.float32(np.log(2) / 0.5)


def rivals(prototype, count: int, channels: int) -> dict[str, Callable[[], tuple[Times, np.ndarray, np.ndarray]]]:
    """Both by name: each returns seconds of lists, forward and backward pass, the picture, and its colours' gradients."""
    load = shells(count, 0)
    splats, camera = load.splats, load.camera
    width, height = camera.width, camera.height
    shapes = tuple(map(cpu._array, (splats.means, splats.quats, splats.scales)))
    opacities, pinhole = cpu._array(splats.opacities), cpu._pinhole(camera)
    projected = cpu._project(shapes, opacities, pinhole)
    rows = projected.rows.reshape(count, -1)
    p, q, r = rows[:, 2], rows[:, 3], rows[:, 4]
    drawn = projected.radii[:, 0] > 0
    conics = np.where(drawn[:, None], np.stack([p * p, p * q, q * q + r * r], 1) * CONIC, 0).astype(np.float32)
    depths = np.where(drawn, projected.depths, 0).astype(np.float32)
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(count, channels, generator=generator).numpy()
    incoming = torch.randn(height, width, channels, generator=generator).numpy()
    clear, black = np.zeros((height, width), np.float32), np.zeros(channels, np.float32)
    black_picture = np.zeros((height, width, channels), np.float32)

    def ours():
        marks = [time.perf_counter()]
        lists = cpu._lists(projected, width, height)
        marks.append(time.perf_counter())
        pixels = (len(lists.starts) - 1) * cpu.tiles.TILE**2
        drawing = cpu._Drawing(
            shapes=shapes, pinhole=pinhole, lists=lists, radii=projected.radii, means2d=torch.from_numpy(projected.means2d),
            transmittances=np.empty(pixels, np.float32), stops=np.empty(pixels, np.float32),
            depth=False, absgrad=False, weigh=False,
        )  # fmt: skip
        picture, _ = drawing.forward(values, black)
        marks.append(time.perf_counter())
        sums = drawing._sums(values, black, incoming, clear, absgrad=False, weigh=False, outgoing=None)
        marks.append(time.perf_counter())
        return tuple(np.diff(marks)), picture, sums.values

    def theirs():
        marks = [time.perf_counter()]
        rasterizer = prototype.Rast(projected.means2d, conics, opacities, depths, width, height, 1)
        marks.append(time.perf_counter())
        picture, _ = rasterizer.fwd(values, black_picture)
        marks.append(time.perf_counter())
        gradients = rasterizer.bwd(incoming, clear)
        marks.append(time.perf_counter())
        return tuple(np.diff(marks)), picture, gradients[3]

    return {"ours": ours, "the prototype": theirs}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--splats", default="50000,200000")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=40.0, help="for each number of splats")
    chosen = parser.parse_args()
    if not (chosen.folder / "nbrast.py").is_file():
        print(f"prototype_race: {chosen.folder}: holds no nbrast.py, which is the prototype", file=sys.stderr)
        sys.exit(2)
    sys.path.insert(0, str(chosen.folder))
    prototype = importlib.import_module("nbrast")
    use_threads(1)
    print(
        "| Gaussians | channels | whose | ms (lists, forward, backward) | ours by the prototype's (quartiles) | turns |"
    )
    print("|---|---|---|---|---|---|")
    for count in map(int, chosen.splats.split(",")):
        both = rivals(prototype, count, chosen.channels)
        pictures = {name: draw()[1:] for name, draw in both.items()}
        for a, b in zip(pictures["ours"], pictures["the prototype"], strict=True):
            # They end pixels at other transmittances, so they do not agree to the last bit.
            assert np.abs(a - b).max() < 2e-3 * max(np.abs(b).max(), 1), "they draw different pictures"
        taken: dict[str, list[Times]] = {name: [] for name in both}
        began = time.monotonic()
        while time.monotonic() - began < chosen.seconds:
            turn = list(both.items())
            for name, draw in turn if len(taken["ours"]) % 2 == 0 else reversed(turn):
                taken[name].append(min((draw()[0] for _ in range(3)), key=sum))
        milliseconds = {name: 1e3 * np.array(times) for name, times in taken.items()}
        low, ratio, high = np.percentile(
            milliseconds["ours"].sum(1) / milliseconds["the prototype"].sum(1), [25, 50, 75]
        )
        for name, times in milliseconds.items():
            parts = ", ".join(f"{part:.1f}" for part in np.median(times, 0))
            by = f"{ratio:.3f} ({low:.3f} to {high:.3f})" if name == "ours" else ""
            print(
                f"| {count:,} | {chosen.channels} | {name} | {np.median(times.sum(1)):.1f} ({parts}) | {by} | {len(times)} |"
            )


if __name__ == "__main__":
    main()
