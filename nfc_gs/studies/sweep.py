"""The queue of a study: starts what is not finished, goes on with what is half done, and tries again what crashed."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from nfc_gs.config import dump, write
from nfc_gs.studies.matrix import Matrix, Planned, StudyError
from nfc_gs.studies.results import read_metrics
from nfc_gs.studies.watch import Watch
from nfc_gs.studies.workers.base import Order, Process, Workers
from nfc_gs.training.checkpoint import digest
from nfc_gs.training.run import CONFIG, LAST, METRICS, read_settings

logger = logging.getLogger(__name__)

# Seconds between looks at the processes.
LOOK = 0.25
# What `nfc-gs` ends with after a user's mistake, which another try would only repeat, and after an interruption.
MISTAKE, INTERRUPTED = 2, 130


class State(Enum):
    """How far a run is."""

    NEW = "new"
    HALF = "half done"
    FINISHED = "finished"


@dataclass
class Outcome:
    """What became of a sweep."""

    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    core_hours: float = 0.0


@dataclass
class _Place:
    """One of the places that work at the same time, and what is there."""

    slot: int
    run: Planned
    process: Process
    began: float


def look(run: Planned) -> State:
    """How far a run is, by its folder.

    Raises:
        StudyError: the folder holds a run of other settings.
    """
    folder = run.experiment.folder
    if not (folder / CONFIG).is_file():
        return State.NEW
    there = read_settings(folder)
    if digest(there) != digest(run.experiment):
        raise StudyError(
            f"{folder}: is a run of other settings ({_difference(there, run)}); move it away, or rename the study"
        )
    metrics = read_metrics(folder / METRICS) if (folder / METRICS).is_file() else None
    # `nfc-gs eval` may have measured a run on its way.
    if metrics is not None and metrics["steps"] == run.experiment.steps:
        return State.FINISHED
    return State.HALF if (folder / LAST).is_file() else State.NEW


def order_of(run: Planned, study: Path, slot: int) -> Order:
    """The process that begins a run or goes on with it."""
    folder = run.experiment.folder
    command = [sys.executable, "-m", "nfc_gs.cli", "train"]
    if look(run) is State.HALF:
        command += ["--resume", str(folder)]
    else:
        settings = study / "settings" / f"{run.cell.name}.yaml"
        settings.parent.mkdir(parents=True, exist_ok=True)
        write(run.experiment, settings)
        # What an earlier try left before its first checkpoint is of no use.
        command += [str(settings), *(["--overwrite"] if folder.exists() else [])]
    threads = run.experiment.threads
    return Order(
        name=run.cell.name,
        command=command,
        environment={"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"},
        log=study / "logs" / f"{run.cell.name}.log",
        threads=threads,
        slot=slot,
    )


def sweep(
    matrix: Matrix, runs: Sequence[Planned], *, jobs: int, retries: int, budget_hours: float | None, watch: Watch
) -> Outcome:
    """Runs what is not finished, `jobs` at a time.

    Core-hours are wall-clock hours times the threads of a run. When they reach `budget_hours` nothing more is started; what
    runs is brought to its end. Ctrl-C tells all runs to save and end, and waits for them; a second one does not.

    Raises:
        StudyError: a run's folder holds something else; found before anything is started.
    """
    outcome = Outcome()
    waiting = []
    for run in runs:
        if look(run) is State.FINISHED:
            outcome.finished.append(run.cell.name)
        else:
            waiting.append(run)
    places: list[_Place] = []
    tries: dict[str, int] = {}
    watch.begin(len(runs), len(outcome.finished))
    try:
        with watch:
            while places or waiting:
                for place in [place for place in places if place.process.status() is not None]:
                    places.remove(place)
                    outcome.core_hours += _core_hours(place)
                    if _settle(place, outcome, tries, retries, watch, matrix):
                        waiting.insert(0, place.run)
                spent = outcome.core_hours + sum(_core_hours(place) for place in places)
                used_up = budget_hours is not None and spent >= budget_hours
                while waiting and len(places) < jobs and not used_up:
                    places.append(_start(waiting.pop(0), places, matrix, matrix.workers))
                    watch.note(f"started   {places[-1].run.cell.name}")
                if used_up and not places:
                    break
                watch.show(
                    [(place.run.cell.name, _last_line(matrix, place)) for place in places], outcome, len(waiting), spent
                )
                time.sleep(LOOK)
    except BaseException:
        # Whatever went wrong here, nothing is left running behind the user's back.
        _stop(places)
        raise
    outcome.left = [run.cell.name for run in waiting]
    return outcome


def _start(run: Planned, places: list[_Place], matrix: Matrix, workers: Workers) -> _Place:
    taken = {place.slot for place in places}
    slot = next(number for number in range(len(places) + 1) if number not in taken)
    try:
        process = workers.start(order_of(run, matrix.folder, slot))
    except OSError as error:
        raise StudyError(f"{matrix.folder}: cannot be written to or started from: {error.strerror or error}") from None
    return _Place(slot, run, process, time.monotonic())


def _settle(place: _Place, outcome: Outcome, tries: dict[str, int], retries: int, watch: Watch, matrix: Matrix) -> bool:
    """Notes how a process ended; true if its run shall be tried again."""
    name, status = place.run.cell.name, place.process.status()
    if status == 0 and look(place.run) is State.FINISHED:
        outcome.finished.append(name)
        if not matrix.keep_models:
            shutil.rmtree(place.run.experiment.folder / LAST.parent, ignore_errors=True)
        watch.note(f"finished  {name}")
        return False
    tries[name] = tries.get(name, 0) + 1
    log = matrix.folder / "logs" / f"{name}.log"
    reason = _reason(status, log)
    if status != MISTAKE and tries[name] <= retries:
        watch.note(f"crashed   {name}: {reason}; trying again")
        return True
    outcome.failed[name] = reason
    watch.note(f"failed    {name}: {reason}; see {log}")
    return False


def _reason(status: int | None, log: Path) -> str:
    """Why a process ended, in a few words."""
    if status == MISTAKE:
        return _end_of(log).removeprefix("nfc-gs: ")
    if status == INTERRUPTED:
        return "interrupted from outside"
    if status is not None and status < 0:
        return f"ended by signal {-status}" + (" (out of memory?)" if status == -9 else "")
    return f"exit status {status}: {_end_of(log)}"


def _end_of(log: Path) -> str:
    """The last line of a log that says something."""
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
            lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _last_line(matrix: Matrix, place: _Place) -> str:
    return _end_of(matrix.folder / "logs" / f"{place.run.cell.name}.log")


def _core_hours(place: _Place) -> float:
    return (time.monotonic() - place.began) / 3600 * place.run.experiment.threads


def _stop(places: list[_Place]) -> None:
    """Every run saves and ends; a Ctrl-C while that is waited for ends them at once."""
    if not places:
        return
    logger.info("stopping %d runs; they save first (Ctrl-C again: at once)", len(places))
    for place in places:
        place.process.stop()
    try:
        while any(place.process.status() is None for place in places):
            time.sleep(LOOK)
    except KeyboardInterrupt:
        for place in places:
            place.process.stop()
        raise


def _difference(there: object, run: Planned) -> str:
    """The first setting in which a run's folder differs from what is planned."""
    flat_there, flat_planned = _flat(dump(there)), _flat(dump(run.experiment))
    ignored = (
        "name",
        "output",
        "threads",
        "callbacks",
        "photographs_gb",
        "photographs_disk_gb",
        "evaluation",
        "dataset.folder",
    )
    for key in (*flat_planned, *flat_there):
        if key.startswith(ignored) or flat_there.get(key) == flat_planned.get(key):
            continue
        return f"{key}: {flat_there.get(key)} there, {flat_planned.get(key)} planned"
    return "they differ in form only"


def _flat(settings: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(settings, dict):
        return {prefix: settings}
    flat: dict[str, object] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return flat
