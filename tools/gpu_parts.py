"""The parts of tools/gpu_check.py, each run by it in a process of its own; --result names the JSON file for what it found.

    python tools/gpu_parts.py --result found.json bench regression 100000 1297x840

With --device cpu, gsplat's place is taken by this project's own rasterizer: that tries the kit, not a GPU.
"""

import argparse
import importlib.util
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

REPOSITORY = Path(__file__).resolve().parent.parent
SEED = 0
# Distribution: module. Without these nothing runs; they and what they are made of, as nothing here asks an index.
REQUIRED = {
    "numpy": "numpy",
    "numba": "numba",
    "llvmlite": "llvmlite",
    "scipy": "scipy",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pydantic": "pydantic",
    "pydantic-core": "pydantic_core",
    "annotated-types": "annotated_types",
    "typing-inspection": "typing_inspection",
    "PyYAML": "yaml",
    "jaxtyping": "jaxtyping",
    "wadler-lindig": "wadler_lindig",
    "safetensors": "safetensors",
    "plyfile": "plyfile",
    "psutil": "psutil",
    "rich": "rich",
    "markdown-it-py": "markdown_it",
    "mdurl": "mdurl",
    "Pygments": "pygments",
}
REQUIRED_FOR_CUDA = {"gsplat": "gsplat", "packaging": "packaging", "setuptools": "setuptools"}
# Without these, one part is left out.
OPTIONAL = {
    "tests": {
        "pytest": "pytest",
        "pluggy": "pluggy",
        "iniconfig": "iniconfig",
        "hypothesis": "hypothesis",
        "sortedcontainers": "sortedcontainers",
    },
    "train": {"tensorboard": "tensorboard"},
    "bench ssim": {"fused-ssim": "fused_ssim"},
}
# Large, imported by modules that are used here, and never called by what is checked: stood in for where they are missing.
UNUSED = {"pycolmap": "pycolmap", "av": "av"}
# A picture agrees if 99.9 % of its pixels differ by less than this in every channel: the others may have one faint splat
# (alpha 1/255) more or less. A gradient agrees within this share of its length. Chosen before any GPU was seen.
QUANTILE, PICTURE, GRADIENT = 0.999, 1e-3, 1e-2
INPUTS = ("means", "scales", "quats", "opacities", "values")
# Steps before a measurement: the first ones compile, and fill caches and the allocator.
WARM_UP = 5
NEVER = 10**9
# Where in a training nfc's own loss is over.
LATE = 0.8
VIEWS = 4
# Steps of the minimal loop between two times that it is kept.
KEEP_EVERY = 2000


def probe(device: str) -> dict[str, Any]:
    """What this machine has; imports nothing of the project."""
    import torch

    missing = {
        name: module
        for name, module in (REQUIRED | (REQUIRED_FOR_CUDA if device == "cuda" else {})).items()
        if importlib.util.find_spec(module) is None
    }
    if device == "cuda" and shutil.which("ninja") is None and not _compiled_before():
        missing["ninja"] = "ninja"
    has_device = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cuda": has_device,
        "driver": _driver(),
        "gpu": torch.cuda.get_device_name() if has_device else None,
        "gpu_gb": torch.cuda.get_device_properties(0).total_memory / 1e9 if has_device else None,
        "architecture": "{}.{}".format(*torch.cuda.get_device_capability()) if has_device else None,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "missing": sorted(missing),
        "missing_optional": {
            part: sorted(name for name, module in names.items() if importlib.util.find_spec(module) is None)
            for part, names in OPTIONAL.items()
        },
        "missing_unused": sorted(name for name, module in UNUSED.items() if importlib.util.find_spec(module) is None),
    }


def _compiled_before() -> bool:
    """Whether the installed gsplat has its kernels with it."""
    package = importlib.util.find_spec("gsplat")
    return package is not None and any(Path(str(package.origin)).parent.glob("csrc*.so"))


def _driver() -> str | None:
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return said.strip().splitlines()[0] if said.strip() else None


def build() -> dict[str, Any]:
    """Compiles gsplat's kernels, or goes on where the last call was broken off, and draws one splat."""
    from nfc_gs.rasterizers.auto import choose
    from nfc_gs.rasterizers.gsplat import Gsplat, compile_jobs, compile_kernels, find_compiler

    began = time.perf_counter()
    file = compile_kernels()
    seconds = time.perf_counter() - began
    choice = choose()
    compiler = find_compiler()
    return {
        "ok": isinstance(choice.rasterizer, Gsplat),
        "reason": choice.reason,
        "seconds": seconds,
        "jobs": compile_jobs(),
        "architectures": os.environ.get("TORCH_CUDA_ARCH_LIST"),
        "nvcc": compiler.version if compiler else None,
        "megabytes": file.stat().st_size / 1e6,
    }


def tests(device: str, folder: Path) -> dict[str, Any]:
    """The GPU's tests; of the dry run, one of the same tests on the CPU."""
    import pytest

    paths = [str(path) for path in (REPOSITORY / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text()]
    chosen = ["-m", "gpu"] if device == "cuda" else ["-k", "round_splat and cpu"]
    report = folder / "tests.xml"
    quietly = ["-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    status = pytest.main([*sorted(paths), *chosen, f"--rootdir={REPOSITORY}", f"--junitxml={report}", *quietly])
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {"ok": status == 0 and passed > 0, "passed": passed, "skipped": counts["skipped"], "failed": failed}


def compare(device: str) -> dict[str, Any]:
    """Pictures and gradients: of a small scene against float64, of a large one the GPU's against the CPU's."""
    import torch

    from nfc_gs.benchmarks.loads import shells
    from nfc_gs.rasterizers.cpu import Cpu
    from nfc_gs.rasterizers.reference import Reference

    small, large = shells(400, SEED).seen(48, 32), shells(100_000, SEED).seen(648, 420)
    found = []
    for channels in (3, 24):
        right = _draw(Reference(), small, channels, torch.float64)
        found.append(_judge("cpu", "reference", small, channels, _draw(Cpu(), small, channels), right))
        if device == "cuda":
            ours = _rasterizer(device)
            found.append(_judge("gsplat", "reference", small, channels, _draw(ours, small, channels), right))
            found.append(
                _judge("gsplat", "cpu", large, channels, _draw(ours, large, channels), _draw(Cpu(), large, channels))
            )
    limits = {"quantile": QUANTILE, "picture": PICTURE, "gradient": GRADIENT}
    return {"ok": all(pair["agrees"] for pair in found), "limits": limits, "pairs": found}


def _rasterizer(device: str, **settings: bool) -> Any:
    from nfc_gs.rasterizers.cpu import Cpu
    from nfc_gs.rasterizers.gsplat import Gsplat

    return Gsplat(**settings) if device == "cuda" else Cpu()


def _draw(rasterizer: Any, load: Any, channels: int, dtype: Any = None) -> dict[str, Any]:
    """The picture, its alpha, and the gradients of a fixed random sum of both, in float64 on the CPU."""
    import torch

    from nfc_gs.core.gaussians import Splats

    device = "cpu" if dtype is torch.float64 else rasterizer.device
    kind = {"device": device, "dtype": dtype or torch.float32}
    generator = torch.Generator().manual_seed(SEED + 1)
    tensors = {name: getattr(load.splats, name) for name in INPUTS}
    tensors["values"] = torch.rand(len(load), channels, generator=generator)
    leaves = {name: value.detach().to(**kind).requires_grad_() for name, value in tensors.items()}
    weights = torch.randn(load.camera.height, load.camera.width, channels + 1, generator=generator).to(**kind)
    background = torch.rand(channels, generator=generator).to(**kind)
    rendering = rasterizer(Splats(**leaves), load.camera.to(device), background)
    picture = torch.cat([rendering.channels, rendering.alpha[..., None]], -1)
    (picture * weights).sum().backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items()} | {"means2d": rendering.means2d.grad}
    return {
        "picture": picture.detach().double().cpu(),
        "gradients": {name: value.double().cpu() for name, value in gradients.items()},
    }


def _judge(
    name: str, judge: str, load: Any, channels: int, found: dict[str, Any], right: dict[str, Any]
) -> dict[str, Any]:
    error = (found["picture"] - right["picture"]).abs().amax(-1).flatten()
    most = error.sort().values[math.ceil(QUANTILE * len(error)) - 1].item()
    gradients = {
        key: ((found["gradients"][key] - value).norm() / value.norm()).item()
        for key, value in right["gradients"].items()
    }
    return {
        "of": name,
        "against": judge,
        "splats": len(load),
        "size": f"{load.camera.width}x{load.camera.height}",
        "channels": channels,
        "picture_max": error.max().item(),
        "picture_quantile": most,
        "gradients": gradients,
        # Comparisons with NaN are false.
        "agrees": most < PICTURE and all(value < GRADIENT for value in gradients.values()),
    }


def bench(kind: str, splats: int, size: str, device: str, repeats: int, block: int) -> dict[str, Any]:
    """A step, in turn with what it is to be measured against: regression with the minimal loop, NFC with regression, while its
    own loss acts (`nfc`) and when that is over (`nfc_off`); packed with unpacked; a batch in one pass with its views in turn.

    Of `channels24`, drawing 24 channels and their gradients, in turn with three; of `ssim`, fused_ssim's loss and gradient in
    turn with ours, without any splats.
    """
    import torch

    from nfc_gs.benchmarks.loads import METHODS, STEPS, make_trainer, shells
    from nfc_gs.benchmarks.minimal import MinimalLoop, Shot, paired, params_of_load
    from nfc_gs.benchmarks.stopwatch import clock

    width, height = (int(part) for part in size.split("x"))
    load = shells(splats, SEED).seen(width, height)
    rasterizer = _rasterizer(device)

    def trainer(method: str, done: float = 0, batch: int = 1, **drawing: bool) -> Callable[[], object]:
        made = make_trainer(load, method, _rasterizer(device, **drawing), SEED, {"batch": batch})
        made.done += int(done * STEPS)
        return made.step

    def minimal() -> Callable[[], object]:
        photograph = make_trainer(load.part(1, SEED), "regression", rasterizer, SEED).scene.train[0].read().rgb
        never = {"refine_start_iter": NEVER, "refine_stop_iter": NEVER, "reset_every": NEVER}
        rasterization, strategy = _gsplat(device, never)
        shots = [Shot(load.camera, torch.from_numpy(photograph))]
        return MinimalLoop(params_of_load(load), shots, rasterization, strategy, device, STEPS).step

    makers: dict[str, dict[str, Callable[[], Callable[[], object]]]] = {
        "regression": {"regression": lambda: trainer("regression"), "minimal": minimal},
        "nfc": {"nfc": lambda: trainer("nfc"), "regression": lambda: trainer("regression")},
        "nfc_off": {"nfc, its loss off": lambda: trainer("nfc", LATE), "regression": lambda: trainer("regression")},
        "packed": {
            "regression, packed": lambda: trainer("regression", packed=True),
            "regression": lambda: trainer("regression"),
        },
        "batch4": {
            f"{VIEWS} views in one pass": lambda: trainer("regression", batch=VIEWS),
            f"{VIEWS} views in turn": lambda: trainer("regression", batch=VIEWS, batched=False),
        },
        "ssim": {
            "fused_ssim": lambda: _similarity(width, height, device, fused=True),
            "SSIM": lambda: _similarity(width, height, device, fused=False),
        },
        "channels24": {
            "24 channels": lambda: _drawing(rasterizer, load, 24),
            "3 channels": lambda: _drawing(rasterizer, load, 3),
        },
    }
    works, peaks = {}, {}
    for name, make in makers[kind].items():
        works[name], peaks[name] = _warmed(make, device)
    # On a CPU, too, the wall: in the dry run only the kit is tried.
    passed = paired(works, repeats, block, clock(0, device))
    ours, other = passed
    ratios = [a / b for a, b in zip(passed[ours], passed[other], strict=True)]
    return {
        "ok": True,
        "kind": kind,
        "splats": splats,
        "size": size,
        "of": ours,
        "against": other,
        "milliseconds": {name: _spread(times) for name, times in passed.items()},
        "ratio": _spread(ratios),
        "peak_mb": peaks,
        "repeats": repeats,
        "block": block,
        # For how much of a training nfc's own loss acts.
        "acts": METHODS["nfc"]["losses"]["code_bce"]["stop"],
    }


def _similarity(width: int, height: int, device: str, fused: bool) -> Callable[[], object]:
    """SSIM and its gradient, of two random pictures."""
    import torch

    from nfc_gs.core import ssim

    generator = torch.Generator().manual_seed(SEED)
    x, y = (torch.rand(height, width, 3, generator=generator).to(device) for _ in range(2))

    def work() -> None:
        leaf = x.detach().requires_grad_()
        if fused:
            ssim.mean_ssim(leaf, y).backward()
        else:
            ssim._PlainSSIM.apply(leaf, y, None, True).backward()

    return work


def _spread(values: list[float]) -> dict[str, float]:
    import numpy as np

    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return {"median": median, "low": low, "high": high}


def _warmed(make: Callable[[], Callable[[], object]], device: str) -> tuple[Callable[[], object], float | None]:
    """The work, and the GPU memory at its peak in MB, above what others held; None on a CPU."""
    import torch

    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    work = make()
    for _ in range(WARM_UP if device == "cuda" else 1):
        work()
    if device != "cuda":
        return work, None
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return work, (torch.cuda.max_memory_allocated() - before) / 1e6


def _drawing(rasterizer: Any, load: Any, channels: int) -> Callable[[], object]:
    import torch

    from nfc_gs.core.gaussians import Splats

    device, generator = rasterizer.device, torch.Generator().manual_seed(SEED + 2)
    tensors = {name: getattr(load.splats, name) for name in INPUTS}
    tensors["values"] = torch.rand(len(load), channels, generator=generator)
    tensors = {name: value.detach().to(device) for name, value in tensors.items()}
    incoming = torch.randn(load.camera.height, load.camera.width, channels, generator=generator).to(device)
    background, camera = torch.zeros(channels, device=device), load.camera.to(device)

    def draw() -> None:
        leaves = {name: value.detach().requires_grad_() for name, value in tensors.items()}
        rasterizer(Splats(**leaves), camera, background).channels.backward(incoming)

    return draw


def _gsplat(device: str, settings: dict[str, Any]) -> tuple[Callable[..., Any], Any]:
    """gsplat's own function and strategy, which counts in every step."""
    if device == "cuda":
        from gsplat import DefaultStrategy, rasterization

        return rasterization, DefaultStrategy(**settings)
    return rasterization_on_cpu, IdleStrategy()


class IdleStrategy:
    """In the dry run, in the place of gsplat's strategy: does nothing."""

    def check_sanity(self, params: Any, optimizers: Any) -> None:
        """gsplat's own check, of the names."""
        assert set(params) == set(optimizers) >= {"means", "scales", "quats", "opacities"}

    def initialize_state(self, scene_scale: float) -> dict[str, Any]:
        """Nothing to remember."""
        return {"scene_scale": scene_scale}

    def step_pre_backward(self, params: Any, optimizers: Any, state: Any, step: int, info: Any) -> None:
        """Nothing."""

    def step_post_backward(self, params: Any, optimizers: Any, state: Any, step: int, info: Any, packed: bool) -> None:
        """Nothing."""


def rasterization_on_cpu(
    *, means: Any, quats: Any, scales: Any, opacities: Any, colors: Any, viewmats: Any, Ks: Any,
    width: int, height: int, near_plane: float, eps2d: float, sh_degree: int, packed: bool, backgrounds: Any,
) -> tuple[Any, Any, dict[str, Any]]:  # fmt: skip
    """In the dry run, in the place of `gsplat.rasterization`: drawn by this project's rasterizer for the CPU."""
    import torch

    from nfc_gs.codes.identity import SH_C0
    from nfc_gs.core.camera import Camera
    from nfc_gs.core.gaussians import Splats
    from nfc_gs.core.harmonics import evaluate
    from nfc_gs.core.rendering import SCREEN_BLUR
    from nfc_gs.rasterizers.cpu import Cpu

    assert eps2d == SCREEN_BLUR and not packed
    matrix = Ks[0].tolist()
    camera = Camera(
        world_to_camera=viewmats[0],
        focal=(matrix[0][0], matrix[1][1]),
        centre=(matrix[0][2], matrix[1][2]),
        width=width,
        height=height,
        near=near_plane,
    )
    shaded = evaluate(SH_C0 * colors[:, 0] + 0.5, colors[:, 1:], means, camera.position, sh_degree)
    splats = Splats(means=means, scales=scales, quats=quats, opacities=opacities, values=shaded)
    rendering = Cpu()(splats, camera, torch.zeros(3) if backgrounds is None else backgrounds[0])
    return rendering.channels[None], rendering.alpha[None, ..., None], {"means2d": rendering.means2d[None]}


def train(method: str, config: Path, steps: int, device: str, folder: Path) -> dict[str, Any]:
    """Trains from a configuration, or goes on where the last call was broken off, and evaluates."""
    from nfc_gs import cli

    if method == "minimal":
        return _train_minimal(config, steps, device, folder)
    run = folder / f"train_{config.stem}_{method}_{steps}"
    if (run / "checkpoints/last.safetensors").exists():
        arguments = ["train", "--resume", str(run)]
    else:
        kind = "gsplat" if device == "cuda" else "cpu"
        arguments = ["train", str(config), str(REPOSITORY / "configs/methods" / f"{method}.yaml"), "--overwrite"]
        arguments += [f"steps={steps}", f"name={run.name}", f"output={folder}", f"rasterizer.kind={kind}"]
    status = cli.main(arguments)
    if status != 0:
        sys.exit(status)
    record = json.loads((run / "metrics.json").read_text())
    names = ("psnr", "ssim", "num_gaussians", "steps", "train_seconds", "device", "resolution", "num_test_views")
    # Nothing learned leaves a picture at some ten dB; how good it should be is the configuration's.
    ok = record["psnr"] is not None and record["steps"] == steps
    return {"ok": ok, "method": method, "config": config.stem, **{name: record[name] for name in names}}


def _train_minimal(config: Path, steps: int, device: str, folder: Path) -> dict[str, Any]:
    """The same scene, rates and thresholds by the minimal loop around gsplat's own functions; goes on where it was broken off."""
    import torch

    from nfc_gs.benchmarks.minimal import MinimalLoop, Shot, params_of_gaussians, rates_of
    from nfc_gs.benchmarks.stopwatch import clock
    from nfc_gs.config import load
    from nfc_gs.core.ssim import mean_ssim
    from nfc_gs.evaluation.metrics import psnr
    from nfc_gs.model import target_of
    from nfc_gs.strategies.classic import GROW_GRADIENT, Classic
    from nfc_gs.training.experiment import Experiment
    from nfc_gs.training.run import build

    kind = "gsplat" if device == "cuda" else "cpu"
    wanted = [f"steps={steps}", f"rasterizer.kind={kind}", f"output={folder}", "name=minimal"]
    experiment = load(Experiment, [config, REPOSITORY / "configs/methods/regression.yaml"], wanted)
    rule = experiment.strategy
    if not isinstance(rule, Classic) or experiment.schedule.coarse != 1:
        sys.exit(
            f"{config}: the minimal loop has gsplat's DefaultStrategy: strategy.kind=classic, and pictures of one size"
        )
    trainer = build(experiment)
    scene = trainer.scene
    settings = {
        "prune_opa": rule.prune_opacity, "grow_grad2d": rule.grow_gradient or GROW_GRADIENT, "grow_scale3d": rule.grow_scale,
        "prune_scale3d": rule.prune_scale, "refine_start_iter": rule.start, "refine_stop_iter": rule.stop,
        "reset_every": rule.reset_every, "refine_every": rule.every,
    }  # fmt: skip
    rasterization, strategy = _gsplat(device, settings)
    background = torch.tensor(scene.background)
    shots = []
    for number, view in enumerate(scene.train):
        rgb = target_of(trainer.photographs.get(number), background).rgb
        shots.append(Shot(view.camera, (rgb * 255).round().to(torch.uint8)))
    loop = MinimalLoop(
        params_of_gaussians(trainer.model.gaussians), shots, rasterization, strategy, device, steps,
        rates=rates_of(experiment.optimizer), scene_scale=scene.extent, sh_every=experiment.schedule.sh_every,
        background=background, seed=experiment.seed,
    )  # fmt: skip
    kept = folder / f"train_{config.stem}_minimal_{steps}.pt"
    seconds = _to_the_end(loop, steps, kept, clock(0, device))
    found = []
    for number, rgb in enumerate(loop.pictures([view.camera for view in scene.test])):
        target = target_of(trainer.held_out.get(number), background.to(rgb)).rgb
        shown = rgb.clamp(0, 1)
        found.append((float(psnr(shown, target)), float(mean_ssim(shown, target))))
    sizes = {f"{view.camera.width}x{view.camera.height}" for view in scene.test}
    for part in (trainer.feed, trainer.photographs, trainer.held_out):
        part.close()
    return {
        "ok": True, "method": "minimal", "config": config.stem, "steps": steps, "train_seconds": seconds,
        "psnr": sum(score for score, _ in found) / len(found), "ssim": sum(score for _, score in found) / len(found),
        "num_gaussians": len(loop.params["means"]), "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "resolution": ", ".join(sorted(sizes)), "num_test_views": len(found),
    }  # fmt: skip


def _to_the_end(loop: Any, steps: int, kept: Path, now: Callable[[], float]) -> float:
    """Steps that are left, kept on the way and when told to end; the seconds of all steps, of earlier calls' too."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    before = loop.restore(kept)["seconds"] if kept.exists() else 0.0
    began = now()
    while loop.done < steps:
        loop.step()
        if told or loop.done % KEEP_EVERY == 0 or loop.done == steps:
            before += now() - began
            loop.save(kept, seconds=before)
            if told and loop.done < steps:
                sys.exit(130)
            began = now()
    return float(before)


def main() -> None:
    """Parses, runs one part, and writes what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, required=True, metavar="FILE")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--folder", type=Path, default=Path(), help="for what the part itself writes")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--block", type=int, default=5, help="calls between two looks at the clock")
    parser.add_argument(
        "part", nargs="+", help="probe | build | tests | compare | bench KIND N WxH | train METHOD YAML N"
    )
    chosen = parser.parse_args()
    name, *rest = chosen.part
    device, folder = chosen.device, chosen.folder
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "probe": lambda: probe(device),
        "build": build,
        "tests": lambda: tests(device, folder),
        "compare": lambda: compare(device),
        "bench": lambda: bench(rest[0], int(rest[1]), rest[2], device, chosen.repeats, chosen.block),
        "train": lambda: train(rest[0], Path(rest[1]), int(rest[2]), device, folder),
    }
    chosen.result.write_text(json.dumps(work[name]()))


if __name__ == "__main__":
    main()
