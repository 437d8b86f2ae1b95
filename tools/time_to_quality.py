"""Run folders of a slow and of a fast schedule -> a Markdown table of how long each takes to the slow one's final PSNR.

    python tools/time_to_quality.py --output benchmarks/time_to_quality.md runs/ttq/*

A run's name is SCENE_SCHEDULE_sSEED, as fox_plain_s0. The target of a scene and seed is what the schedule `--slow` (plain)
reaches at its end; a run reaches it at its first look at the held-out views that is not below it, so that the time is at
most one interval of looks too long. Seconds are those of the processor (clock.csv, of callbacks.clock), looks not counted.
"""

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

from nfc_gs.studies.results import Look, read_metrics, read_settings
from nfc_gs.studies.tables import spread
from nfc_gs.training.callbacks.clock import FILE


def read_clock(folder: Path) -> tuple[Look, ...]:
    """A run's looks at its held-out views, by the processor's time."""
    if not (folder / FILE).is_file():
        sys.exit(f"time_to_quality: {folder}: has no {FILE}; train it with callbacks.clock={{}}")
    with (folder / FILE).open(newline="") as file:
        return tuple(
            Look(step=int(row["step"]), seconds=float(row["cpu_seconds"]), psnr=float(row["psnr"]))
            for row in csv.DictReader(file)
        )


def reached(curve: tuple[Look, ...], target: float) -> Look | None:
    """The first look that is not below the target [dB], if there is one."""
    return next((look for look in curve if look.psnr >= target), None)


def rows(curves: dict[tuple[str, str, str], tuple[Look, ...]], slow: str) -> list[str]:
    """A row for each scene, seed and schedule, the slow one's first."""
    lines = [
        "| scene | seed | schedule | steps | PSNR dB | against its target dB | CPU s in all | CPU s to it | of the slow one's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (scene, schedule, seed), curve in sorted(curves.items(), key=lambda item: _order(item[0], slow)):
        end, last = curves[scene, slow, seed][-1], curve[-1]
        there = reached(curve, end.psnr)
        took = "not reached | -" if there is None else f"{there.seconds:.0f} | {there.seconds / end.seconds:.2f}"
        if schedule == slow:
            took = f"{end.seconds:.0f} | 1"
        lines.append(
            f"| {scene} | {seed} | {schedule} | {last.step} | {last.psnr:.2f} | {last.psnr - end.psnr:+.2f} "
            f"| {last.seconds:.0f} | {took} |"
        )
    return lines


def summary(curves: dict[tuple[str, str, str], tuple[Look, ...]], slow: str) -> list[str]:
    """For each scene and schedule, what its seeds gained, and the share of the slow schedule's time they took."""
    gained: dict[tuple[str, str], list[float]] = defaultdict(list)
    shares: dict[tuple[str, str], list[float | None]] = defaultdict(list)
    for (scene, schedule, seed), curve in sorted(curves.items()):
        end = curves[scene, slow, seed][-1]
        there = reached(curve, end.psnr)
        if schedule != slow:
            gained[scene, schedule].append(curve[-1].psnr - end.psnr)
            shares[scene, schedule].append(None if there is None else there.seconds / end.seconds)
    lines = []
    for (scene, schedule), gains in gained.items():
        known = [share for share in shares[scene, schedule] if share is not None]
        took = (
            f"{spread(known, 2)} of the time to the target" if len(known) == len(gains) else "not reached by every seed"
        )
        lines.append(f"- {scene}, {schedule}: {spread(gains, 2)} dB at the end, {took}")
    return lines


def _order(run: tuple[str, str, str], slow: str) -> tuple[str, str, bool, str]:
    scene, schedule, seed = run
    return scene, seed, schedule != slow, schedule


def name_of(settings: dict[str, object]) -> tuple[str, str, str]:
    """Scene, schedule and seed, from the settings of a run called SCENE_SCHEDULE_sSEED."""
    name, seed = str(settings["name"]), str(settings["seed"])
    scene, found, schedule = name.removesuffix(f"_s{seed}").partition("_")
    if not found or not name.endswith(f"_s{seed}"):
        sys.exit(f"time_to_quality: {name} is not called SCENE_SCHEDULE_s{seed}")
    return scene, schedule, seed


def main() -> None:
    """Parses, reads, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--slow", default="plain", help="the schedule whose end is the target (default: plain)")
    parser.add_argument("--output", type=Path, help="the Markdown file to replace the tables of (default: print them)")
    chosen = parser.parse_args()
    finished = [folder for folder in chosen.runs if (folder / "metrics.json").is_file()]
    curves = {name_of(read_settings(folder)): read_clock(folder) for folder in finished}
    for scene, _, seed in curves:
        if (scene, chosen.slow, seed) not in curves:
            sys.exit(
                f"time_to_quality: no run {scene}_{chosen.slow}_s{seed} to compare the others with; train it first"
            )
    said = sorted(
        {
            f"- commit {m['commit']}{' with uncommitted changes' if m['uncommitted_changes'] else ''}, {m['device']}"
            for m in (read_metrics(folder / "metrics.json") for folder in finished)
        }
    )
    looks = [
        f"- {scene}_{schedule}_s{seed}: " + ", ".join(f"{look.seconds:.0f} s {look.psnr:.2f}" for look in curve)
        for (scene, schedule, seed), curve in sorted(curves.items())
    ]
    parts = [
        summary(curves, chosen.slow),
        rows(curves, chosen.slow),
        ["Every look, CPU seconds and PSNR:"],
        looks,
        said,
    ]
    text = "\n\n".join("\n".join(part) for part in parts) + "\n"
    if chosen.output is None:
        print(text, end="")
        return
    kept = chosen.output.read_text().partition(MARK)[0] if chosen.output.is_file() else ""
    chosen.output.write_text(f"{kept}{MARK}\n\n{text}")


# What stands above this line in the Markdown file is written by hand and stays.
MARK = "<!-- made by tools/time_to_quality.py -->"

if __name__ == "__main__":
    main()
