"""Exports the finished model, so that nobody has to ask for it."""

from typing import Annotated

from nfc_gs.config import kind_in, spec
from nfc_gs.exporters.base import Exporter
from nfc_gs.exporters.ply import Ply
from nfc_gs.training.callbacks.base import Callback, End, Listener, Report, Session


class AtTheEnd(Listener):
    """Writes exports/<name>.<suffix> when the training has come to its end."""

    def __init__(self, session: Session, exporter: Exporter) -> None:
        self.session, self.exporter = session, exporter

    def hear(self, report: Report) -> None:
        """Nothing yet."""

    def close(self, end: End) -> None:
        """Exports, unless the training was stopped."""
        if end == "finished":
            folder = self.session.folder / "exports"
            folder.mkdir(exist_ok=True)
            path = folder / f"{self.session.folder.name}{self.exporter.suffix}"
            views = self.session.scene.train
            print(self.exporter.write(self.session.model(), path, lambda: [view.camera for view in views]))


@spec
class Export(Callback):
    """The model as a file for viewers, at the end of the training."""

    exporter: Annotated[Exporter, kind_in("nfc_gs.exporters")] = Ply()

    def start(self, session: Session) -> AtTheEnd:
        """An exporter for this run."""
        return AtTheEnd(session, self.exporter)


Spec = Export
