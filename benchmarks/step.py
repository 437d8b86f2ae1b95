"""Times a whole training step against its rasterization: python -m benchmarks.step [--splats 50000] [--size 400] [--threads 1].

The step is the trainer's own: photograph, codes, harmonics of degree 3, projection, rasterization, L1 + D-SSIM, backward,
Adam over 59 numbers a Gaussian. Rasterization is sorting, tile lists, compositing and its backward pass, of the same
splats. The two alternate in one process; medians of CPU time (wall time for more than one thread) and their ratio.
"""

import nfc_gs  # isort: skip  # before torch, whose idle threads it tells to sleep
import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.rasterize import shells
from nfc_gs.config import load
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Gaussians
from nfc_gs.core.scene import Photograph, Scene, View
from nfc_gs.deformations.static import Static
from nfc_gs.model import SplatModel
from nfc_gs.rasterizers.cpu import Cpu, _array, _Drawing, _lists, _pinhole, _Project
from nfc_gs.training.experiment import Experiment
from nfc_gs.training.trainer import Trainer

CONFIGS = Path(__file__).parent.parent / "configs"


def make_trainer(count: int, size: int, method: str) -> Trainer:
    """A trainer on one random photograph of the shells."""
    splats = shells(count, 3)
    overrides = ["strategy.kind=fixed", "rasterizer.kind=cpu", "schedule.sh_degree=3", "schedule.sh_every=1"]
    experiment = load(Experiment, [CONFIGS / "toy.yaml", CONFIGS / "methods" / f"{method}.yaml"], overrides)
    focal = 1.3889 * size
    matrix = torch.eye(4)
    matrix[2, 3] = 3.6
    camera = Camera(world_to_camera=matrix, focal=(focal, focal), centre=(size / 2, size / 2), width=size, height=size)
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    view = View(name="random", camera=camera, read=lambda: Photograph(rgb=pixels))
    scene = Scene(train=(view,), test=(view,), points=None, extent=1.0)
    with torch.no_grad():
        gaussians = Gaussians(
            means=splats.means.clone(),
            log_scales=splats.scales.log(),
            quats=splats.quats.clone(),
            colour_logits=experiment.code.logits(splats.values.clamp(0.01, 0.99), unit=False),
            opacity_logits=experiment.opacity_code.logits(splats.opacities.clamp(0.01, 0.99), unit=True),
            harmonics=0.05 * torch.randn(count, 15, 3, generator=torch.Generator().manual_seed(3)),
            motion=torch.zeros(count, 0),
        )
    model = SplatModel(
        gaussians=gaussians,
        code=experiment.code,
        opacity_code=experiment.opacity_code,
        rasterizer=Cpu(),
        field=Static().init(torch.zeros(2, 3), 1, torch.Generator()),
        degree=3,
    )
    trainer = Trainer(experiment, scene, model)
    trainer.done = 3  # past the harmonics' schedule
    return trainer


def rasterization(trainer: Trainer) -> Callable[[], None]:
    """Sort, lists, forward and backward of the trainer's splats, without projection and autograd."""
    camera = trainer.scene.train[0].camera
    with torch.no_grad():
        splats = trainer.model.render(camera).splats
        projected = _Project.apply(splats.means, splats.quats, splats.scales, splats.opacities, _pinhole(camera))
    means2d, covariances, roots, depths, radii = projected
    values = _array(splats.values)
    background = np.zeros(3, np.float32)
    incoming = np.random.default_rng(1).standard_normal((camera.height, camera.width, 3)).astype(np.float32)
    no_alpha = np.zeros((camera.height, camera.width), np.float32)

    def once() -> None:
        lists = _lists(means2d, covariances, roots, splats.opacities, depths, radii, camera, torch.get_num_threads())
        pixels = (len(lists.starts) - 1) * 256
        drawing = _Drawing(lists, radii.numpy(), np.empty(pixels, np.float32), np.empty(pixels, np.float32))
        drawing.forward(values, background)
        drawing.backward(values, background, incoming, no_alpha, False)

    return once


def main() -> None:
    """Alternates the two and prints medians."""
    parser = argparse.ArgumentParser(description=f"{__doc__.splitlines()[0]} (nfc-gs {nfc_gs.__version__})")
    for name, value in {"splats": 50_000, "size": 400, "threads": 1, "repeats": 21}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--method", choices=("regression", "nfc"), default="regression")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    trainer = make_trainer(options.splats, options.size, options.method)
    draw = rasterization(trainer)
    steps, drawings, phases = [], [], []
    for _ in range(options.repeats + 3):
        began = clock()
        report = trainer.step()
        stepped = clock()
        draw()
        steps.append(1e3 * (stepped - began))
        drawings.append(1e3 * (clock() - stepped))
        phases.append(report.milliseconds)
    # The first three compile, or read what was compiled, and warm the caches.
    step, drawing = np.median(steps[3:]), np.median(drawings[3:])
    ratio = np.median(np.array(steps[3:]) / np.array(drawings[3:]))
    print(f"{options.splats} splats, {options.size} x {options.size}, {options.threads} thread(s), {options.method}")
    print(f"whole step {step:.1f} ms, rasterization alone {drawing:.1f} ms, ratio {ratio:.2f}")
    for name in phases[-1]:
        print(f"  {name}: {np.median([phase[name] for phase in phases[3:]]):.1f} ms on the wall")


if __name__ == "__main__":
    main()
