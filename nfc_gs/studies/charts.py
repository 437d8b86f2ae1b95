"""Plots of a study as PNG: gains with their intervals, and the held-out PSNR against minutes of training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from nfc_gs.studies.results import Results
from nfc_gs.studies.statistics import Estimate, estimate
from nfc_gs.studies.tables import Group, groups, psnr_gain

# Colours that stay apart for most kinds of colour blindness (Okabe and Ito 2008), black last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B6914", "#000000")
GREY, PALE = "#666666", "#DDDDDD"
# Drawn this much larger and then averaged down, as Pillow's lines are not smooth.
FINE = 2
FONT = 13


@dataclass(frozen=True)
class Line:
    """Connected points, in the units of its panel."""

    points: Sequence[tuple[float, float]]
    colour: str
    width: float = 1.5


@dataclass(frozen=True)
class Dot:
    """A point with a bar from `low` to `high` through it, along x; no bar where they are None."""

    x: float
    y: float
    colour: str
    radius: float = 4.0
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Panel:
    """Axes with what is drawn in them; `rows` are names along y in place of numbers, at 0, 1, ... from the top."""

    title: str
    x_label: str
    marks: Sequence[Line | Dot]
    rows: Sequence[str] = ()
    zero: bool = False
    size: tuple[int, int] = (320, 230)
    keys: Sequence[tuple[str, str]] = field(default=())


def draw_gains(results: Results, path: Path) -> bool:
    """For each condition and length, what the arms gain over the first control; false, and no file, if nothing does.

    Large: the mean over scenes and its interval over seeds; small: the single scenes.
    """
    if not results.controls:
        return False
    control = results.controls[0]
    panels: list[Panel] = []
    for group in groups(results):
        arms = [arm for arm in results.arms if arm != control and group.compared(results.scenes, arm, control)]
        marks: list[Line | Dot] = []
        for row, arm in enumerate(arms):
            marks += _gains_of(results, group, arm, control, row)
        if marks:
            panels.append(
                Panel(
                    title=f"{group.condition}, {group.length:,} steps",
                    x_label=f"PSNR over {control}, dB",
                    marks=marks,
                    rows=arms,
                    zero=True,
                    size=(420, 60 + 22 * len(arms) + 40),
                )
            )
    if not panels:
        return False
    draw_panels(panels, columns=min(3, len(panels)), path=path)
    return True


def draw_curves(results: Results, path: Path) -> bool:
    """For each scene and condition, at their longest runs, held-out PSNR against minutes, a line for each seed."""
    longest: dict[tuple[str, str], Group] = {}
    for group in groups(results):
        for scene in group.scenes(results.scenes):
            there = longest.get((scene, group.condition))
            if there is None or there.length < group.length:
                longest[scene, group.condition] = group
    conditions = [name for name in results.conditions if any(condition == name for _, condition in longest)]
    scenes = [name for name in results.scenes if any(scene == name for scene, _ in longest)]
    colours = {arm: COLOURS[number % len(COLOURS)] for number, arm in enumerate(results.arms)}
    panels: list[Panel] = []
    for scene in scenes:
        for condition in conditions:
            group = longest.get((scene, condition), Group(condition, 0, {}))
            records = [record for arm in results.arms for record in group.records.get((scene, arm), {}).values()]
            marks = [
                Line([(look.seconds / 60, look.psnr) for look in record.curve], colours[record.cell.arm])
                for record in records
                if len(record.curve) > 1
            ]
            title = f"{scene}, {condition}, {group.length:,} steps" if marks else f"{scene}, {condition}: not run"
            keys = [(arm, colours[arm]) for arm in results.arms] if not panels else []
            panels.append(Panel(title=title, x_label="minutes", marks=marks, keys=keys))
    if not any(panel.marks for panel in panels):
        return False
    draw_panels(panels, columns=len(conditions), path=path)
    return True


def _gains_of(results: Results, group: Group, arm: str, control: str, row: int) -> list[Line | Dot]:
    scenes = group.compared(results.scenes, arm, control)
    colour = COLOURS[results.arms.index(arm) % len(COLOURS)]
    by_scene = [estimate(group.gains(scene, arm, control, psnr_gain).values()) for scene in scenes]
    marks: list[Line | Dot] = [Dot(found.mean, row + 0.22, GREY, 2.0) for found in by_scene if found is not None]
    whole: Estimate | None = estimate(group.mean_gains(scenes, arm, control, psnr_gain))
    if whole is not None:
        half = whole.half
        low, high = (None, None) if half is None else (whole.mean - half, whole.mean + half)
        marks.append(Dot(whole.mean, row, colour, 4.0, low, high))
    return marks


def draw_panels(panels: Sequence[Panel], columns: int, path: Path) -> None:
    """Panels in rows from the left; the file appears when it is complete."""
    width = max(panel.size[0] for panel in panels)
    height = max(panel.size[1] for panel in panels)
    keys = [key for panel in panels for key in panel.keys]
    rows = math.ceil(len(panels) / columns)
    footer = 22 * math.ceil(len(keys) / max(width * columns // 150, 1)) + 8 if keys else 0
    sheet = Image.new("RGB", (width * columns * FINE, (height * rows + footer) * FINE), "white")
    pen = ImageDraw.Draw(sheet)
    for number, panel in enumerate(panels):
        _Axes(pen, panel, (number % columns) * width, (number // columns) * height, width, height).draw()
    per_row = max(width * columns // 150, 1)
    for number, (name, colour) in enumerate(keys):
        x, y = 14 + (number % per_row) * 150, height * rows + 12 + 22 * (number // per_row)
        pen.line([(x * FINE, y * FINE), ((x + 18) * FINE, y * FINE)], fill=colour, width=3 * FINE)
        _write(pen, (x + 24, y), name, "lm")
    partial = path.with_name(path.name + ".partial")
    sheet.resize((sheet.width // FINE, sheet.height // FINE), Image.Resampling.LANCZOS).save(
        partial, format="PNG", optimize=True
    )
    partial.replace(path)


def _write(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str, colour: str = "black") -> None:
    pen.text(
        (place[0] * FINE, place[1] * FINE), text, fill=colour, font=ImageFont.load_default(FONT * FINE), anchor=anchor
    )


class _Axes:
    """A panel's rectangle on the sheet, and where its numbers fall in it."""

    def __init__(
        self, pen: ImageDraw.ImageDraw, panel: Panel, left: float, top: float, width: float, height: float
    ) -> None:
        self.pen, self.panel = pen, panel
        self.left = left + (14 + max((7.2 * len(row) for row in panel.rows), default=36))
        self.right, self.top, self.bottom = left + width - 14, top + 30, top + height - 38
        xs = [x for mark in panel.marks for x in _across(mark)] or [0.0, 1.0]
        ys = [y for mark in panel.marks for y in ([p[1] for p in mark.points] if isinstance(mark, Line) else [mark.y])]
        self.x_range = _widened(min(xs), max(xs), zero=panel.zero)
        self.y_range = (
            (len(panel.rows) - 0.4, -0.6) if panel.rows else _widened(min(ys or [0]), max(ys or [1]), zero=False)
        )

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a pair of numbers falls, in pixels of the finished sheet."""
        across = (x - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
        up = (y - self.y_range[0]) / (self.y_range[1] - self.y_range[0])
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def draw(self) -> None:
        """The grid, the names, and the marks."""
        _write(self.pen, ((self.left + self.right) / 2, self.top - 16), self.panel.title, "mm")
        _write(self.pen, ((self.left + self.right) / 2, self.bottom + 27), self.panel.x_label, "mm", GREY)
        for x in _ticks(*self.x_range):
            here = self.place(x, self.y_range[0])[0]
            self._line([(here, self.top), (here, self.bottom)], GREY if self.panel.zero and x == 0 else PALE, 1)
            _write(self.pen, (here, self.bottom + 10), f"{x:g}", "mm", GREY)
        if self.panel.rows:
            for number, name in enumerate(self.panel.rows):
                _write(self.pen, (self.left - 8, self.place(0, number)[1]), name, "rm")
        else:
            for y in _ticks(*self.y_range):
                here = self.place(self.x_range[0], y)[1]
                self._line([(self.left, here), (self.right, here)], PALE, 1)
                _write(self.pen, (self.left - 6, here), f"{y:g}", "rm", GREY)
        for mark in self.panel.marks:
            if isinstance(mark, Line):
                self._line([self.place(x, y) for x, y in mark.points], mark.colour, mark.width)
            else:
                self._dot(mark)

    def _dot(self, dot: Dot) -> None:
        x, y = self.place(dot.x, dot.y)
        if dot.low is not None and dot.high is not None:
            self._line([self.place(dot.low, dot.y), self.place(dot.high, dot.y)], dot.colour, 2)
        self.pen.ellipse(
            [c * FINE for c in (x - dot.radius, y - dot.radius, x + dot.radius, y + dot.radius)], fill=dot.colour
        )

    def _line(self, points: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        self.pen.line(
            [(x * FINE, y * FINE) for x, y in points], fill=colour, width=max(round(width * FINE), 1), joint="curve"
        )


def _across(mark: Line | Dot) -> list[float]:
    if isinstance(mark, Line):
        return [x for x, _ in mark.points]
    return [x for x in (mark.x, mark.low, mark.high) if x is not None]


def _widened(low: float, high: float, zero: bool) -> tuple[float, float]:
    """A range with a margin, that holds zero if it must."""
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers in a range."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(number * step, 10) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
