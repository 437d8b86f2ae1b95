"""Finds out by marker files which of the formats of moving scenes a folder has."""

import logging
from pathlib import Path

from dynamic.datasets.base import DatasetError, MovingScene
from dynamic.datasets.dnerf import DNerf
from dynamic.datasets.hypernerf import HyperNerf
from dynamic.datasets.neural_3d_video import Neural3DVideo
from nfc_gs.captures.formats import other_format
from nfc_gs.config import Folder, PositiveInt, spec
from nfc_gs.core.scene import Scene

log = logging.getLogger(__name__)

# The file that only a folder of this kind has.
MARKERS = {
    "dnerf": "transforms_train.json",
    "neural_3d_video": "poses_bounds.npy",
    "hypernerf": "dataset.json",
}


@spec
class Auto(MovingScene):
    """Whatever moving scene is in `folder`, with the settings of its own kind that are not named here.

    `downscale` null is the default of the format that is found.
    """

    folder: Folder
    downscale: PositiveInt | None = None

    def read(self, seed: int) -> Scene:
        """The scene, as its own kind reads it.

        Raises:
            DatasetError: no marker is there, or more than one; or what the format's own kind finds wrong.
        """
        kind = find_kind(self.folder)
        log.info("%s: has %s, so its kind is dynamic.datasets.%s", self.folder, MARKERS[kind], kind)
        if kind == "dnerf":
            return DNerf(folder=self.folder, downscale=self.downscale or 1).read(seed)
        if kind == "hypernerf":
            return HyperNerf(folder=self.folder, downscale=self.downscale or 2).read(seed)
        return Neural3DVideo(folder=self.folder, downscale=self.downscale or 2).read(seed)


def find_kind(folder: Path) -> str:
    """The module in `dynamic.datasets` that reads a folder.

    Raises:
        DatasetError: no marker is there, or more than one.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; set dataset.folder")
    found = [kind for kind, marker in MARKERS.items() if (folder / marker).is_file()]
    if len(found) > 1:
        markers = " and ".join(MARKERS[kind] for kind in found)
        raise DatasetError(f"{folder}: has {markers}; say which is meant by dataset.kind=dynamic.datasets.{found[0]}")
    if not found:
        wanted = ", ".join(f"{marker} ({kind})" for kind, marker in MARKERS.items())
        raise DatasetError(
            f"{folder}: is no moving scene known here; looked for {wanted}{other_format(folder, own='')}"
        )
    return found[0]


Spec = Auto
