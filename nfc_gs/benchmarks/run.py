"""All cells of a benchmark, one after the other."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nfc_gs.benchmarks import report
from nfc_gs.benchmarks.cells import Cell, measure
from nfc_gs.benchmarks.loads import Load, read, shells
from nfc_gs.config import UserError
from nfc_gs.kernels.threads import thread_count
from nfc_gs.rasterizers.auto import choose
from nfc_gs.rasterizers.base import Rasterizer
from nfc_gs.rasterizers.cpu import Cpu
from nfc_gs.rasterizers.gsplat import Gsplat
from nfc_gs.training.run import use_threads

DEFAULT_SPLATS = (5_000, 50_000, 200_000)
DEFAULT_SIZES = ((100, 100), (200, 200), (400, 400), (800, 800))


class BenchmarkError(UserError):
    """What is asked for cannot be measured."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure: every combination of splats, sizes (width, height) and threads.

    None for `splats` or `sizes` means the defaults, or with a scene what its file holds.
    """

    splats: tuple[int, ...] | None
    sizes: tuple[tuple[int, int], ...] | None
    channels: tuple[int, ...]
    threads: tuple[int, ...]
    method: str
    rasterizer: Literal["auto", "cpu", "gsplat"]
    scene: Path | None
    repeats: int
    seed: int


def run(plan: Plan, json: Path | None) -> None:
    """Measures, prints tables, and writes them to `json`.

    Raises:
        UserError: a scene that cannot be read, fewer splats in it than asked for, no such rasterizer here.
    """
    if json is not None and not json.parent.is_dir():
        raise BenchmarkError(f"{json}: there is no folder {json.parent}")
    before = thread_count()
    rasterizer = _rasterizer(plan.rasterizer)
    scene = None if plan.scene is None else read(plan.scene, plan.seed)
    loads = _loads(plan, scene)
    # A GPU does not ask how many threads the CPU has.
    threads = plan.threads if rasterizer.device == "cpu" else plan.threads[-1:]
    cells: list[Cell] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(loads) * len(threads))
        for load in loads:
            for count in threads:
                size = f"{load.camera.width}x{load.camera.height}"
                progress.update(task, description=f"{len(load):,} splats, {size}, {count} thread(s)")
                cells.append(measure(load, plan.method, rasterizer, count, plan.channels, plan.repeats, plan.seed))
                progress.advance(task)
    use_threads(before)
    settings = _settings(plan, loads[0].name, rasterizer)
    report.show(cells, _title(settings))
    if json is not None:
        report.write_json(cells, settings, json)
        print(f"written to {json}")


def _rasterizer(name: str) -> Rasterizer:
    if name == "auto":
        return choose().rasterizer
    if name == "cpu":
        return Cpu()
    gsplat = Gsplat()
    _ = gsplat.device  # says in one line if there is none
    return gsplat


def _loads(plan: Plan, scene: Load | None) -> list[Load]:
    """Every number of splats in every size."""
    if scene is None:
        scenes = [shells(count, plan.seed) for count in plan.splats or DEFAULT_SPLATS]
        return [load.seen(*size) for load in scenes for size in plan.sizes or DEFAULT_SIZES]
    for count in plan.splats or ():
        if count > len(scene):
            raise BenchmarkError(f"{plan.scene}: holds {len(scene):,} splats, fewer than the {count:,} asked for")
    scenes = [scene.part(count, plan.seed) for count in plan.splats or (len(scene),)]
    return [load.seen(*size) for load in scenes for size in plan.sizes or ((load.camera.width, load.camera.height),)]


def _settings(plan: Plan, scene: str, rasterizer: Rasterizer) -> dict[str, Any]:
    on_gpu = rasterizer.device == "cuda"
    return {
        "scene": scene,
        "method": plan.method,
        "rasterizer": "gsplat" if on_gpu else "cpu",
        "channels": plan.channels,
        "repeats": plan.repeats,
        "seed": plan.seed,
        "clock": "wall, synchronized" if on_gpu else "CPU time for one thread, wall for more",
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def _title(settings: dict[str, Any]) -> str:
    where = report.surroundings()
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    commit = where["commit"] or f"unknown ({where['commit_reason']})"
    if where["commit"] and where["commit_reason"]:
        commit += f" {where['commit_reason']}"
    lines = [
        f"{settings['scene']}, {settings['method']}, rasterizer {settings['rasterizer']}, seed {settings['seed']}, "
        f"medians of {settings['repeats']}; {settings['clock']}",
        f"{where['machine']['processor']}, {where['machine']['cores']} cores; {versions}",
        f"commit {commit}",
    ]
    if settings["rasterizer"] == "gsplat":
        lines.append(f"on {where['machine']['gpu']}: a backward pass is not divided into parts")
    return "\n".join(lines)
