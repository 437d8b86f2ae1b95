"""What every data set is."""

import abc

from nfc_gs.captures.pictures import DatasetError
from nfc_gs.core.scene import Scene

__all__ = ["Dataset", "DatasetError"]


class Dataset(abc.ABC):
    """Where the files are and how to read them."""

    @property
    def judged_by(self) -> str:
        """What the held-out views are, for the record of a measurement: "test", unless a setting chose others."""
        return "test"

    @abc.abstractmethod
    def load(self, seed: int) -> Scene:
        """The scene; pictures are decoded later, by `View.read`, but everything that can be wrong is found now.

        Raises:
            DatasetError: one line for whatever is missing, corrupt or contradictory.
        """
