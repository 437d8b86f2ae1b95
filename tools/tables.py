"""Run folders -> a Markdown table (mean +- sample standard deviation over seeds) and the curves PSNR against minutes.

    python tools/tables.py --output benchmarks/static_cpu.md runs/bench/*

Runs that differ in nothing but the seed make one row. The curves go to an SVG beside the table.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from nfc_gs.studies.results import read_curve, read_metrics, read_settings
from nfc_gs.studies.tables import spread

COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#edae49", "#6a4c93", "#66717e", "#00798c", "#8d5524")


def read_run(folder: Path) -> dict[str, Any]:
    """One run's settings, metrics and curve of (minutes, held-out PSNR)."""
    curve = [(look.seconds / 60, look.psnr) for look in read_curve(folder)]
    metrics = read_metrics(folder / "metrics.json")
    return {"folder": folder, "settings": read_settings(folder), "metrics": metrics, "curve": curve}


def name_of(run: dict[str, Any]) -> str:
    """The run's name without its seed, as fox_nfc of fox_nfc_s1."""
    return run["settings"]["name"].removesuffix(f"_s{run['settings']['seed']}")


def table(groups: dict[str, list[dict[str, Any]]]) -> str:
    """One row for each group."""
    lines = [
        "| run | seeds | steps | views | size | PSNR dB | SSIM | LPIPS-Alex | Gaussians | minutes | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in groups.items():
        m = [run["metrics"] for run in runs]
        lines.append(
            f"| {name} | {' '.join(str(run['settings']['seed']) for run in runs)} | {m[0]['steps']} "
            f"| {m[0]['num_test_views']} | {m[0]['resolution']} "
            f"| {spread([x['psnr'] for x in m], 2)} | {spread([x['ssim'] for x in m], 4)} "
            f"| {spread([x['lpips_alex'] for x in m], 4)} | {spread([x['num_gaussians'] for x in m], 0)} "
            f"| {spread([x['train_seconds'] / 60 for x in m], 2)} | {spread([x.get('peak_megabytes') for x in m], 0)} |"
        )
    return "\n".join(lines)


def conditions(runs: list[dict[str, Any]]) -> str:
    """Commit, device and versions, as the runs recorded them."""
    said = sorted(
        {
            f"commit {m['commit']}{' with uncommitted changes' if m['uncommitted_changes'] else ''}, {m['device']}, "
            + ", ".join(f"{name} {version}" for name, version in m["versions"].items())
            for m in (run["metrics"] for run in runs)
        }
    )
    return "\n".join(f"- {line}" for line in said)


def svg(groups: dict[str, list[dict[str, Any]]]) -> str:
    """Held-out PSNR against minutes of training, one thin line for each seed."""
    points = [point for runs in groups.values() for run in runs for point in run["curve"]]
    if not points:
        return ""
    right = max(x for x, _ in points) * 1.02
    low, high = min(y for _, y in points) - 0.5, max(y for _, y in points) + 0.5
    width, height, left, bottom = 720, 420, 50, 40

    def place(x: float, y: float) -> str:
        return f"{left + x / right * (width - left - 10):.1f},{(high - y) / (high - low) * (height - bottom - 10) + 10:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
    ]
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for y in range(int(low) + 1, int(high) + 1):
        a, b = place(0, y), place(right, y)
        parts.append(f'<polyline points="{a} {b}" stroke="#ddd" fill="none"/>')
        parts.append(f'<text x="{left - 8}" y="{float(a.split(",")[1]) + 4}" text-anchor="end">{y}</text>')
    for x in range(int(right) + 1):
        parts.append(
            f'<text x="{place(x, low).split(",")[0]}" y="{height - bottom + 18}" text-anchor="middle">{x}</text>'
        )
    parts.append(f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">minutes of training</text>')
    parts.append(
        f'<text x="14" y="{height / 2}" transform="rotate(-90 14 {height / 2})" text-anchor="middle">held-out PSNR, dB</text>'
    )
    for number, (name, runs) in enumerate(groups.items()):
        colour = COLOURS[number % len(COLOURS)]
        for run in runs:
            line = " ".join(place(x, y) for x, y in run["curve"])
            parts.append(f'<polyline points="{line}" stroke="{colour}" fill="none" stroke-width="1.5"/>')
        parts.append(
            f'<text x="{width - 20}" y="{height - bottom - 12 - 16 * number}" text-anchor="end" fill="{colour}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>"])


def main() -> None:
    """Parses, reads, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="the Markdown file; the curves go beside it as .svg")
    parser.add_argument("--title", default="Results")
    parser.add_argument(
        "--note", default="", help="a sentence to stand under the title, as the command that made the runs"
    )
    chosen = parser.parse_args()
    runs = [read_run(folder) for folder in chosen.runs if (folder / "metrics.json").is_file()]
    if not runs:
        sys.exit("tables: none of these folders holds a metrics.json; train them first")
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[name_of(run)].append(run)
    text = [f"# {chosen.title}", "", chosen.note, "", table(groups), ""]
    curves = svg(groups)
    if curves:
        picture = chosen.output.with_suffix(".svg")
        picture.write_text(curves)
        text += [f"![held-out PSNR against minutes]({picture.name})", ""]
    text += [
        "Held-out views only, the last model and not the best; mean ± sample standard deviation over the seeds.",
        "",
        conditions(runs),
        "",
    ]
    chosen.output.write_text("\n".join(text))
    print(f"{len(runs)} runs, {len(groups)} rows: {chosen.output}")


if __name__ == "__main__":
    main()
