"""`nfc-gs sweep`: a study from its file to its tables."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from nfc_gs.studies.matrix import Matrix, Planned, StudyError, plan, read_matrix
from nfc_gs.studies.report import write_report
from nfc_gs.studies.results import collect, read_results
from nfc_gs.studies.sweep import Outcome, State, look, sweep
from nfc_gs.studies.watch import Watch


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user asked for; None where the study or the machine shall decide."""

    study: Path
    overrides: tuple[str, ...] = ()
    workers: str | None = None
    jobs: int = 1
    threads: int | None = None
    retries: int = 1
    budget_hours: float | None = None
    report: Path | None = None
    dry_run: bool = False
    tables_only: bool = False


def run(wish: Wish, warm: Callable[[], object]) -> None:
    """Runs what is asked for, and says what came of it; `warm` compiles kernels, before that could count as a run's time.

    Raises:
        StudyError: a run failed, after all others have had their turn; or the study is described wrongly.
    """
    console = Console()
    if wish.study.suffix == ".json":
        if not wish.tables_only:
            raise StudyError(f"{wish.study}: holds results, from which only tables can be made: add --tables-only")
        if wish.overrides or wish.workers or wish.dry_run:
            raise StudyError(
                f"{wish.study}: holds results, which no setting changes: give it only --tables-only and --report, or name "
                "the study's YAML"
            )
        print(f"written: {write_report(read_results(wish.study), wish.report or wish.study.parent)}")
        return
    overrides = (*wish.overrides, *([f"workers.kind={wish.workers}"] if wish.workers else []))
    matrix = read_matrix(wish.study, overrides)
    runs = plan(matrix, wish.study, wish.threads or _threads(wish.jobs))
    if wish.dry_run:
        for planned in runs:
            print(f"{look(planned).value:9} {planned.cell.name}")
        print(f"{len(runs)} runs in {matrix.folder}")
        return
    outcome = Outcome()
    if wish.tables_only:
        outcome.finished = [planned.cell.name for planned in runs if look(planned) is State.FINISHED]
    else:
        watch = Watch(console, wish.budget_hours)
        if any(look(planned) is not State.FINISHED for planned in runs):
            warm()
        outcome = sweep(matrix, runs, jobs=wish.jobs, retries=wish.retries, budget_hours=wish.budget_hours, watch=watch)
    if outcome.finished:
        results = collect(matrix, runs, outcome.finished)
        print(f"{len(results.records)} of {len(runs)} runs: {write_report(results, wish.report or matrix.folder)}")
    elif wish.tables_only:
        raise StudyError(f"{matrix.folder}: no run of this study is finished; leave --tables-only away to run it")
    if outcome.left:
        print(
            f"budget of {wish.budget_hours:g} core-hours spent ({outcome.core_hours:.2f}); {len(outcome.left)} runs are left"
            f"{_still(matrix, runs, outcome)}; the same command goes on"
        )
    if outcome.failed:
        name, reason = next(iter(outcome.failed.items()))
        others = f" and {len(outcome.failed) - 1} more" if len(outcome.failed) > 1 else ""
        raise StudyError(f"{name}{others} failed: {reason}; see {matrix.folder / 'logs'}")


def _still(matrix: Matrix, runs: list[Planned], outcome: Outcome) -> str:
    """How long what is left will take, by what finished runs of the same scene took for a step."""
    seconds: dict[str, list[float]] = {}
    for record in collect(matrix, runs, outcome.finished).records:
        pace = record.metrics["train_seconds"] / record.metrics["steps"] * record.threads
        seconds.setdefault(record.cell.scene, []).append(pace)
    if not seconds:
        return ""
    known = [pace for paces in seconds.values() for pace in paces]
    left = set(outcome.left)
    total = 0.0
    for planned in runs:
        if planned.cell.name in left:
            paces = seconds.get(planned.cell.scene, known)
            total += sum(paces) / len(paces) * planned.cell.length
    return f" (about {total / 3600:.2g} core-hours of training)"


def _threads(jobs: int) -> int:
    """The cores this process may use, shared out."""
    # Only Linux says which cores a process may use.
    available = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(available // jobs, 1)
