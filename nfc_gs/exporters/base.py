"""What every exporter is."""

import abc
from pathlib import Path

from nfc_gs.config import UserError
from nfc_gs.model import SplatModel


class FileError(UserError):
    """A splat file cannot be read or written: one line that names it, what was found and what would be right."""


class Exporter(abc.ABC):
    """Writes a model as another program's file, under a temporary name first, so that no file is ever half there."""

    @property
    @abc.abstractmethod
    def suffix(self) -> str:
        """The file name's ending, with its dot."""

    @abc.abstractmethod
    def write(self, model: SplatModel, path: Path) -> str:
        """Writes the model in the coordinates of the input data; returns one line for the user: what was written.

        Raises:
            FileError: when numbers are not finite (with their count) or the file cannot be written.
        """
