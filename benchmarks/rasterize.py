"""Times the CPU rasterizer: python -m benchmarks.rasterize [--splats 50000] [--size 400] [--channels 3] [--threads 1].

A scene like those in training: 70 % of the splats are discs on three bumpy nested shells, the others fill a box; sizes
are log-normal about 0.6 of the spacing. Prints medians in milliseconds of wall time, on a quiet machine the same to 5
%.
"""

import nfc_gs  # isort: skip  # before torch, whose idle threads it tells to sleep
import argparse
import math
import time

import torch

from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Splats
from nfc_gs.rasterizers.cpu import Cpu


def shells(count: int, channels: int) -> Splats:
    """The scene; the same every time."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    on_shells = int(0.7 * count)
    directions = torch.nn.functional.normalize(normal(on_shells, 3), dim=1)
    radii = torch.tensor([0.5, 0.8, 1.1])[torch.randint(0, 3, (on_shells,), generator=generator)]
    bumps = torch.sin(5 * directions[:, 0]) * torch.cos(4 * directions[:, 1])
    radii = radii * (1 + 0.08 * bumps + 0.01 * normal(on_shells))
    in_box = torch.rand(count - on_shells, 3, generator=generator) * 2.4 - 1.2
    spacing = math.sqrt(4 * math.pi * (0.5**2 + 0.8**2 + 1.1**2) / on_shells)
    tensors = {
        "means": torch.cat([directions * radii[:, None], in_box]),
        "scales": (0.5 * normal(count, 3)).exp() * 0.6 * spacing * torch.tensor([1, 1, 0.3]),
        "quats": normal(count, 4),
        "opacities": torch.sigmoid(2 * normal(count)),
        "values": torch.rand(count, channels, generator=generator),
    }
    return Splats(**{name: tensor.requires_grad_() for name, tensor in tensors.items()})


def main() -> None:
    """Draws and differentiates, and prints how long that took."""
    parser = argparse.ArgumentParser(description=f"{__doc__.splitlines()[0]} (nfc-gs {nfc_gs.__version__})")
    for name, value in {"splats": 50_000, "size": 400, "channels": 3, "threads": 1, "repeats": 15}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    splats = shells(options.splats, options.channels)
    matrix = torch.eye(4)
    matrix[2, 3] = 3.6
    size, focal = options.size, 1.3889 * options.size
    camera = Camera(world_to_camera=matrix, focal=(focal, focal), centre=(size / 2, size / 2), width=size, height=size)
    incoming = torch.randn(size, size, options.channels, generator=torch.Generator().manual_seed(2))
    passes: dict[str, list[tuple[float, float]]] = {"forward": [], "backward": []}
    for _ in range(options.repeats + 2):
        began = time.process_time(), time.perf_counter()
        rendering = Cpu()(splats, camera, torch.zeros(options.channels))
        drawn = time.process_time(), time.perf_counter()
        rendering.channels.backward(incoming)
        ended = time.process_time(), time.perf_counter()
        passes["forward"].append((drawn[0] - began[0], drawn[1] - began[1]))
        passes["backward"].append((ended[0] - drawn[0], ended[1] - drawn[1]))
    print(f"{options.splats} splats, {size} x {size} pixels, {options.channels} channels, {options.threads} thread(s)")
    for name, times in passes.items():
        # The first two compile, or read what was compiled, and warm the caches.
        cpu, wall = (1e3 * torch.tensor(times[2:])).median(0).values.tolist()
        print(f"{name}: {cpu:.1f} ms of CPU time, {wall:.1f} ms on the wall")


if __name__ == "__main__":
    main()
