"""Run folders beside published numbers, scene by scene, as papers show them.

    python tools/published.py --output benchmarks/reproduction.md runs/published
    python tools/published.py --table mipnerf360

The numbers of others are in benchmarks/published.yaml, each with where it was read. A run stands in a table if its settings
are the table's: the same pictures, split and steps; what is left out is listed with the reason. A mean is only ever shown of
all the scenes that it is named after, so that the mean of seven scenes is never read as that of nine.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

NUMBERS = Path(__file__).parents[1] / "benchmarks" / "published.yaml"
# Metrics as they are headed, and the digits that papers give. Networks of LPIPS are apart: their distances cannot be compared.
METRICS = {
    "psnr": ("PSNR, dB (more is better)", 2),
    "ssim": ("SSIM (more is better)", 3),
    "lpips_vgg": ("LPIPS by VGG (less is better)", 3),
    "lpips_alex": ("LPIPS by AlexNet (less is better)", 3),
}
NOT_RUN, NOT_COMPUTED, NOT_KNOWN = "not run", "not computed", "–"
# What may differ between the runs of one cell, which are then taken for seeds.
OWN = {"name", "output", "seed", "threads", "evaluation", "callbacks", "photographs_gb"}


class TableError(Exception):
    """What was asked for cannot be made into a table: one line."""


@dataclass(frozen=True)
class Method:
    """Published numbers by metric and scene, stated means by metric and mean, and digits where fewer were published."""

    name: str
    source: str
    pictures: str
    scores: Mapping[str, Mapping[str, float]]
    stated: Mapping[str, Mapping[str, float]]
    digits: Mapping[str, int]


@dataclass(frozen=True)
class Table:
    """A data set: its scenes, its means, what a run's settings must say, and others' numbers."""

    key: str
    title: str
    scenes: Sequence[str]
    means: Mapping[str, Sequence[str]]
    kind: str
    protocol: Mapping[str, Any]
    methods: Sequence[Method]


@dataclass(frozen=True)
class Run:
    """One finished run: its folder, its settings and its metrics.json."""

    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, Any]


@dataclass
class Ours:
    """Runs by label and scene, and why others were left out."""

    runs: dict[str, dict[str, list[Run]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    left_out: list[str] = field(default_factory=list)


def read_tables(path: Path = NUMBERS) -> dict[str, Table]:
    """The tables of a file of published numbers.

    Raises:
        TableError: the file is missing, or a number is of a scene or a mean that its table does not have.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise TableError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    tables = {}
    for key, table in content.items():
        methods = []
        for method in table.pop("methods"):
            scores = {metric: method[metric] for metric in METRICS if metric in method}
            stated = method.get("stated", {})
            for metric in (*scores, *stated):
                known = set(table["scenes"]) if metric in scores else set(table["means"])
                unknown = sorted({*scores.get(metric, ()), *stated.get(metric, ())} - known - set(table["means"]))
                if unknown or metric not in METRICS:
                    raise TableError(
                        f"{path}: {key}: {method['name']}: {metric}: {', '.join(unknown)} is not of this table"
                    )
            methods.append(
                Method(
                    name=method["name"],
                    source=method["source"],
                    pictures=method["pictures"],
                    scores=scores,
                    stated=stated,
                    digits=method.get("digits", {}),
                )
            )
        tables[key] = Table(key=key, methods=tuple(methods), **table)
    return tables


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """The finished runs at or below these folders.

    Raises:
        TableError: there are none, or one cannot be read.
    """
    runs = []
    for folder in folders:
        found = sorted(folder.rglob("metrics.json"))
        if not found:
            raise TableError(f"{folder}: holds no metrics.json, at whatever depth; train its runs first")
        for path in found:
            try:
                settings = yaml.safe_load((path.parent / "config.yaml").read_text())
                runs.append(Run(path.parent, settings, json.loads(path.read_text())))
            except (OSError, ValueError, yaml.YAMLError) as error:
                raise TableError(f"{path.parent}: cannot be read: {' '.join(str(error).split())}") from None
    return runs


def sort(table: Table, runs: Iterable[Run]) -> Ours:
    """The runs that belong into a table.

    Raises:
        TableError: two runs of one name and seed, or of one name and other settings, which would be averaged.
    """
    ours = Ours()
    for run in runs:
        if not _is_of(table, run):
            continue
        scene = _scene(run)
        reason = difference(table, scene, run)
        if reason:
            ours.left_out.append(f"{run.folder}: {reason}")
            continue
        label = label_of(table, scene, run)
        for other in ours.runs[label][scene]:
            if other.settings["seed"] == run.settings["seed"]:
                raise TableError(
                    f"{other.folder} and {run.folder} are both {label!r} on {scene} from one seed; name one only"
                )
            unlike = _unlike(other.settings, run.settings)
            if unlike:
                raise TableError(
                    f"{other.folder} and {run.folder} are both {label!r} on {scene}, but differ in {unlike}"
                )
        ours.runs[label][scene].append(run)
    return ours


def _is_of(table: Table, run: Run) -> bool:
    return run.settings.get("dataset", {}).get("kind") == table.kind and _scene(run) in table.scenes


def _scene(run: Run) -> str:
    return Path(str(run.settings.get("dataset", {}).get("folder", ""))).name


def difference(table: Table, scene: str, run: Run) -> str | None:
    """Why a run's numbers may not stand in a table, or None if they may."""
    for key, wanted in table.protocol.items():
        value: Any = run.settings
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                return f"its settings do not say {key}, which the table needs"
            value = value[part]
        right = wanted[scene] if isinstance(wanted, dict) else wanted
        if value not in (right if isinstance(right, list) else [right]):
            said = " or ".join(map(str, right)) if isinstance(right, list) else right
            return f"{key} is {value}, the table's is {said}"
    if run.settings.get("views", {}).get("count", 0):
        return f"views.count is {run.settings['views']['count']}: not all training views"
    spoilt = [name for name, value in run.settings.get("degradation", {}).items() if value]
    if spoilt:
        return f"degradation.{spoilt[0]} spoilt its training views"
    if run.metrics.get("steps") != run.settings.get("steps"):
        return f"it was measured after {run.metrics.get('steps')} of {run.settings.get('steps')} steps"
    if run.metrics.get("checkpoint") != "last":
        return (
            "it was measured at the checkpoint that was best on the held-out views; `nfc-gs eval` measures the last one"
        )
    # Records of before the split was named there say "test" of any held-out views.
    if run.metrics.get("split", "test") not in ("test", run.settings.get("dataset", {}).get("test_split")):
        return f"it was measured on its {run.metrics['split']} views"
    return None


def label_of(table: Table, scene: str, run: Run) -> str:
    """What a run is called without its data set, scene, condition `clean`, steps and seed, as `nfc-gs sweep` writes them."""
    name: str = run.settings["name"].removesuffix(f"_s{run.settings['seed']}")
    name = name.removesuffix(f"_{run.settings['steps']}")
    for prefix in (f"{table.key}_", scene, "_", "clean_"):
        name = name.removeprefix(prefix)
    return name or "nfc-gs"


def render(table: Table, ours: Ours) -> str:
    """The table as Markdown: a part for each metric, then sources, and what the runs were."""
    parts = [f"## {table.title}", ""]
    for metric, (heading, digits) in METRICS.items():
        rows = []
        for method in table.methods:
            if metric in method.scores or metric in method.stated:
                rows.append([method.name, *_published(table, method, metric, method.digits.get(metric, digits))])
        if not rows:
            continue
        for label, runs in sorted(ours.runs.items()):
            rows.append([f"**{label}** (ours)", *_own(table, runs, metric, digits)])
        if not ours.runs:
            rows.append(["ours", *[NOT_RUN] * len(table.scenes), *[NOT_KNOWN] * len(table.means)])
        parts += [f"{heading}:", "", _markdown(["method", *table.scenes, *table.means], rows), ""]
    if ours.runs:
        parts += [_cost(ours), ""]
    parts += [f"- {method.name}: {method.source}; pictures: {method.pictures}." for method in table.methods]
    parts += [f"- Left out: {line}." for line in ours.left_out]
    parts += [
        f"- Ours: {line}."
        for line in _conditions(run for runs in ours.runs.values() for s in runs.values() for run in s)
    ]
    return "\n".join([*parts, ""])


def mean(values: Mapping[str, float], scenes: Sequence[str]) -> float | None:
    """The mean over scenes, None unless all of them are there."""
    return statistics.mean(values[scene] for scene in scenes) if all(scene in values for scene in scenes) else None


def _published(table: Table, method: Method, metric: str, digits: int) -> list[str]:
    scores, stated = method.scores.get(metric, {}), method.stated.get(metric, {})
    cells = [f"{scores[scene]:.{digits}f}" if scene in scores else NOT_KNOWN for scene in table.scenes]
    for name, scenes in table.means.items():
        value = stated[name] if name in stated else mean(scores, scenes)
        cells.append(NOT_KNOWN if value is None else f"{value:.{digits}f}")
    return cells


def _own(table: Table, runs: Mapping[str, Sequence[Run]], metric: str, digits: int) -> list[str]:
    values: dict[str, float] = {}
    cells = []
    for scene in table.scenes:
        scores = [run.metrics.get(metric) for run in runs.get(scene, ())]
        known = [score for score in scores if score is not None]
        if not scores or len(known) < len(scores):
            cells.append(NOT_COMPUTED if scores else NOT_RUN)
            continue
        values[scene] = statistics.mean(known)
        deviation = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
        cells.append(f"{values[scene]:.{digits}f}{deviation}")
    for scenes in table.means.values():
        value = mean(values, scenes)
        cells.append(NOT_KNOWN if value is None else f"{value:.{digits}f}")
    return cells


def _cost(ours: Ours) -> str:
    rows = []
    for label, scenes in sorted(ours.runs.items()):
        runs = [run for of_scene in scenes.values() for run in of_scene]
        rows.append(
            [
                label,
                str(len(scenes)),
                " ".join(map(str, sorted({run.settings["seed"] for run in runs}))),
                f"{statistics.mean(run.metrics['num_gaussians'] for run in runs):,.0f}",
                f"{statistics.mean(run.metrics['train_seconds'] for run in runs) / 60:.1f}",
            ]
        )
    return _markdown(["ours", "scenes", "seeds", "Gaussians, mean", "minutes, mean"], rows)


def _conditions(runs: Iterable[Run]) -> list[str]:
    """Commits, devices, versions, backgrounds and sizes of the runs, as they recorded them."""
    return sorted(
        {
            f"commit {m.get('commit')}{' with uncommitted changes' if m.get('uncommitted_changes') else ''}, {m.get('device')}, "
            + "".join(f"{name} {version}, " for name, version in m.get("versions", {}).items())
            + f"background {m.get('background')}"
            for m in (run.metrics for run in runs)
        }
    )


def _unlike(one: dict[str, Any], other: dict[str, Any], path: str = "") -> str | None:
    """The first setting in which two runs differ other than by what is their own."""
    for key in sorted({*one, *other}, key=str):
        where = f"{path}{key}"
        if where in OWN:
            continue
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            deeper = _unlike(a, b, f"{where}.")
            if deeper:
                return deeper
        elif a != b:
            return f"{where} ({a} and {b})"
    return None


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, reads, writes; 2 for a mistake of the user's, after one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders, or folders that hold them at whatever depth")
    parser.add_argument("--table", action="append", metavar="NAME", help="only this table; can be given again")
    parser.add_argument("--numbers", type=Path, default=NUMBERS, metavar="FILE.yaml", help="the published numbers")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.md", help="where the tables go (default: they are printed)"
    )
    chosen = parser.parse_args(argv)
    try:
        tables = read_tables(chosen.numbers)
        unknown = sorted(set(chosen.table or ()) - set(tables))
        if unknown:
            raise TableError(f"no table {unknown[0]!r} ({', '.join(tables)})")
        runs = read_runs(chosen.runs)
        strangers = [run.folder for run in runs if not any(_is_of(table, run) for table in tables.values())]
        if strangers:
            print(f"published: {len(strangers)} runs are of no table's scenes (first: {strangers[0]})", file=sys.stderr)
        wanted = [table for key, table in tables.items() if not chosen.table or key in chosen.table]
        text = "# Beside published numbers\n\nHeld-out views only; of ours the last model, never the best.\n\n"
        text += "\n".join(render(table, sort(table, runs)) for table in wanted)
        if chosen.output is None:
            print(text, end="")
        else:
            chosen.output.parent.mkdir(parents=True, exist_ok=True)
            chosen.output.write_text(text)
            print(f"{len(wanted)} tables: {chosen.output}")
    except (TableError, OSError) as error:
        print(f"published: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
