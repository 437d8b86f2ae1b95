"""The measurements: steps and drawings in turn, in one process, so that their ratios are of the same moment."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nfc_gs.benchmarks.loads import Load, make_trainer
from nfc_gs.benchmarks.stopwatch import Stopwatch, Watch, clock
from nfc_gs.captures.pictures import read_pixels
from nfc_gs.core.gaussians import Splats
from nfc_gs.evaluation.pictures import write_png
from nfc_gs.kernels.tiles import BLOCK, BLOCKS, TILE
from nfc_gs.rasterizers import cpu
from nfc_gs.rasterizers.base import Rasterizer
from nfc_gs.strategies.growth import Growth
from nfc_gs.training.run import use_threads
from nfc_gs.training.trainer import Trainer

# The first passes compile, or read what was compiled, and warm the caches.
WARM_UP = 3
# What of a drawing is rasterization; the rest is projection and torch's own work.
RASTERIZATION = ("sort and lists", "rasterization", "rasterization, backward")
# Names of the trainer's phases here. On the CPU, `backward` is divided further.
PHASES = {"render": "activations and assembly", "backward": "losses, backward"}
# Where the parts of a step on the CPU are found, and what comes after them in the same phase.
CPU_PARTS = (
    ("nfc_gs.core.harmonics:_Harmonics.forward", "harmonics", None),
    ("nfc_gs.core.harmonics:_Harmonics.backward", "harmonics, backward", None),
    ("nfc_gs.rasterizers.cpu:_project", "projection", None),
    ("nfc_gs.rasterizers.cpu:_lists", "sort and lists", None),
    ("nfc_gs.rasterizers.cpu:_Drawing.forward", "rasterization", None),
    ("nfc_gs.rasterizers.cpu:_Drawing._composite_backward", "rasterization, backward", None),
    (
        "nfc_gs.rasterizers.cpu:_Drawing._project_backward",
        "projection, backward",
        "codes and activations, backward",
    ),
)
GPU_PARTS = (("nfc_gs.rasterizers.gsplat:Gsplat._draw", "rasterization", None),)
CODES = ("values", "probabilities", "probability", "encode", "encode_bit", "words")
# A population changes every so many steps in training.
EDIT_EVERY = 100
# Linux forgets the highest resident size so far when 5 is written here (man 5 proc).
PEAK_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of repeated measurements, in milliseconds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of these numbers, of which there is at least one."""
        low, median, high = np.percentile(values, [25, 50, 75]).tolist()
        return cls(median, low, high)


@dataclass(frozen=True)
class Peak:
    """The most memory that was in use at one time, in MB; None where it cannot be known, with the reason."""

    megabytes: float | None
    reason: str = ""


@dataclass(frozen=True)
class Drawing:
    """One picture of `channels` channels and its gradients: `parts` by name, `rasterization` the sum of three of them.

    `pairs` counts the (pixel, splat) pairs that were looked at, None where the rasterizer does not tell.
    """

    channels: int
    parts: dict[str, Spread]
    rasterization: Spread
    pairs: int | None
    peak: Peak


@dataclass(frozen=True)
class Cell:
    """One size of the problem. `ratio` is that of a step to the rasterization of three channels after it.

    `edit` is a change of the population, of which there is one in EDIT_EVERY steps, and `decode` the reading of one
    photograph, which happens once and in the background; neither is part of `step`.
    """

    splats: int
    width: int
    height: int
    threads: int
    step: Spread
    parts: dict[str, Spread]
    ratio: Spread
    peak: Peak
    persistent_bytes: float
    edit: float
    decode: float
    drawings: tuple[Drawing, ...]


def measure(
    load: Load, method: str, rasterizer: Rasterizer, threads: int, channels: Sequence[int], repeats: int, seed: int
) -> Cell:
    """Times steps and drawings of the load, in turn."""
    use_threads(threads)
    device = rasterizer.device
    stopwatch = Stopwatch(clock(threads, device))
    trainer = make_trainer(load, method, rasterizer, seed)
    drawings = {count: _drawing(trainer, count, seed) for count in dict.fromkeys((3, *channels))}
    steps: list[dict[str, float]] = []
    drawn: dict[int, list[dict[str, float]]] = {count: [] for count in drawings}

    def timed(work: Callable[[], object]) -> dict[str, float]:
        stopwatch.reset()
        with stopwatch.part("rest"):
            work()
        return stopwatch.milliseconds

    with _watched(trainer, stopwatch):
        for number in range(WARM_UP + repeats):
            step = timed(trainer.step)
            passes = {count: timed(draw) for count, draw in drawings.items()}
            if number >= WARM_UP:
                steps.append(step)
                for count, parts in passes.items():
                    drawn[count].append(parts)
    alone = {count: [_rasterization(parts, device) for parts in passes] for count, passes in drawn.items()}
    totals = [sum(step.values()) for step in steps]
    cell = Cell(
        splats=len(load),
        width=load.camera.width,
        height=load.camera.height,
        threads=threads,
        step=Spread.of(totals),
        parts=_spreads(steps),
        ratio=Spread.of([total / drawing for total, drawing in zip(totals, alone[3], strict=True)]),
        peak=peak(trainer.step, device),
        persistent_bytes=_persistent_bytes(trainer),
        edit=_edit(trainer),
        decode=_decode(trainer),
        drawings=tuple(
            Drawing(
                channels=count,
                parts=_spreads(drawn[count]),
                rasterization=Spread.of(alone[count]),
                pairs=_pairs(draw) if isinstance(rasterizer, cpu.Cpu) else None,
                peak=peak(draw, device),
            )
            for count, draw in drawings.items()
            if count in channels
        ),
    )
    trainer.photographs.close()
    trainer.held_out.close()
    return cell


def _spreads(passes: Sequence[dict[str, float]]) -> dict[str, Spread]:
    names = dict.fromkeys(name for parts in passes for name in parts)
    return {name: Spread.of([parts.get(name, 0.0) for parts in passes]) for name in names}


def _rasterization(parts: dict[str, float], device: str) -> float:
    """gsplat projects and draws in one call, so there a drawing is all of it."""
    return sum(parts.values()) if device == "cuda" else sum(parts[name] for name in RASTERIZATION)


@contextmanager
def _watched(trainer: Trainer, stopwatch: Stopwatch) -> Iterator[None]:
    """Divides the steps of a trainer, and the drawings between them, into parts."""
    on_cpu = trainer.model.rasterizer.device == "cpu"
    phases: Mapping[str, str] = PHASES if on_cpu else {"render": PHASES["render"]}
    with Watch(stopwatch) as watch:

        def phase(name: str) -> AbstractContextManager[None]:
            return stopwatch.part(phases.get(name, name))

        watch.replace(trainer, "_phase", phase)
        for kind in {type(trainer.model.code), type(trainer.model.opacity_code)}:
            for name in CODES:
                watch.attribute(kind, name, "codes")
        for place, part, then in CPU_PARTS if on_cpu else GPU_PARTS:
            watch.function(place, part, then)
        yield


def _drawing(trainer: Trainer, channels: int, seed: int) -> Callable[[], Tensor]:
    """Draws the trainer's splats as they are now with so many random channels, and differentiates."""
    camera, rasterizer = trainer.scene.train[0].camera.to(trainer.model.rasterizer.device), trainer.model.rasterizer
    generator = torch.Generator().manual_seed(seed + 2)
    with torch.no_grad():
        splats = trainer.model.render(camera).splats
    tensors = {name: getattr(splats, name).detach() for name in ("means", "scales", "quats", "opacities")}
    tensors["values"] = torch.rand(len(splats), channels, generator=generator).to(camera.world_to_camera.device)
    incoming = torch.randn(camera.height, camera.width, channels, generator=generator).to(tensors["values"])
    background = torch.zeros(channels).to(incoming)

    def draw() -> Tensor:
        leaves = Splats(**{name: tensor.detach().requires_grad_() for name, tensor in tensors.items()})
        rendering = rasterizer(leaves, camera, background)
        rendering.channels.backward(incoming)
        return rendering.channels.detach()

    return draw


def _pairs(draw: Callable[[], object]) -> int:
    """The (pixel, splat) pairs that a drawing on the CPU looks at, forwards: up to where the pixel is full."""
    pairs = []
    with Watch(Stopwatch(time.perf_counter)) as watch:
        forward = cpu._Drawing.forward

        def counting(drawing: cpu._Drawing, *arguments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            result = forward(drawing, *arguments)
            pairs.append(_looked_at(drawing.stops, drawing.lists.width, drawing.lists.height))
            return result

        watch.replace(cpu._Drawing, "forward", counting)
        draw()
    return pairs[0]


def _looked_at(stops: np.ndarray, width: int, height: int) -> int:
    """The sum over the pixels in the picture; they are stored tile by tile, block by block."""
    across, down, side = -(-width // TILE), -(-height // TILE), TILE // BLOCK
    assert stops.size == across * down * BLOCKS * BLOCK**2
    pixels = stops.reshape(down, across, side, side, BLOCK, BLOCK).transpose(0, 2, 4, 1, 3, 5)
    return int(pixels.reshape(down * TILE, across * TILE)[:height, :width].sum(dtype=np.float64))


def peak(work: Callable[[], object], device: str) -> Peak:
    """The whole process's peak while the work is done once, or the GPU memory's."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        return Peak(torch.cuda.max_memory_allocated() / 1e6)
    try:
        PEAK_RESET.write_text("5")
    except OSError as error:
        return Peak(None, f"{PEAK_RESET} cannot be written: {error.strerror}")
    work()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return Peak(int(status["VmHWM"].split()[0]) * 1024 / 1e6)


def _persistent_bytes(trainer: Trainer) -> float:
    """Parameters and moments, a Gaussian."""
    gaussians = [value for _, value in trainer.model.gaussians.items()]
    moments = [value for name, value in trainer.optimizer.tensors().items() if not name.endswith(".step")]
    tensors = itertools.chain(gaussians, moments)
    return sum(value.numel() * value.element_size() for value in tensors) / max(len(trainer.model.gaussians), 1)


def _edit(trainer: Trainer) -> float:
    """Milliseconds on the wall that a change of the population takes, once: a tenth more, and the dead moved."""
    model, count = trainer.model, len(trainer.model.gaussians)
    growth = Growth(cap_max=count + count // 10 + 1, every=EDIT_EVERY, grow_until=0.01)
    began = time.perf_counter()
    edit = growth.edit(trainer.statistics, model.population(), EDIT_EVERY, EDIT_EVERY * 100, trainer.generator)
    if edit is not None:
        model.gaussians = trainer.optimizer.apply(edit)
        trainer.statistics = growth.settle(trainer.statistics, edit)
    return 1e3 * (time.perf_counter() - began)


def _decode(trainer: Trainer) -> float:
    """Milliseconds on the wall that one PNG of the picture's size takes to be read; what it shows is the scene."""
    camera = trainer.scene.train[0].camera
    with torch.no_grad():
        picture = trainer.model.render(camera).rgb.clamp(0, 1).cpu()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        write_png((255 * picture).byte().numpy(), path)
        read_pixels(path)  # the first time imports the reader
        began = time.perf_counter()
        read_pixels(path)
        return 1e3 * (time.perf_counter() - began)
