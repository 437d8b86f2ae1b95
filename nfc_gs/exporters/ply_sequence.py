"""A moving scene as one PLY for every frame, which players of 4D splats and Blender's importers read."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from nfc_gs import __version__
from nfc_gs.config import PositiveFloat, PositiveInt, Share, spec
from nfc_gs.core.camera import Camera
from nfc_gs.core.rig import rig_of
from nfc_gs.deformations.static import Rest
from nfc_gs.exporters.base import Exporter, FileError, no_cameras
from nfc_gs.exporters.ply import Ply
from nfc_gs.model import SplatModel

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PREFIX = "frame_"


@spec
class PlySequence(Exporter):
    """frame_00000.ply and on, the same Gaussians in the same order in every file, and manifest.json.

    `frames` of them evenly from time `start` to `stop`, shown at `fps` a second; null: one for every moment that was
    photographed. `sh_degree` as of kind ply. The manifest names fps, times, the number of Gaussians, the box around all of
    them at all times, and which way is up, all in the coordinates of the files.
    """

    fps: PositiveFloat = 30.0
    frames: PositiveInt | None = None
    start: Share = 0.0
    stop: Share = 1.0
    sh_degree: Literal[0, 1, 2, 3] | None = None

    def __post_init__(self) -> None:
        if not 0.1 <= self.fps <= 1000:
            raise ValueError(f"fps must be from 0.1 to 1000 frames a second (got {self.fps:g})")
        if self.start > self.stop:
            raise ValueError(f"start ({self.start:g}) must not come after stop ({self.stop:g})")

    @property
    def suffix(self) -> str:
        """None: it is a folder."""
        return ""

    def write(self, model: SplatModel, path: Path, cameras: Callable[[], Sequence[Camera]] = no_cameras) -> str:
        """Writes the folder `path`, in place of an earlier sequence; see the base class.

        Raises:
            FileError: `path` holds something else, cannot be written, or neither `frames` nor cameras say how many.
        """
        # What is not ours is not deleted.
        if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file()):
            raise FileError(f"{path}: is there already and is no sequence of PLYs; choose a new folder")
        views = cameras()
        count = self.frames or len({camera.time for camera in views})
        if count == 0:
            raise FileError(f"{path}: not written: no photographs say how many moments there are; give frames=")
        if isinstance(model.field, Rest):
            logger.warning("this run is still: one file of kind ply holds all of it")
        times = [self.start + (self.stop - self.start) * i / max(count - 1, 1) for i in range(count)]
        partial = path.with_name(path.name + ".partial")
        try:
            # What an interrupted export left behind.
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                manifest = self._write_frames(model, partial, times, views)
                (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
                if path.is_dir():
                    shutil.rmtree(path)
                os.replace(partial, path)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise FileError(f"{path}: cannot be written: {error.strerror or error}") from None
        size = sum(file.stat().st_size for file in path.iterdir()) / 1e6
        return f"{path}: {count} frames of {len(model.gaussians)} Gaussians at {self.fps:g} a second, {size:.1f} MB"

    def _write_frames(
        self, model: SplatModel, folder: Path, times: Sequence[float], cameras: Sequence[Camera]
    ) -> dict[str, Any]:
        """Writes the frames, and gathers what the manifest says."""
        low, high = torch.full((3,), torch.inf), torch.full((3,), -torch.inf)
        for i, time in enumerate(times):
            Ply(sh_degree=self.sh_degree, time=time).write(model, folder / f"{PREFIX}{i:05d}.ply")
            with torch.no_grad():
                means = model.to_world(model.at(time)[0].means.detach().cpu())
            low, high = torch.minimum(low, means.min(0).values), torch.maximum(high, means.max(0).values)
        up = None
        if cameras:
            middle = model.at(times[0])[0].means.detach().median(0).values
            up = [round(x, 6) for x in rig_of(cameras, middle).up.tolist()]
        return {
            "generator": f"nfc-gs {__version__}",
            "format": "3DGS PLY, one file a frame, the same Gaussians in the same order",
            "files": f"{PREFIX}%05d.ply",
            "frames": len(times),
            "fps": self.fps,
            "seconds": len(times) / self.fps,
            "time_range": [self.start, self.stop],
            "times": times,
            "gaussians": len(model.gaussians),
            "bounds": [low.tolist(), high.tolist()],
            "up": up,
        }


Spec = PlySequence
