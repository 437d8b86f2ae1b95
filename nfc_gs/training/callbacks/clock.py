"""What quality took how much of the processor: a line for each look at the held-out views."""

import csv
import logging
import time

from nfc_gs.config import UserError, spec
from nfc_gs.training.callbacks.base import Callback, End, Listener, Report, Session

logger = logging.getLogger(__name__)

FILE = "clock.csv"
COLUMNS = ("step", "cpu_seconds", "psnr", "num_gaussians")


class Stopwatch(Listener):
    """Adds up the process's time on all its processors from step to step; clock.csv is a run's curve by it.

    On a machine that does other work too, this time says more than a clock on the wall. The looks at the held-out views
    are not counted: a step that a look follows is taken to be as long as the one before it.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.seconds, self.last, self.before = 0.0, 0.0, time.process_time()
        try:
            with (session.folder / FILE).open("w", newline="") as file:
                csv.writer(file).writerow(COLUMNS)
        except OSError as error:
            raise UserError(f"{session.folder / FILE}: cannot be written: {error.strerror or error}") from None

    def hear(self, report: Report) -> None:
        """Counts the step; writes a line where there was a look."""
        now = time.process_time()
        if report.evaluation is None:
            self.last = now - self.before
        self.seconds, self.before = self.seconds + self.last, now
        if report.evaluation is not None:
            line = (report.step, f"{self.seconds:.3f}", f"{report.evaluation.psnr:.4f}", report.num_gaussians)
            with (self.session.folder / FILE).open("a", newline="") as file:
                csv.writer(file).writerow(line)
            self.before = time.process_time()

    def close(self, end: End) -> None:
        """Nothing: every line is written."""


class Stopped(Listener):
    """A resumed run's clock: what its earlier processes took since their last look is not known, so it stands still."""

    def hear(self, report: Report) -> None:
        """Nothing."""

    def close(self, end: End) -> None:
        """Nothing."""


@spec
class Clock(Callback):
    """clock.csv: step, seconds of processor time, held-out PSNR and number of Gaussians; made in one go, not resumed."""

    def start(self, session: Session) -> Listener:
        """A clock at zero."""
        if session.first_step > 0:
            logger.warning("%s ends here: it does not go on in a resumed run", session.folder / FILE)
            return Stopped()
        return Stopwatch(session)


Spec = Clock
