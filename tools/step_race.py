"""States of this project raced against each other in turn: a training step and its rasterization, on one thread and on more.

A machine that other programs use, or whose clock swings, makes times of different moments worthless; their ratio within one
turn is not. Each state (a git revision, or a folder; `.` is the tree as it is) is a process of its own that sleeps while another
works. A turn asks every state for every work, the next turn in the opposite order; of the few steps of an answer the quickest
counts. Rates are zero, so that the load stays as it is. `python tools/step_race.py --help`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("regression", "nfc", "nfc_off")
# The share of a training during which the loss of configs/methods/nfc.yaml acts.
LOSS_ON = 0.6
# Before this step the loss acts, after it it does not (of the 10,000 of a benchmark's training).
FIRST, LATE = 3, 9000


class UserError(Exception):
    """As of nfc_gs.config, whose package is a worker's own and not this process's."""


@dataclass(frozen=True)
class Ask:
    """One thing to be timed: a state's work on so many threads."""

    state: str
    work: str
    threads: int


@dataclass(frozen=True)
class Race:
    """What is asked for; `count` steps an answer."""

    states: tuple[str, ...]
    works: tuple[str, ...]
    threads: tuple[int, ...]
    splats: int
    size: tuple[int, int]
    seconds: float
    count: int


def work_for(load_size: tuple[int, int], splats: int) -> Callable[[str], Callable[[], float]]:
    """What a worker can do, by name; each call does it once and returns its milliseconds on the wall."""
    # Imported here: a worker's PYTHONPATH says which state's package this is.
    from nfc_gs.benchmarks import cells
    from nfc_gs.benchmarks.loads import make_trainer, shells
    from nfc_gs.benchmarks.stopwatch import Stopwatch
    from nfc_gs.rasterizers.cpu import Cpu

    load = shells(splats, 0).seen(*load_size)
    done: dict[str, Callable[[], float]] = {}
    trainers = {}

    def trainer(name: str):
        if name not in trainers:
            made = make_trainer(load, "regression" if name == "regression" else "nfc", Cpu(), 0)
            rates = made.optimizer.rates
            made.optimizer.rates = lambda step: dict.fromkeys(rates(step), 0.0)
            trainers[name] = made
        return trainers[name]

    def step(name: str) -> Callable[[], float]:
        made = trainer(name)

        def once() -> float:
            made.done = LATE if name == "nfc_off" else FIRST + made.done % 100
            began = time.perf_counter()
            made.step()
            return 1e3 * (time.perf_counter() - began)

        return once

    def drawing(channels: int) -> Callable[[], float]:
        made = trainer("regression")
        draw = cells._drawing(made, channels, 0)
        stopwatch = Stopwatch(time.perf_counter)

        def once() -> float:
            stopwatch.reset()
            with cells._watched(made, stopwatch), stopwatch.part("rest"):
                draw()
            return sum(stopwatch.milliseconds[name] for name in cells.RASTERIZATION)

        return once

    def named(name: str) -> Callable[[], float]:
        if name not in done:
            done[name] = drawing(int(name[4:])) if name.startswith("draw") else step(name)
        return done[name]

    return named


def serve(size: tuple[int, int], splats: int) -> None:
    """A worker: a line of JSON in, the milliseconds of each repetition out."""
    from nfc_gs.training.run import use_threads

    named = work_for(size, splats)
    for line in sys.stdin:
        asked = json.loads(line)
        use_threads(asked["threads"])
        once = named(asked["work"])
        print(json.dumps([once() for _ in range(asked["count"])]), flush=True)


@contextmanager
def tree_of(state: str) -> Iterator[Path]:
    """The folder of a state: itself, or a checkout of the revision that is removed afterwards."""
    if Path(state).is_dir():
        if not (Path(state) / "nfc_gs/__init__.py").is_file():
            # The package that is installed would be timed in its name.
            raise UserError(f"{state}: is no tree of this project: it has no nfc_gs")
        yield Path(state).resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        added = subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(tree), state], capture_output=True, text=True
        )
        if added.returncode:
            raise UserError(f"{state}: neither a folder nor a revision of this repository")
        try:
            yield tree
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], capture_output=True)


def run(race: Race) -> dict[Ask, list[float]]:
    """The quickest milliseconds of every turn, by what was asked."""
    asks = [
        Ask(s, w, t)
        for w in race.works
        for t in race.threads
        for s in race.states
        if w in STEPS or t == race.threads[0]
    ]
    with ExitStack() as stack:
        workers = {}
        for state in race.states:
            tree = stack.enter_context(tree_of(state))
            command = [
                sys.executable,
                __file__,
                "--worker",
                "--splats",
                str(race.splats),
                "--pixels",
                "{}x{}".format(*race.size),
            ]
            worker = subprocess.Popen(
                command,
                cwd=tree,
                env={**os.environ, "PYTHONPATH": str(tree)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(worker.wait)
            assert worker.stdin is not None
            stack.callback(_close, worker.stdin)
            workers[state] = worker

        def ask(what: Ask, count: int) -> list[float]:
            worker = workers[what.state]
            assert worker.stdin is not None and worker.stdout is not None
            with suppress(BrokenPipeError):
                worker.stdin.write(json.dumps({"work": what.work, "threads": what.threads, "count": count}) + "\n")
                worker.stdin.flush()
            answer = worker.stdout.readline()
            if not answer:
                raise UserError(f"{what.state}: its worker ended while it did {what.work!r}; its traceback is above")
            return list(json.loads(answer))

        for what in asks * 2:  # compiles, then warms
            ask(what, 2)
        taken: dict[Ask, list[float]] = {what: [] for what in asks}
        began = time.monotonic()
        while time.monotonic() - began < race.seconds or len(taken[asks[0]]) < 2:
            for what in asks if len(taken[asks[0]]) % 2 == 0 else reversed(asks):
                taken[what].append(min(ask(what, race.count)))
        return taken


def _close(stream: IO[str]) -> None:
    """Also of a worker that has ended, with what it never read."""
    with suppress(BrokenPipeError):
        stream.close()


def quartiles(values: Sequence[float] | np.ndarray, digits: int) -> str:
    """The median, and the quartiles in brackets."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def report(race: Race, taken: dict[Ask, list[float]]) -> str:
    """Markdown: milliseconds, then ratios of the same turn, of which the aims are."""
    turns = len(next(iter(taken.values())))
    lines = [
        f"{race.splats:,} Gaussians, {race.size[0]}x{race.size[1]}, {turns} turns, the best of {race.count} steps each; "
        "medians (quartiles).",
        "",
        "| state | work | threads | ms | by the first state |",
        "|---|---|---|---|---|",
    ]
    arrays = {what: np.array(values) for what, values in taken.items()}
    for what, values in arrays.items():
        first = arrays[Ask(race.states[0], what.work, what.threads)]
        by_first = "" if what.state == race.states[0] else quartiles(values / first, 3)
        lines.append(f"| {what.state} | {what.work} | {what.threads} | {quartiles(values, 1)} | {by_first} |")
    lines += ["", "| state | ratio | threads | |", "|---|---|---|---|"]
    for state in race.states:
        for name, threads, ratio in ratios(race, arrays, state):
            lines.append(f"| {state} | {name} | {threads} | {quartiles(ratio, 3)} |")
    return "\n".join(lines)


def ratios(race: Race, arrays: dict[Ask, np.ndarray], state: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """What one state's times say of each other, turn by turn: a name, threads, values."""
    few, *more = race.threads

    def of(work: str, threads: int = few) -> np.ndarray | None:
        return arrays.get(Ask(state, work, threads))

    step, draw = of("regression"), of("draw3")
    for threads in more:
        if step is not None:
            yield (
                "step, one thread by more" if few == 1 else "step, fewer threads by more",
                f"{few} by {threads}",
                step / arrays[Ask(state, "regression", threads)],
            )
    if step is not None and draw is not None:
        yield "step by rasterization of 3 channels", str(few), step / draw
    for work in race.works:
        wide = of(work)
        if draw is not None and wide is not None and work.startswith("draw") and work != "draw3":
            yield f"rasterization of {work[4:]} channels by 3", str(few), wide / draw
    for threads in race.threads:
        plain, on, off = (of(work, threads) for work in STEPS)
        if plain is not None and on is not None:
            yield "step of nfc with its loss by regression's", str(threads), on / plain
        if plain is not None and off is not None:
            yield "step of nfc without its loss by regression's", str(threads), off / plain
        if plain is not None and on is not None and off is not None:
            yield (
                f"nfc over a training, its loss on for {LOSS_ON:.0%}",
                str(threads),
                (LOSS_ON * on + (1 - LOSS_ON) * off) / plain,
            )


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height or width)


def _whole(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _wholes(text: str) -> tuple[int, ...]:
    return tuple(map(_whole, text.split(",")))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "states", nargs="*", default=["."], help="revisions or folders; the first is what others are compared with"
    )
    parser.add_argument(
        "--works", default="regression,nfc,nfc_off,draw3,draw15,draw24", help="steps, or rasterizations of N channels"
    )
    parser.add_argument(
        "--threads", type=_wholes, default=(1, 2), metavar="N,...", help="drawN is asked of the first number only"
    )
    parser.add_argument("--splats", type=_whole, default=50_000)
    parser.add_argument("--pixels", type=_size, default=(400, 400), metavar="N or WxH")
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--count", type=_whole, default=3, help="steps an answer, of which the quickest counts")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        serve(chosen.pixels, chosen.splats)
        return
    race = Race(
        states=tuple(dict.fromkeys(chosen.states)),
        works=tuple(chosen.works.split(",")),
        threads=chosen.threads,
        splats=chosen.splats,
        size=chosen.pixels,
        seconds=chosen.seconds,
        count=chosen.count,
    )
    try:
        for work in race.works:
            if work not in STEPS and not (work.startswith("draw") and work[4:].isdigit() and int(work[4:]) > 0):
                raise UserError(f"--works: {work!r} is neither of {', '.join(STEPS)} nor drawN")
        print(report(race, run(race)))
    except UserError as mistake:
        print(f"step_race: {mistake}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
