"""What every exporter is."""

import abc
from collections.abc import Callable, Sequence
from pathlib import Path

from nfc_gs.config import UserError
from nfc_gs.core.camera import Camera
from nfc_gs.model import SplatModel


class FileError(UserError):
    """A splat file cannot be read or written: one line that names it, what was found and what would be right."""


def no_cameras() -> Sequence[Camera]:
    """Where the capture is not at hand."""
    return ()


class Exporter(abc.ABC):
    """Writes a model as another program's file, under a temporary name first, so that no file is ever half there."""

    @property
    @abc.abstractmethod
    def suffix(self) -> str:
        """The file name's ending, with its dot."""

    @abc.abstractmethod
    def write(self, model: SplatModel, path: Path, cameras: Callable[[], Sequence[Camera]] = no_cameras) -> str:
        """Writes the model in the coordinates of the input data; returns one line for the user: what was written.

        Args:
            model: what is written.
            path: the file, or for some exporters the folder.
            cameras: gives those of the training views, in the model's coordinates. Only exporters that need them ask, as
                the data set must then be read.

        Raises:
            FileError: when numbers are not finite (with their count) or the file cannot be written.
        """
