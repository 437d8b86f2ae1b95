"""Shows how far the training is: a live bar on a terminal, a line now and then elsewhere."""

import math

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from nfc_gs.config import PositiveInt, spec
from nfc_gs.training.callbacks.base import Callback, End, Listener, Report, Session


class Bar(Listener):
    """Step, loss, PSNR, Gaussians, steps a second and the time that is left."""

    def __init__(self, session: Session, lines: int, every: int) -> None:
        self.session, self.every = session, every
        self.console = Console(highlight=False)
        self.interval = max(session.steps // lines, 1)
        self.psnr = math.nan
        # Below 0: the training's clock has not been read yet, so there is no speed to tell.
        self.seconds, self.at = (0.0, 0) if session.first_step == 0 else (-1.0, session.first_step)
        self.speed = math.nan
        self.bar = Progress(
            TextColumn("{task.fields[step]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(
            "",
            total=session.steps,
            completed=session.first_step,
            step=f"{session.first_step}/{session.steps}",
            state="compiling ...",
        )
        self.bar.start()

    def hear(self, report: Report) -> None:
        """Updates the bar, or prints a line when one is due."""
        due = report.step % self.every == 0 or report.step == self.session.steps
        if due:
            self.psnr = report.psnr if math.isnan(self.psnr) else 0.9 * self.psnr + 0.1 * report.psnr
            if report.seconds > self.seconds >= 0:
                self.speed = (report.step - self.at) / (report.seconds - self.seconds)
            self.seconds, self.at = report.seconds, report.step
            state = f"loss {report.loss:.4f}  psnr {self.psnr:.2f}  {report.num_gaussians:,} Gaussians  {self.speed:.1f} steps/s"
            self.bar.update(self.task, completed=report.step, step=f"{report.step}/{self.session.steps}", state=state)
            if not self.console.is_terminal and report.step % self.interval < self.every:
                self.console.print(f"step {report.step}/{self.session.steps}  {state}", soft_wrap=True)
        if report.evaluation is not None:
            held_out = report.evaluation
            self.console.print(
                f"step {report.step}: held-out PSNR {held_out.psnr:.2f} dB, SSIM {held_out.ssim:.4f} "
                f"on {len(held_out.scores)} views; {report.num_gaussians:,} Gaussians, {report.seconds:.0f} s",
                soft_wrap=True,
            )

    def close(self, end: End) -> None:
        """Stops the bar."""
        self.bar.stop()


@spec
class ProgressBar(Callback):
    """Progress on the console."""

    lines: PositiveInt = 10  # how many lines a training prints where there is no terminal
    every: PositiveInt = 10  # steps between updates

    def start(self, session: Session) -> Bar:
        """A bar for this run."""
        return Bar(session, self.lines, self.every)


Spec = ProgressBar
