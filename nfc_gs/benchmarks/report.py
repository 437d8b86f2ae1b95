"""The cells as tables for people and as JSON for whoever compares; and what machine and code they are of."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import nfc_gs
from nfc_gs.benchmarks.cells import EDIT_EVERY, RASTERIZATION, Cell, Peak, Spread
from nfc_gs.config import UserError

# Wide enough for two columns of threads, when no terminal says how wide it is.
WIDTH = 120
PACKAGES = ("torch", "numpy", "numba", "llvmlite")


class ReportError(UserError):
    """The JSON file cannot be written."""


def surroundings() -> dict[str, Any]:
    """The commit (None, with the reason, outside a git checkout), the machine and the versions."""
    commit, reason = _commit()
    return {
        "commit": commit,
        "commit_reason": reason,
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        },
        "versions": {
            "nfc-gs": nfc_gs.__version__,
            "python": sys.version.split()[0],
            **{name: version(name) for name in PACKAGES},
        },
    }


def _commit() -> tuple[str | None, str]:
    folder = Path(nfc_gs.__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "."],
            cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None, f"{folder} is no git checkout, or there is no git"
    return head.stdout.strip(), "with uncommitted changes" if changed.stdout.strip() else ""


def _processor() -> str:
    """Its name where Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_json(cells: Sequence[Cell], settings: dict[str, Any], path: Path) -> None:
    """Everything that was measured, times in milliseconds as median and quartiles.

    Raises:
        ReportError: the file cannot be written.
    """
    record = {**surroundings(), "settings": settings, "cells": [dataclasses.asdict(cell) for cell in cells]}
    try:
        path.write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise ReportError(f"{path}: cannot be written: {error.strerror or error}") from None


def show(cells: Sequence[Cell], title: str) -> None:
    """Prints the tables."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    console.print(f"{title}\nIn brackets: the quartiles.", markup=False)
    sizes: dict[tuple[int, int, int], list[Cell]] = {}
    for cell in cells:
        sizes.setdefault((cell.splats, cell.width, cell.height), []).append(cell)
    for (splats, width, height), group in sizes.items():
        console.print(f"\n{splats:,} splats, {width}x{height} pixels", style="bold")
        console.print(_parts(group))
        console.print(_drawings(group))
    console.print()
    console.print(_summary(cells))
    unknown = {cell.peak.reason for cell in cells if cell.peak.reason}
    for reason in sorted(unknown):
        console.print(f"peak memory is not known: {reason}")


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _time(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def _pair(milliseconds: float, cell: Cell) -> str:
    pairs = next((drawing.pairs for drawing in cell.drawings if drawing.pairs), None)
    return f"{1e6 * milliseconds / pairs:.2f}" if pairs else "-"


def _megabytes(peak: Peak) -> str:
    return "-" if peak.megabytes is None else f"{peak.megabytes:,.0f}"


def _parts(group: Sequence[Cell]) -> Table:
    """A step's parts, in the order in which they happen."""
    table = Table()
    table.add_column("part of a step", no_wrap=True)
    for cell in group:
        table.add_column(f"{_threads(cell.threads)}: ms", justify="right")
        table.add_column("share", justify="right")
        table.add_column("ns/pair", justify="right")
    names = dict.fromkeys(name for cell in group for name in cell.parts if name != "rest")
    for name in (*names, "rest"):
        row = [name]
        for cell in group:
            spread = cell.parts.get(name, Spread(0.0, 0.0, 0.0))
            row += [_time(spread), f"{spread.median / cell.step.median:.0%}", _pair(spread.median, cell)]
        table.add_row(*row)
    table.add_section()
    whole, ratio = ["whole step"], ["... by rasterization alone"]
    edits, decodes = [f"change every {EDIT_EVERY} steps"], ["reading a photograph"]
    for cell in group:
        whole += [_time(cell.step), "100%", _pair(cell.step.median, cell)]
        ratio += [f"x {cell.ratio.median:.2f} ({cell.ratio.low:.2f}-{cell.ratio.high:.2f})", "", ""]
        edits += [f"{cell.edit:.1f}", "", ""]
        decodes += [f"{cell.decode:.1f}", "", ""]
    for row in (whole, ratio, edits, decodes):
        table.add_row(*row)
    return table


def _drawings(group: Sequence[Cell]) -> Table:
    """Rasterization alone."""
    table = Table()
    table.add_column("rasterization alone", no_wrap=True)
    for name in ("lists", "forward", "backward", "sum: ms", "ns/pair", "pairs", "peak MB"):
        table.add_column(name)
    for column in table.columns[1:]:
        column.justify = "right"
    for cell in group:
        for drawing in cell.drawings:
            parts = [drawing.parts[name].median if name in drawing.parts else None for name in RASTERIZATION]
            median = drawing.rasterization.median
            table.add_row(
                f"{drawing.channels} channels, {_threads(cell.threads)}",
                *("-" if part is None else f"{part:.2f}" for part in parts),
                _time(drawing.rasterization),
                f"{1e6 * median / drawing.pairs:.2f}" if drawing.pairs else "-",
                "-" if drawing.pairs is None else f"{drawing.pairs / 1e6:.2f} M",
                _megabytes(drawing.peak),
            )
    return table


def _summary(cells: Sequence[Cell]) -> Table:
    """One line a cell."""
    table = Table("splats", "pixels", "threads", "step: ms", "step / rasterization", "peak MB", "bytes/splat")
    for column in table.columns:
        column.justify = "right"
    for cell in cells:
        table.add_row(
            f"{cell.splats:,}", f"{cell.width}x{cell.height}", str(cell.threads), _time(cell.step),
            f"{cell.ratio.median:.2f}", _megabytes(cell.peak), f"{cell.persistent_bytes:.0f}",
        )  # fmt: skip
    return table
