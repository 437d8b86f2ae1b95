"""Saves the run, so that it can go on: the last state, and the best on the held-out views."""

from pathlib import Path

from nfc_gs.config import PositiveInt, spec
from nfc_gs.training.callbacks.base import Callback, End, Listener, Report, Session


class Keeper(Listener):
    """Writes checkpoints/last.safetensors and checkpoints/best.safetensors."""

    def __init__(self, session: Session, every: int) -> None:
        self.session, self.every = session, every
        self.last: Path = session.folder / "checkpoints/last.safetensors"
        self.best: Path = session.folder / "checkpoints/best.safetensors"
        self.best_psnr = session.best_psnr
        self.saved = self.heard = session.first_step

    def hear(self, report: Report) -> None:
        """Saves when it is due, and when the held-out views were never better."""
        self.heard = report.step
        if report.step % self.every == 0:
            self._save_last()
        if report.evaluation is not None and report.evaluation.psnr > self.best_psnr:
            self.best_psnr = report.evaluation.psnr
            self.session.save(self.best)

    def close(self, end: End) -> None:
        """Saves what is not saved yet, also when the user stopped the training; but nothing half changed."""
        if end != "failed" and (self.saved != self.heard or not self.last.exists()):
            self._save_last()

    def _save_last(self) -> None:
        self.session.save(self.last)
        self.saved = self.heard


@spec
class Checkpoints(Callback):
    """A checkpoint every so many steps, at the end, and when the training is interrupted."""

    every: PositiveInt = 500

    def start(self, session: Session) -> Keeper:
        """A keeper for this run."""
        return Keeper(session, self.every)


Spec = Checkpoints
