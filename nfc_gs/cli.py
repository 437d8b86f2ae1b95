"""nfc-gs train | sweep | eval | render | export | kinds | doctor | bench: parses, calls, prints; imports what is heavy late."""

import argparse
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from nfc_gs import __version__
from nfc_gs.config import ConfigError, UserError

FAMILIES = (
    "nfc_gs.codes",
    "nfc_gs.datasets",
    "nfc_gs.deformations",
    "nfc_gs.exporters",
    "nfc_gs.losses",
    "nfc_gs.rasterizers",
    "nfc_gs.strategies",
    "nfc_gs.studies.workers",
    "nfc_gs.training.callbacks",
    "dynamic.deformations",
    "dynamic.datasets",
    "dynamic.exporters",
)
# Deformations with kernels of their own.
WITH_KERNELS = ("dynamic.deformations.bases", "dynamic.deformations.hexplane")


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script: returns the exit status, 2 for a user's mistake and 130 when interrupted or told to terminate."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # torch sees to this itself, unless it is interrupted while it is imported.
    logging.getLogger("torch").setLevel(logging.WARNING)
    parser = make_parser()
    chosen, rest = parser.parse_known_args(_with_negative_values(sys.argv[1:] if arguments is None else arguments))
    # argparse does not take up a list of positionals again after a flag, as in `train a.yaml --overwrite steps=10`.
    if any(text.startswith("-") for text in rest) or (rest and "settings" not in chosen):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        chosen.settings += rest
    try:
        chosen.run(chosen)
        # Short output is written only now, and Python would tell at its exit that nobody took it.
        sys.stdout.flush()
    except UserError as mistake:
        print(f"nfc-gs: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nfc-gs: interrupted", file=sys.stderr)
        return 130
    except SystemError as error:
        # What Numba's dispatcher makes of a Ctrl-C that comes while it chooses a kernel.
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        print("nfc-gs: interrupted", file=sys.stderr)
        return 130
    except (RuntimeError, MemoryError) as error:
        line = _out_of_memory(error)
        if line is None:
            raise
        print(f"nfc-gs: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _out_of_memory(error: RuntimeError | MemoryError) -> str | None:
    """What to say of a device, or a machine, without enough memory; None of any other error."""
    # torch's own error, by its name: torch is not imported before it is needed.
    if type(error).__name__ == "OutOfMemoryError":
        asked = str(error).partition(". ")[0].partition("\n")[0]
        return f"{asked}: make the pictures smaller, or free what other programs hold"
    # On a CPU torch has no error of its own.
    if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
        return None
    size = re.search(r"allocate ([\d.]+ \w+)", str(error))
    amount = f" ({size[1]} were asked for at once)" if size else ""
    return f"out of memory{amount}: lower what is that large in the settings, or free what other programs hold"


def _with_negative_values(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--times -0.1,0.5` as `--times=-0.1,0.5`: argparse takes -0.1,0.5 and -1e-3 for flags of their own."""
    joined: list[str] = []
    for text in arguments:
        if re.match(r"-\.?\d", text) and joined and re.fullmatch(r"--[a-z-]+", joined[-1]):
            joined[-1] += f"={text}"
        else:
            joined.append(text)
    return joined


class Parser(argparse.ArgumentParser):
    """argparse's, but a mistake gets one line, as every other mistake does."""

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and where to read more, and exits with status 2."""
        self.exit(2, f"nfc-gs: {message}; see `{self.prog} --help`\n")


def make_parser() -> Parser:
    """Every command and flag."""
    parser = Parser(
        prog="nfc-gs",
        description="Trains Gaussian splats from photographs, by regression or by encoded-bit classification.",
    )
    parser.add_argument("--version", action="version", version=f"nfc-gs {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a scene, or go on with a run",
        description="nfc-gs train A.yaml [B.yaml ...] [key=value ...]: later files lie over earlier ones, overrides on top.",
    )
    train.add_argument("settings", nargs="*", metavar="FILE.yaml|KEY=VALUE")
    train.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on where this run folder's last checkpoint was written"
    )
    train.add_argument("--overwrite", action="store_true", help="delete the run folder if it is already there")
    train.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS",
        help="several processes (docs/many_gpus.md): how long one waits for another (default: 600)",
    )  # fmt: skip
    train.set_defaults(run=run_train)

    sweep = commands.add_parser(
        "sweep",
        help="run a study: every arm on every scene in every condition, from every seed, and compare them",
        description="nfc-gs sweep STUDY.yaml [key=value ...]: runs what is not finished, then writes the study's tables. The "
        "same command goes on where it was stopped. With a study's JSON and --tables-only: the tables anew.",
    )
    sweep.add_argument("study", type=Path, metavar="STUDY.yaml|RESULTS.json")
    sweep.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="the study's settings, as seeds=[0] lengths=[1200]"
    )
    sweep.add_argument(
        "--workers", metavar="KIND", help="where runs go: local (default) or slurm, or what the study says"
    )
    sweep.add_argument("--jobs", type=_whole_number, default=1, metavar="N", help="runs at the same time (default: 1)")
    sweep.add_argument(
        "--threads", type=_whole_number, metavar="N", help="of each run (default: the cores, shared out)"
    )
    sweep.add_argument("--retries", type=_seed, default=1, metavar="N", help="of a run that crashes (default: 1)")
    sweep.add_argument(
        "--budget-hours",
        type=_hours,
        metavar="H",
        help="start nothing more when so many core-hours are spent by this call",
    )
    sweep.add_argument(
        "--report", type=Path, metavar="DIR", help="where JSON, tables and plots go (default: with the runs)"
    )
    sweep.add_argument("--dry-run", action="store_true", help="check all settings and list the runs")
    sweep.add_argument("--tables-only", action="store_true", help="run nothing; write the tables of what is finished")
    sweep.set_defaults(run=run_sweep)

    evaluate = commands.add_parser("eval", help="measure a run on its held-out views; writes metrics.json")
    _add_run(evaluate)
    evaluate.add_argument(
        "--lpips", type=Path, metavar="DIR", help="folder with LPIPS weights (default: $NFC_GS_LPIPS)"
    )
    evaluate.set_defaults(run=run_eval)

    render = commands.add_parser(
        "render",
        help="write pictures of a run's views, or a film of it",
        description="Without any of --times, --time, --path, --view, --frames and --size: one PNG for each view of the split. "
        "With one of them, and in the modes motion and trajectories: a film, to FILE.mp4, .webm or .gif, to a folder of PNGs, "
        "or to FILE.png, a sheet of some frames. The modes error and confidence draw pictures of the split's views only.",
    )
    _add_run(render)
    render.add_argument("--split", choices=("train", "test"), default="test")
    render.add_argument(
        "--mode", choices=("rgb", "depth", "alpha", "error", "confidence", "motion", "trajectories"),
        default="rgb",
        help="error: against the photographs; confidence: how well the training photographs agree (both: no films); motion: "
        "how fast everything is; trajectories: the ways things came",
    )  # fmt: skip
    render.add_argument("--times", type=_times, metavar="0,0.5,1|N", help="the frames' times, or how many from 0 to 1")
    render.add_argument("--time", type=_time, metavar="T", help="stop the time at T, from 0 to 1")
    render.add_argument("--path", metavar="PATH", help="move the camera: orbit, spiral, interpolate or dataset")
    render.add_argument("--view", metavar="NAME", help="stop the camera where this photograph was taken")
    render.add_argument("--frames", type=_number, metavar="N", help="how many frames (default: four seconds)")
    render.add_argument("--fps", type=_rate, default=30.0, metavar="N", help="frames a second of a film (default: 30)")
    render.add_argument("--size", type=_size, metavar="WxH", help="of the pictures (default: the photographs')")
    render.add_argument("--output", type=Path, required=True, metavar="DIR|FILE")
    render.set_defaults(run=run_render)

    export = commands.add_parser("export", help="write a run as a file that viewers read")
    _add_run(export)
    export.add_argument("--kind", default="ply", help="see `nfc-gs kinds exporters`")
    export.add_argument("--output", type=Path, required=True, metavar="FILE|DIR")
    # The settings asked for most have flags of their own.
    for name, meaning in (
        ("fps", "frames a second"),
        ("frames", "how many frames"),
        ("time", "the moment of a moving run, from 0 to 1"),
        ("form", "how kind dynamic.exporters.motion writes motion: splines, chunks or bones"),
    ):
        export.add_argument(f"--{name}", metavar=name.upper(), help=f"the setting {name}=: {meaning}")
    export.add_argument(
        "--min-weight", type=_weight, default=0.0, metavar="W",
        help="leave out Gaussians that all training views together show by fewer pixels (as 1)",
    )  # fmt: skip
    export.add_argument(
        "--min-confidence", type=_confidence, default=0.0, metavar="C",
        help="leave out Gaussians below this confidence, from 0 to 1 (as 0.3; see `render --mode confidence`)",
    )  # fmt: skip
    export.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="the exporter's settings, as sh_degree=0")
    export.set_defaults(run=run_export)

    kinds = commands.add_parser("kinds", help="list what `kind:` can name, with every setting and its default")
    kinds.add_argument("family", nargs="?", help="codes, losses, strategies, ... (default: all)")
    kinds.set_defaults(run=run_kinds)

    doctor = commands.add_parser(
        "doctor", help="say which backend will be used and why, and how to mend what is missing"
    )
    doctor.add_argument("--warm", action="store_true", help="compile the kernels now, so that no later start does")
    doctor.set_defaults(run=run_doctor)

    bench = commands.add_parser(
        "bench",
        help="measure what a training step costs on this machine, part by part",
        description="Measures every combination of splats, pixels and threads: a training step by its parts, and in turn "
        "with it the rasterization alone, of each number of channels. Comma-separated lists, no spaces.",
    )
    bench.add_argument("--splats", type=_whole_numbers, metavar="N,...", help="(default: 5000,50000,200000)")
    bench.add_argument(
        "--pixels", type=_sizes, metavar="N|WxH,...", help="sides of the picture (default: 100,200,400,800)"
    )
    bench.add_argument("--channels", type=_whole_numbers, default=(3, 24), metavar="N,...", help="(default: 3,24)")
    bench.add_argument("--threads", type=_threads, default="1,all", metavar="N|all,...", help="(default: 1,all)")
    bench.add_argument("--method", choices=("regression", "nfc"), default="regression")
    bench.add_argument("--rasterizer", choices=("auto", "cpu", "gsplat"), default="auto")
    bench.add_argument(
        "--scene", type=Path, metavar="FILE", help="a real load: a PLY of nfc-gs, or the npz of gsplat's tests"
    )
    bench.add_argument("--repeats", type=_whole_number, default=7, metavar="N", help="(default: 7)")
    bench.add_argument("--seed", type=_seed, default=0, metavar="N", help="of everything that is random (default: 0)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there as well")
    bench.set_defaults(run=run_bench)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder, as runs/fox")
    parser.add_argument("--best", action="store_true", help="the checkpoint best on the held-out views, not the last")


def _time(text: str) -> float:
    """A time from 0 to 1."""
    try:
        time = float(text)
    except ValueError:
        time = math.nan
    if not 0 <= time <= 1:  # not for NaN either
        raise argparse.ArgumentTypeError(f"{text!r} is no time: the first moment is 0 and the last is 1")
    return time


def _weight(text: str) -> float:
    """Pixels, from 0 on."""
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pixels from 0 on")
    return weight


def _confidence(text: str) -> float:
    """From 0 to 1."""
    try:
        confidence = float(text)
    except ValueError:
        confidence = math.nan
    if not 0 <= confidence <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no confidence from 0 to 1")
    return confidence


def _times(text: str) -> tuple[float, ...] | int:
    """Times, or from 2 on a number of them."""
    if text.isdecimal() and int(text) > 1:
        return int(text)
    times = tuple(_time(part.strip()) for part in text.split(","))
    twice = [time for i, time in enumerate(times) if time in times[:i]]
    if twice:
        raise argparse.ArgumentTypeError(f"the time {twice[0]:g} is named twice")
    return times


def _number(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of frames: a whole number from 1 on")
    return int(text)


def _rate(text: str) -> float:
    """Frames a second."""
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0.1 <= rate <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of frames a second from 0.1 to 1000")
    return rate


def _size(text: str) -> tuple[int, int]:
    """Width and height."""
    width, x, height = text.partition("x")
    if not (width.isdecimal() and x and height.isdecimal() and 16 <= int(width) <= 8192 and 16 <= int(height) <= 8192):
        raise argparse.ArgumentTypeError(f"{text!r} is no size as 640x480, with sides from 16 to 8192")
    return int(width), int(height)


def _whole_number(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _seed(text: str) -> int:
    """A whole number from 0 on."""
    return 0 if text == "0" else _whole_number(text)


def _seconds(text: str) -> float:
    """Seconds, above 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _hours(text: str) -> float:
    """Hours, above 0."""
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not 0 < hours < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of hours above 0")
    return hours


def _whole_numbers(text: str) -> tuple[int, ...]:
    """Different whole numbers from 1 on."""
    return tuple(dict.fromkeys(_whole_number(part) for part in text.split(",")))


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Widths and heights, 400 being 400x400."""
    sizes = [part.split("x") for part in text.split(",")]
    if any(len(size) > 2 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} holds what is neither a side, as 400, nor a size, as 1600x1200")
    return tuple(dict.fromkeys((_whole_number(size[0]), _whole_number(size[-1])) for size in sizes))


def _threads(text: str) -> tuple[int, ...]:
    """Different numbers of threads; `all` are the cores this process may use."""
    # Only Linux says which these are.
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return tuple(dict.fromkeys(cores if part == "all" else _whole_number(part) for part in text.split(",")))


def run_train(chosen: argparse.Namespace) -> None:
    """Trains, or goes on."""
    files = [Path(text) for text in chosen.settings if "=" not in text]
    overrides = [text for text in chosen.settings if "=" in text]
    if chosen.resume and (chosen.settings or chosen.overwrite):
        raise ConfigError("--resume takes its settings from the run folder: give neither files nor overrides with it")
    if not chosen.resume and not files:
        raise ConfigError("train needs at least one settings file, as `nfc-gs train configs/toy.yaml`, or --resume RUN")

    from nfc_gs.config import load
    from nfc_gs.rasterizers.auto import Auto, choose
    from nfc_gs.training import run
    from nfc_gs.training.experiment import Experiment
    from nfc_gs.training.ranks import TIMEOUT, join

    ranks = join(chosen.timeout or TIMEOUT)
    if not ranks.first:
        # What there is to say, the first one says; a mistake is each one's own.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        logging.getLogger().setLevel(logging.ERROR)
    if chosen.resume:
        trainer = run.resume(chosen.resume, ranks)
        left = trainer.experiment.steps - trainer.done
        going = f"going on at step {trainer.done} of {trainer.experiment.steps}"
        print(going if left else f"all {trainer.done} steps of this run are done already")
    else:
        # A run is called after its files, as fox_nfc, unless a file or an override names it.
        name = "_".join(path.stem for path in files)
        experiment = ranks.together(lambda: load(Experiment, files, overrides, defaults={"name": name}))
        trainer = run.begin(experiment, chosen.overwrite, ranks)
    experiment, scene = trainer.experiment, trainer.scene
    if isinstance(experiment.rasterizer, Auto):
        print(f"rasterizer {choose().reason}")
    folder = experiment.folder
    print(
        f"{len(scene.train)} training and {len(scene.test)} held-out views, {len(trainer.model.gaussians):,} Gaussians "
        f"to begin with, {experiment.steps} steps on {experiment.rasterizer.device}; writing to {folder}"
    )
    try:
        evaluation = run.train(trainer, folder)
    except KeyboardInterrupt:
        print(f"\nstopped at step {trainer.done}; go on with: nfc-gs train --resume {folder}")
        raise
    if evaluation is not None:
        print(f"trained in {trainer.seconds:.0f} s: held-out PSNR {evaluation.psnr:.2f} dB, SSIM {evaluation.ssim:.4f}")
    print(
        f"next: tensorboard --logdir {folder}   |   nfc-gs eval {folder}   |   "
        f"nfc-gs render {folder} --output {folder / 'renders'}   |   nfc-gs export {folder} --output {folder.name}.ply"
    )


def run_sweep(chosen: argparse.Namespace) -> None:
    """Runs a study, or what is left of it, and writes its tables."""
    from nfc_gs.studies.run import Wish, run

    def compile_kernels() -> None:
        from nfc_gs.benchmarks import warm

        warm(WITH_KERNELS)

    run(
        Wish(
            study=chosen.study,
            overrides=tuple(chosen.settings),
            workers=chosen.workers,
            jobs=chosen.jobs,
            threads=chosen.threads,
            retries=chosen.retries,
            budget_hours=chosen.budget_hours,
            report=chosen.report,
            dry_run=chosen.dry_run,
            tables_only=chosen.tables_only,
        ),
        compile_kernels,
    )


def run_eval(chosen: argparse.Namespace) -> None:
    """Measures a run and writes metrics.json."""
    from nfc_gs.training import run

    metrics, path = run.measure(run.open_run(chosen.folder, chosen.best), chosen.lpips)
    for name in ("psnr", "ssim", "lpips_alex", "lpips_squeeze"):
        value = metrics[name]
        print(f"{name:14} {value:.4f}" if value is not None else f"{name:14} not computed: {metrics['lpips_reason']}")
    milliseconds = metrics["seconds_per_frame"] * 1e3
    print(f"{metrics['num_test_views']} views, {metrics['num_gaussians']:,} Gaussians, {milliseconds:.0f} ms a frame")
    print(f"written to {path}")


def run_render(chosen: argparse.Namespace) -> None:
    """Writes pictures or a film."""
    wishes = (chosen.times, chosen.time, chosen.path, chosen.view, chosen.frames, chosen.size)
    plain = all(wish is None for wish in wishes) and chosen.mode not in ("motion", "trajectories")

    from nfc_gs.training import run

    if plain and chosen.output.suffix.lower() not in (".mp4", ".webm", ".gif", ".png"):
        paths = run.draw(run.open_run(chosen.folder, chosen.best), chosen.split, chosen.mode, chosen.output)
        print(f"{len(paths)} pictures written to {chosen.output}")
        return

    from nfc_gs.evaluation.shots import Film

    film = Film(
        times=chosen.times,
        time=chosen.time,
        path=chosen.path,
        view=chosen.view,
        split=chosen.split,
        num_frames=chosen.frames,
        fps=chosen.fps,
        size=chosen.size,
    )
    print(run.film(run.open_run(chosen.folder, chosen.best), film, chosen.mode, chosen.output))


def run_export(chosen: argparse.Namespace) -> None:
    """Writes a file for viewers."""
    from nfc_gs.config import read, validate_kind
    from nfc_gs.training import run

    flags = [f"{name}={value}" for name in ("fps", "frames", "time", "form") if (value := getattr(chosen, name))]
    settings = {"kind": chosen.kind.replace("-", "_"), **read([], [*flags, *chosen.settings])}
    exporter = validate_kind("nfc_gs.exporters", settings, "export")
    opened = run.open_run(chosen.folder, chosen.best)
    print(run.export(opened, exporter, chosen.output, chosen.min_weight, chosen.min_confidence))


def run_kinds(chosen: argparse.Namespace) -> None:
    """Lists families, members, settings and first docstring lines."""
    import dataclasses

    from nfc_gs.config import find, kinds, near

    short = {family.removeprefix("nfc_gs.").removeprefix("training."): family for family in FAMILIES}
    if chosen.family is not None and chosen.family not in short:
        raise ConfigError(f"no family {chosen.family!r} ({', '.join(short)}){near(chosen.family, short)}")
    for name, family in short.items():
        if chosen.family not in (None, name):
            continue
        for kind in kinds(family):
            full = kind if family.startswith("nfc_gs.") else f"{family}.{kind}"
            member = find(family, kind)
            print(f"{name}: {full}  {(member.__doc__ or '').strip().splitlines()[0]}")
            for setting in dataclasses.fields(member):
                required = setting.default is dataclasses.MISSING and setting.default_factory is dataclasses.MISSING
                print(f"    {setting.name}" + ("  (must be given)" if required else f" = {setting.default}"))


def run_doctor(chosen: argparse.Namespace) -> None:
    """Says what this machine can do."""
    from nfc_gs.rasterizers.auto import diagnose, warm_gsplat

    print(f"nfc-gs {__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} cores")
    for line in diagnose():
        print(line, flush=True)
    for name, user in (("NFC_GS_DATA", "configs of named scenes"), ("NFC_GS_LPIPS", "LPIPS")):
        print(f"{name}: {os.environ.get(name, f'not set (needed by {user} only)')}")
    if chosen.warm:
        from nfc_gs.benchmarks import warm

        use = warm(WITH_KERNELS)
        print(f"CPU kernels: {use.read} read from the cache, {use.compiled} compiled")
        print(f"gsplat's kernels: {warm_gsplat()}")


def run_bench(chosen: argparse.Namespace) -> None:
    """Measures and prints."""
    from nfc_gs import benchmarks

    plan = benchmarks.Plan(
        splats=chosen.splats,
        sizes=chosen.pixels,
        channels=chosen.channels,
        threads=chosen.threads,
        method=chosen.method,
        rasterizer=chosen.rasterizer,
        scene=chosen.scene,
        repeats=chosen.repeats,
        seed=chosen.seed,
    )
    benchmarks.run(plan, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
