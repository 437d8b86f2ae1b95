"""Checks the CUDA path on a machine that has one, in pieces of a few minutes, and writes down what was found.

    python tools/gpu_check.py                          # call it again for as long as it exits with 3
    python tools/gpu_check.py --find-links wheels      # with wheels of the packages that the machine lacks
    python tools/gpu_check.py --device cpu             # tries the kit itself, without a GPU: no result of a GPU

Parts: build (gsplat's kernels), tests (those that need a GPU), compare (pictures and gradients, CPU and GPU), bench (step
time and memory), train (a scene, by both methods), table. OUTPUT/gpu_check.json is written after each piece, and
OUTPUT/gpu_check.md at the end of every call; a piece that is there is not done again. Needs the standard library and torch;
asks no network for anything. Each piece is a process of its own: an error on the device ends only that.

Exit status: 0 all is done and right, 1 all is done and something failed, 2 it cannot run here, 3 call it again.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

REPOSITORY = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).resolve().parent / "gpu_parts.py"
PARTS = ("build", "tests", "compare", "bench", "train", "table")
KINDS = ("regression", "nfc", "nfc_off", "channels24", "packed", "batch4", "ssim")
# The first two are trained if nothing else is said: `minimal` wants a scene with 3DGS's own strategy.
METHODS = ("regression", "nfc", "minimal")
# The length of a call: under eight minutes, with what is needed to end a piece and write.
LIMIT = 440
# Seconds that a piece of a part takes at most on a common machine: none is begun with less left, but for the first.
USUAL = {"build": 120, "tests": 120, "compare": 90, "bench": 60, "train": 120}
# These go on where they were broken off.
RESUMABLE = ("build", "train")
# Seconds for a piece to save itself when it is told to end.
GRACE = 20
TAIL = 40
FORMAT = 1
# The code that decides what is found.
SOURCES = ("nfc_gs", "dynamic", "tools")
LABELS = {"cuda": "on a GPU", "cpu": "DRY RUN ON A CPU: tries the kit, and is no result of a GPU"}
# Modules that are imported from the packages that are stood in for.
SUBMODULES = {"pycolmap": (), "av": ("filter", "stream", "video", "video.format", "video.frame", "video.stream")}
STAND_IN = '''"""Stands in for a package that this machine lacks: it can be imported, and nothing in it can be made."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    class Absent:
        def __init__(self, *arguments, **settings):
            raise ImportError(f"{__name__} is not installed on this machine")

    return Absent
'''


class CheckError(Exception):
    """A mistake of the user's, or a machine on which this cannot run, in one line."""


@dataclass(frozen=True)
class Piece:
    """What is done at one go: its part, and what the worker is told."""

    part: str
    words: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """In the record and in what is printed; of a path, what a person would call it."""
        return " ".join([self.part, *(Path(word).stem if word.endswith(".yaml") else word for word in self.words)])


class Record:
    """OUTPUT/gpu_check.json: every piece that was done, what it found, and of what machine."""

    def __init__(self, path: Path, device: str) -> None:
        self.path = path
        self.content: dict[str, Any] = {"format": FORMAT, "what": LABELS[device], "device": device, "pieces": {}}
        if not path.exists():
            return
        try:
            content = json.loads(path.read_text())
            pieces, known = content["pieces"], content["format"] == FORMAT
            if not known or not all(isinstance(piece["status"], str) for piece in pieces.values()):
                raise ValueError("of another form")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckError(
                f"{path}: is no record of this tool ({error}); move it away, or name another --output"
            ) from None
        if content.get("device") != device:
            raise CheckError(
                f"{path}: is of --device {content.get('device')}; name another --output for --device {device}"
            )
        self.content = content

    @property
    def pieces(self) -> dict[str, dict[str, Any]]:
        """By name: `status` (done, failed, skipped or unfinished), `seconds`, `result`, and of a failure its `tail`."""
        pieces: dict[str, dict[str, Any]] = self.content["pieces"]
        return pieces

    def status(self, piece: Piece) -> str | None:
        """None if it was never begun."""
        return self.pieces.get(piece.name, {}).get("status")

    def write(self) -> None:
        """Under a temporary name first, so that there is always a whole one."""
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(self.content, indent=2) + "\n")
        os.replace(partial, self.path)


class Machine:
    """Runs the worker, with the packages that were carried here in its path and everything it makes in one folder."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        self.packages, self.stand_ins = folder / "packages", folder / "stand_ins"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.stand_ins, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """As here, and found first: the project and the carried packages; kept apart: the kernels that are compiled."""
        environment = dict(os.environ)
        paths = [str(REPOSITORY), str(self.packages), str(self.stand_ins), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        # Beside this Python lies what its packages brought along, as ninja.
        programs = [str(self.packages / "bin"), str(Path(sys.executable).parent), environment.get("PATH", "")]
        environment["PATH"] = os.pathsep.join(programs)
        environment.setdefault("TORCH_EXTENSIONS_DIR", str(self.folder / "kernels"))
        environment |= {"PYTHONUNBUFFERED": "1", "VERBOSE": "1"}
        return environment

    def run(self, words: Sequence[str], limit: float, settings: Sequence[str] = ()) -> tuple[str, Any, str]:
        """Runs a part: how it ended (done, failed or ended by the limit), what it found, and the end of what it printed."""
        result, log = self.folder / "result.json", self.folder / "log.txt"
        result.unlink(missing_ok=True)
        command = [sys.executable, "-P", str(WORKER), "--result", str(result), "--device", self.device]
        command += ["--folder", str(self.folder), *settings, *words]
        with log.open("w") as file:
            child = subprocess.Popen(
                command, cwd=REPOSITORY, env=self.environment(), stdout=file, stderr=file, start_new_session=True
            )
            try:
                status = child.wait(timeout=limit)
                ended = "done" if status == 0 and result.exists() else "failed"
            except subprocess.TimeoutExpired:
                ended, status = "limit", None
            finally:
                _end(child)
        said = log.read_text(errors="replace").splitlines()[-TAIL:]
        if status is not None and status < 0:
            said.append(f"ended by {signal.Signals(-status).name}")
        return ended, json.loads(result.read_text()) if ended == "done" else None, "\n".join(said)

    def stand_in(self, missing: Sequence[str]) -> None:
        """Makes the large packages importable that nothing here uses."""
        for package in missing:
            for module in (package, *(f"{package}.{name}" for name in SUBMODULES[package])):
                path = self.stand_ins / Path(*module.split(".")) / "__init__.py"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(STAND_IN)

    def install(self, names: Sequence[str], wheels: Path) -> None:
        """Puts those of these packages that there are wheels of into a folder of their own."""
        there = {re.sub(r"[-_.]+", "-", path.name.split("-")[0]).lower() for path in wheels.glob("*.whl")}
        chosen = [name for name in names if name.lower() in there]
        if not chosen:
            return
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
        command += ["--find-links", str(wheels), "--target", str(self.packages), *chosen]
        said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode != 0:
            lines = said.stderr.strip().splitlines() or [f"pip exited with {said.returncode}"]
            raise CheckError(f"{wheels}: pip could not install {', '.join(chosen)}: {lines[-1]}")


def _end(child: subprocess.Popen) -> None:
    """Tells a process and its children to end, and sees to it that they do."""
    for how, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        if child.poll() is not None:
            return
        os.killpg(child.pid, how)
        try:
            child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            continue


def prepare(machine: Machine, wheels: Path | None) -> dict[str, Any]:
    """What the machine has, once what can be installed is.

    Raises:
        CheckError: no torch, no CUDA device where one is wanted, or packages that nothing here runs without.
    """
    found = _probe(machine)
    if machine.device == "cuda" and not found["cuda"]:
        built = f"built for CUDA {found['torch_cuda']}" if found["torch_cuda"] else "built for the CPU only"
        driver = f"driver {found['driver']}" if found["driver"] else "no NVIDIA driver"
        raise CheckError(f"torch sees no CUDA device: torch {found['torch']}, {built}; {driver}")
    optional = [name for names in found["missing_optional"].values() for name in names]
    if wheels is not None:
        machine.install([*found["missing"], *optional, *found["missing_unused"]], wheels)
        found = _probe(machine)
    if found["missing"]:
        names = ", ".join(found["missing"])
        raise CheckError(f"packages are missing: {names}; bring their wheels and name the folder with --find-links")
    machine.stand_in(found["missing_unused"])
    return found


def _probe(machine: Machine) -> dict[str, Any]:
    ended, found, tail = machine.run(["probe"], 120)
    if ended != "done":
        raise CheckError(
            f"torch cannot be used here: {tail.splitlines()[-1] if tail else 'it did not answer in 120 s'}"
        )
    result: dict[str, Any] = found
    return result


def plan(chosen: argparse.Namespace) -> Iterator[Piece]:
    """Every piece, in order."""
    wanted = chosen.parts
    if "build" in wanted and chosen.device == "cuda":
        yield Piece("build")
    for part in ("tests", "compare"):
        if part in wanted:
            yield Piece(part)
    if "bench" in wanted:
        for kind in chosen.kinds:
            # The likeness of pictures knows of no splats.
            for splats in chosen.splats[: 1 if kind == "ssim" else None]:
                yield from (Piece("bench", (kind, splats, size)) for size in chosen.sizes)
    if "train" in wanted:
        yield from (Piece("train", (method, str(chosen.scene), str(chosen.steps))) for method in chosen.methods)


def check(chosen: argparse.Namespace) -> int:
    """Does what is left and fits into the limit; the exit status."""
    began = time.monotonic()
    try:
        chosen.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckError(f"{chosen.output}: cannot be made: {error.strerror or error}") from None
    record = Record(chosen.output / "gpu_check.json", chosen.device)
    machine = Machine((chosen.work or chosen.output / "work").resolve(), chosen.device)
    found = prepare(machine, chosen.find_links)
    before = record.content.get("machine")
    if before is not None and before["gpu"] != found["gpu"]:
        raise CheckError(f"{record.path}: is of {before['gpu']}, and this is {found['gpu']}: name another --output")
    commit = chosen.commit or _commit()
    record.content |= {"machine": found, "commit": commit}
    pieces = list(plan(chosen))
    for name in [name for name in record.pieces if name.split()[0] in chosen.again]:
        del record.pieces[name]
    if not any(Path(machine.environment()["TORCH_EXTENSIONS_DIR"]).rglob("gsplat_cuda.so")):
        # Another machine of the same kind, to which only the record was brought.
        record.pieces.pop("build", None)
    record.write()
    settings = ["--repeats", str(chosen.repeats), "--block", str(chosen.block)]
    first = True
    for piece in pieces:
        if record.status(piece) in ("done", "failed", "skipped"):
            print(f"{piece.name}: {record.status(piece)} before", flush=True)
            if piece.part == "build" and record.status(piece) == "failed":
                break
            continue
        optional = found["missing_optional"]
        absent = optional.get(piece.part) or optional.get(" ".join([piece.part, *piece.words[:1]]))
        if absent:
            print(f"{piece.name}: skipped, without {', '.join(absent)}", flush=True)
            record.pieces[piece.name] = {"status": "skipped", "tail": f"missing: {', '.join(absent)}"}
            record.write()
            continue
        left = chosen.limit - (time.monotonic() - began)
        if left < (1 if first else USUAL[piece.part]):
            break
        print(f"{piece.name}: ", end="", flush=True)
        record.pieces[piece.name] = _do(machine, piece, left, first, settings) | {"commit": commit}
        record.write()
        print("{status}, {seconds:.0f} s".format(**record.pieces[piece.name]), flush=True)
        first = False
        if piece.part == "build" and record.status(piece) != "done":
            break
    table = chosen.output / "gpu_check.md"
    if "table" in chosen.parts:
        table.write_text(write_table(record.content, [piece.name for piece in pieces]))
    states = [record.status(piece) for piece in pieces]
    counts = ", ".join(f"{states.count(state)} {state or 'not begun'}" for state in dict.fromkeys(states))
    print(f"{counts}; {record.path}, {table}")
    if record.status(Piece("build")) == "failed":
        return 1
    if None in states or "unfinished" in states:
        return 3
    return 1 if "failed" in states else 0


def _do(machine: Machine, piece: Piece, left: float, first: bool, settings: Sequence[str]) -> dict[str, Any]:
    """One piece, as the record has it."""
    began = time.monotonic()
    ended, result, tail = machine.run([piece.part, *piece.words], left, settings)
    entry: dict[str, Any] = {"seconds": time.monotonic() - began, "when": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    if ended == "limit":
        # What cannot go on and had the whole call to itself never ends.
        never = first and piece.part not in RESUMABLE
        return entry | {"status": "failed" if never else "unfinished", "tail": f"{tail}\nended by --limit"}
    if ended == "done" and result["ok"]:
        return entry | {"status": "done", "result": result}
    return entry | {"status": "failed", "result": result, "tail": tail}


def _commit() -> str:
    """What was run: the commit, and whether files were changed; without git, a digest of the sources, by which it can be found."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in (REPOSITORY / folder).rglob("*.py")):
        digest.update(str(path.relative_to(REPOSITORY)).encode() + path.read_bytes())
    sources = f"sources {digest.hexdigest()[:12]}"
    answers = []
    for words in (["rev-parse", "--show-toplevel", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            said = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return f"unknown, {sources}"
        answers.append(said.stdout.split())
    (top, head), changed = answers
    if Path(top).resolve() != REPOSITORY:
        # A copy within another repository, whose commit says nothing of it.
        return f"unknown, {sources}"
    return f"{head} with changes, {sources}" if changed else head


# ---- the table


def write_table(content: dict[str, Any], names: Sequence[str]) -> str:
    """The record as Markdown."""
    machine, pieces = content["machine"], content["pieces"]
    lines = [f"# GPU check: {content['what']}", ""]
    gpu = f"{machine['gpu']} ({machine['gpu_gb']:.0f} GB, driver {machine['driver']})" if machine["gpu"] else "no GPU"
    lines.append(
        f"{gpu}; torch {machine['torch']}, Python {machine['python']}, {machine['system']}, {machine['cores']} cores; "
        f"commit {content['commit'] or 'unknown'}"
    )
    others: dict[str, list[str]] = {}
    for name in names:
        made_at = pieces.get(name, {}).get("commit", content["commit"])
        if made_at != content["commit"]:
            others.setdefault(made_at, []).append(name)
    lines += [f"\nAt commit {commit}: {', '.join(made)}." for commit, made in others.items()]
    done = {part: [_result(pieces, name) for name in names if name.split()[0] == part] for part in PARTS}
    results = {part: [result for result in found if result] for part, found in done.items()}
    for result in results["build"]:
        lines += ["", f"Build: {result['reason']}; {result['seconds']:.0f} s in its last call, {result['jobs']} jobs."]
    for result in results["tests"]:
        lines += ["", f"Tests: {result['passed']} passed, {len(result['failed'])} failed, {result['skipped']} skipped."]
    for result in results["compare"]:
        lines += ["", "## Pictures and gradients", "", _comparisons(result)]
    if results["bench"]:
        lines += ["", "## Time and memory", "", _benches(results["bench"])]
    if results["train"]:
        lines += ["", "## Training", "", _trainings(results["train"])]
    left = [name for name in names if name not in pieces]
    if left:
        lines += ["", f"Not begun: {', '.join(left)}."]
    for name in names:
        piece = pieces.get(name, {"status": "done"})
        if piece["status"] != "done":
            lines += ["", f"## {name}: {piece['status']}", "", "```", piece.get("tail", ""), "```"]
    return "\n".join(lines) + "\n"


def _result(pieces: dict[str, Any], name: str) -> Any:
    return pieces.get(name, {}).get("result")


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _comparisons(result: dict[str, Any]) -> str:
    names = list(result["pairs"][0]["gradients"])
    head = ["of", "against", "splats", "pixels", "channels", "picture, 99.9 %", "picture, all", *names, "agrees"]
    rows = [
        [pair["of"], pair["against"], f"{pair['splats']:,}", pair["size"], str(pair["channels"])]
        + [f"{pair['picture_quantile']:.1e}", f"{pair['picture_max']:.1e}"]
        + [f"{pair['gradients'][name]:.1e}" for name in names]
        + ["yes" if pair["agrees"] else "NO"]
        for pair in result["pairs"]
    ]
    limits = result["limits"]
    text = f"\n\nPictures: absolute, at most {limits['picture']:g}; gradients: relative to their length, {limits['gradient']:g}."
    return _rows(head, rows) + text


def _benches(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        (of, ours), (against, other) = result["milliseconds"].items()
        ratio, peaks = result["ratio"], result["peak_mb"]
        rows.append(
            [of, against, f"{result['splats']:,}", result["size"]]
            + [f"{ours['median']:.2f}", f"{other['median']:.2f}"]
            + [f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"]
            + ["-" if peaks[name] is None else f"{peaks[name]:,.0f}" for name in (of, against)]
        )
    head = ["of", "against", "splats", "pixels", "ms", "ms, other", "ratio (quartiles)", "peak MB", "peak MB, other"]
    text = "\n\nRegression is to take at most 1.0 times the minimal loop around gsplat's own functions."
    ratios = {(result["kind"], result["splats"], result["size"]): result["ratio"]["median"] for result in results}
    for result in results:
        over = ratios.get(("nfc_off", result["splats"], result["size"]))
        if result["kind"] == "nfc" and over is not None:
            acts, at = result["acts"], f"{result['splats']:,} splats, {result['size']}"
            average = acts * result["ratio"]["median"] + (1 - acts) * over
            text += (
                f"\n\nnfc averaged over a training, {acts:.0%} of it with its loss: {average:.2f} ({at}); at most 1.15."
            )
    return _rows(head, rows) + text


def _trainings(results: Sequence[dict[str, Any]]) -> str:
    head = ["scene", "method", "steps", "PSNR", "SSIM", "Gaussians", "seconds", "device"]
    names = ("config", "method", "steps", "psnr", "ssim", "num_gaussians", "train_seconds", "device")
    forms = ("", "", "", ".2f", ".4f", ",", ".1f", "")
    rows = [[format(result[name], form) for name, form in zip(names, forms, strict=True)] for result in results]
    return _rows(head, rows)


# ---- the command line


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[str, ...]:
    if not all(part.isdecimal() and int(part) > 0 for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers from 1 on, with commas between")
    return _list(text)


def _sizes(text: str) -> tuple[str, ...]:
    if not all(re.fullmatch(r"[1-9]\d*x[1-9]\d*", part) for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: sizes as 1297x840, with commas between")
    return _list(text)


def _known(names: Sequence[str], text: str) -> tuple[str, ...]:
    unknown = [part for part in text.split(",") if part not in names]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: of {', '.join(names)}")
    return _list(text)


def _parts(text: str) -> tuple[str, ...]:
    return _known(PARTS, text)


def _kinds(text: str) -> tuple[str, ...]:
    return _known(KINDS, text)


def _methods(text: str) -> tuple[str, ...]:
    return _known(METHODS, text)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu_check"), help="(default: runs/gpu_check)")
    parser.add_argument("--work", type=Path, help="for packages, kernels and runs (default: OUTPUT/work)")
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="SECONDS", help=f"of one call (default: {LIMIT})")
    parser.add_argument("--parts", type=_parts, default=PARTS, metavar="PART,...", help="(default: all)")
    parser.add_argument("--again", type=_parts, default=(), metavar="PART,...", help="forget what these found")
    parser.add_argument("--find-links", type=Path, metavar="FOLDER", help="wheels of packages that may be missing")
    parser.add_argument("--commit", help="of this copy, if it has no .git (default: git's, or a digest of the sources)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the kit itself")
    parser.add_argument("--splats", type=_numbers, default="100000,1000000,3000000", metavar="N,...")
    parser.add_argument("--sizes", type=_sizes, default="1297x840,1600x1200", metavar="WxH,...")
    parser.add_argument("--kinds", type=_kinds, default=KINDS, metavar="KIND,...", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of measurements (default: 7)")
    parser.add_argument("--block", type=int, default=5, help="steps in each (default: 5)")
    parser.add_argument("--scene", type=Path, default=REPOSITORY / "configs/toy.yaml", help="a config (default: toy)")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="of each training (default: 2000)")
    parser.add_argument(
        "--methods",
        type=_methods,
        default=METHODS[:2],
        metavar="METHOD,...",
        help=f"to train by, of {', '.join(METHODS)} (default: the first two)",
    )
    return parser


def main() -> NoReturn:
    """Parses and checks."""
    chosen = make_parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for path in (chosen.find_links, chosen.scene):
            if path is not None and not path.exists():
                raise CheckError(f"{path}: is not there")
        chosen.scene = chosen.scene.resolve()
        status = check(chosen)
    except CheckError as mistake:
        print(f"gpu_check: {mistake}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("gpu_check: interrupted; what was done is kept", file=sys.stderr)
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
