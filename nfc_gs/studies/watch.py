"""What a sweep shows of itself: a live table on a terminal, a line for each event elsewhere."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text


class Counts(Protocol):
    """What the table counts."""

    finished: list[str]
    failed: dict[str, str]


class Watch:
    """Shows how many runs are done, and what each of those that run says last."""

    def __init__(self, console: Console, budget_hours: float | None) -> None:
        self.console, self.budget_hours = console, budget_hours
        self.total = self.done_before = 0
        self.began = time.monotonic()
        self.live = Live(console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> "Watch":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def begin(self, total: int, finished: int) -> None:
        """Says what lies ahead."""
        self.total, self.done_before = total, finished
        self.note(f"{total} runs, of which {finished} are finished")

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def show(self, running: Sequence[tuple[str, str]], counts: Counts, waiting: int, spent: float) -> None:
        """Draws the table anew, on a terminal."""
        if not self.console.is_terminal:
            return
        table = Table(box=None, pad_edge=False)
        table.add_column("running", no_wrap=True)
        table.add_column("last said", no_wrap=True, overflow="ellipsis")
        for name, said in running:
            table.add_row(Text(name), Text(said))
        budget = "" if self.budget_hours is None else f" of {self.budget_hours:g}"
        summary = (
            f"{len(counts.finished)} of {self.total} finished, {len(running)} running, {waiting} waiting, "
            f"{len(counts.failed)} failed; {spent:.2f}{budget} core-hours{self._remaining(counts)}"
        )
        self.live.update(Group(Text(summary), table))

    def _remaining(self, counts: Counts) -> str:
        """How long it may still take, from those that this sweep has finished."""
        done = len(counts.finished) - self.done_before
        if done < 1:
            return ""
        left = self.total - len(counts.finished) - len(counts.failed)
        minutes = (time.monotonic() - self.began) / 60 / done * left
        return f"; about {minutes:.0f} minutes left" if minutes < 120 else f"; about {minutes / 60:.1f} hours left"
