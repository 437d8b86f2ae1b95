"""Run folders as records, and a study's records as one JSON file, from which alone every table and plot is made."""

import json
import logging
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nfc_gs.config import read
from nfc_gs.studies.matrix import Cell, Matrix, Planned, StudyError

FORMAT = 1
RESULTS = "results.json"
# Numbers of a run that tables are made of; the rest of metrics.json is kept too.
SCORES = ("psnr", "ssim", "lpips_alex", "lpips_squeeze")


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at the held-out views: after which step, after how many seconds of training, and what was seen."""

    step: int
    seconds: float
    psnr: float
    ssim: float | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finished run: metrics.json without its single views, and its looks at the held-out views in order."""

    cell: Cell
    threads: int
    metrics: dict[str, Any]
    curve: tuple[Look, ...]


@dataclass(frozen=True, kw_only=True)
class Results:
    """A study's finished runs, and in which order its axes are shown; `planned` is how many runs it shall have."""

    name: str
    arms: tuple[str, ...]
    controls: tuple[str, ...]
    scenes: tuple[str, ...]
    conditions: tuple[str, ...]
    words: dict[str, dict[str, list[str]]]
    planned: int
    records: tuple[Record, ...]


def read_metrics(path: Path) -> dict[str, Any]:
    """A run's metrics.json.

    Raises:
        StudyError: it is not JSON, or not a run's metrics.
    """
    try:
        metrics = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StudyError(f"{path}: cannot be read ({error}); `nfc-gs eval {path.parent}` writes it anew") from None
    if not isinstance(metrics, dict) or "psnr" not in metrics or "steps" not in metrics:
        raise StudyError(f"{path}: is not a run's metrics; `nfc-gs eval {path.parent}` writes it anew")
    return metrics


def read_curve(folder: Path) -> tuple[Look, ...]:
    """A run's looks at its held-out views, from its TensorBoard events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # It tells of every file it opens, and warns of runs that were resumed, whose repeated steps it rightly drops.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]

    def scalars(tag: str) -> dict[int, float]:
        return {event.step: event.value for event in events.Scalars(tag)} if tag in tags else {}

    seconds, psnr, ssim = (scalars(tag) for tag in ("time/train_seconds", "held_out/psnr", "held_out/ssim"))
    return tuple(
        Look(step=step, seconds=seconds[step], psnr=psnr[step], ssim=ssim.get(step))
        for step in sorted(psnr)
        if step in seconds and math.isfinite(psnr[step])
    )


def read_settings(folder: Path) -> dict[str, Any]:
    """A run's settings, as its config.yaml has them."""
    return read([folder / "config.yaml"])


def collect(matrix: Matrix, runs: Iterable[Planned], finished: Iterable[str]) -> Results:
    """The records of the finished runs of a study.

    Raises:
        StudyError: a run was measured at its best checkpoint, whose numbers would flatter it.
    """
    runs = list(runs)
    names = set(finished)
    records = []
    for run in runs:
        if run.cell.name not in names:
            continue
        folder = run.experiment.folder
        metrics = read_metrics(folder / "metrics.json")
        if metrics.get("checkpoint") != "last":
            raise StudyError(
                f"{folder / 'metrics.json'}: is of the checkpoint that was best on the held-out views; `nfc-gs eval {folder}` "
                "measures the last one"
            )
        if metrics["psnr"] is None:
            raise StudyError(
                f"{folder / 'metrics.json'}: has no PSNR: a held-out view is matched exactly, or none of its pixels "
                "counts; leave that view out"
            )
        metrics.pop("per_view", None)
        threads = read_settings(folder)["threads"]
        records.append(Record(cell=run.cell, threads=threads, metrics=metrics, curve=read_curve(folder)))
    axes = ("settings", "scenes", "conditions", "arms")
    return Results(
        name=matrix.name,
        arms=tuple(matrix.arms),
        controls=tuple(matrix.controls),
        scenes=tuple(matrix.scenes),
        conditions=tuple(matrix.conditions),
        words={
            axis: {"": list(matrix.settings)}
            if axis == "settings"
            else {n: list(w or ()) for n, w in getattr(matrix, axis).items()}
            for axis in axes
        },
        planned=len(runs),
        records=tuple(records),
    )


def write_results(results: Results, path: Path) -> None:
    """Writes a study's results, a record a line, under a temporary name first."""
    head = {"format": FORMAT, **{name: value for name, value in asdict(results).items() if name != "records"}}
    lines = [json.dumps(asdict(record), allow_nan=False) for record in results.records]
    text = (
        json.dumps(head, indent=1, allow_nan=False).removesuffix("\n}")
        + ',\n "records": [\n'
        + ",\n".join(lines)
        + "\n]}\n"
    )
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text)
        os.replace(partial, path)
    except OSError as error:
        raise StudyError(f"{path}: cannot be written: {error.strerror or error}") from None


def read_results(path: Path) -> Results:
    """The inverse of `write_results`.

    Raises:
        StudyError: there is no such file, or it is not a study's results.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise StudyError(f"{path}: no such file; `nfc-gs sweep STUDY.yaml` writes it") from None
    except (OSError, ValueError) as error:
        raise StudyError(f"{path}: cannot be read ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StudyError(f"{path}: is not a study's results of format {FORMAT}; `nfc-gs sweep STUDY.yaml` writes them")
    try:
        records = tuple(
            Record(
                cell=Cell(**record["cell"]),
                threads=record["threads"],
                metrics=record["metrics"],
                curve=tuple(Look(**look) for look in record["curve"]),
            )
            for record in content["records"]
        )
        return Results(
            name=content["name"],
            arms=tuple(content["arms"]),
            controls=tuple(content["controls"]),
            scenes=tuple(content["scenes"]),
            conditions=tuple(content["conditions"]),
            words=content["words"],
            planned=content["planned"],
            records=records,
        )
    except (KeyError, TypeError) as error:
        raise StudyError(
            f"{path}: lacks or misnames something ({error}); write it anew with `nfc-gs sweep STUDY.yaml`"
        ) from None
