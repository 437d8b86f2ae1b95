"""The .splat file of web viewers: 32 bytes a Gaussian, four of them the words of its colour and opacity.

The layout of antimatter15/splat (Kevin Kwok 2023), which Spark and SuperSplat read too: without a header, for each
Gaussian three float32 of position, three of standard deviations, red, green, blue and opacity as bytes b / 255, and the
orientation w, x, y, z as bytes (b - 128) / 128.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from nfc_gs.config import PositiveFloat, Share, spec
from nfc_gs.core.camera import Camera
from nfc_gs.exporters.base import Exporter, FileError, no_cameras
from nfc_gs.model import SplatModel

LAYOUT = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])


@spec
class Splat(Exporter):
    """32 bytes a Gaussian, the largest and most opaque first, as viewers show what has arrived.

    Colours are those without view-dependence, which the format does not have. Colours and opacities that are levels of K bits
    (`rounding`, or 8 bits of any word) come back from their bytes as these levels: of K = 2, 4 and 8 exactly, of 3, 5, 6 and 7
    as the nearest bytes, from which rounding to K bits gives the level again. `time`: the moment, in [0, 1], at which a
    moving scene is written. `widen` as of kind ply.
    """

    time: Share = 0.0
    widen: PositiveFloat = 1.0

    @property
    def suffix(self) -> str:
        """`.splat`."""
        return ".splat"

    def write(self, model: SplatModel, path: Path, cameras: Callable[[], Sequence[Camera]] = no_cameras) -> str:
        """Writes the model in the coordinates of the input data; see the base class."""
        rows, finite = _rows(model, self.time, self.widen)
        if len(rows) == 0:
            raise FileError(f"{path}: not written: the model holds no Gaussians")
        if not finite.all():
            raise FileError(
                f"{path}: not written: {len(rows) - int(finite.sum())} of {len(rows)} Gaussians have numbers that are NaN or "
                "infinite; export an earlier checkpoint"
            )
        _write(rows, path)
        lost = "; the view-dependent part of its colours is left out" if model.degree else ""
        return f"{path}: {len(rows)} Gaussians, {path.stat().st_size / 1e6:.1f} MB{lost}"


def _rows(model: SplatModel, time: float, widen: float) -> tuple[np.ndarray, Bool[np.ndarray, " N"]]:
    """The file's rows, and which of them were made of finite numbers alone: bytes do not show it."""
    with torch.no_grad():
        moved, base = model.at(time)
        opacities = model.opacities_of(moved).double().cpu()
    gaussians = moved.map(lambda tensor: tensor.detach().cpu().double())
    scales = gaussians.log_scales.exp() * (model.to_world.scale * widen)
    lengths = gaussians.quats.norm(dim=1, keepdim=True)
    # A quaternion of length 0 is drawn unrotated.
    unrotated = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    quats = torch.where(lengths == 0, unrotated, gaussians.quats / lengths)
    rows = np.empty(len(opacities), LAYOUT)
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused above
        rows["position"] = model.to_world(gaussians.means).numpy()
        rows["scale"] = scales.numpy()
    colours = torch.cat([base.detach().cpu().double(), opacities[:, None]], 1).numpy()
    rows["rgba"], rows["rotation"] = _bytes(colours * 255), _bytes(quats.numpy() * 128 + 128)
    numbers = rows["position"], rows["scale"], colours, quats.numpy()
    finite = np.logical_and.reduce([np.isfinite(each).all(1) for each in numbers])
    order = np.argsort(-(scales.prod(1) * opacities).numpy(), kind="stable")
    return rows[order], finite[order]


def _bytes(numbers: np.ndarray) -> UInt8[np.ndarray, "N 4"]:
    """The nearest bytes; programs that cut off instead lose a level wherever float32 falls short of it."""
    return np.nan_to_num(numbers).round().clip(0, 255).astype(np.uint8)


def _write(rows: np.ndarray, path: Path) -> None:
    """Writes under a temporary name first; when that fails, nothing is left and an older file stays as it was."""
    if not path.name:
        raise FileError(f"{path}: cannot be written: is a folder")
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(rows.tobytes())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror or error}") from None


Spec = Splat
