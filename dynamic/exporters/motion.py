"""The motion of a trained scene as numbers that a player evaluates itself: splines, chunks of polynomials, or bones."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.interpolate import BSpline

from dynamic.deformations.bases import Skeleton
from nfc_gs import __version__
from nfc_gs.config import PositiveInt, spec
from nfc_gs.core.camera import Camera
from nfc_gs.core.rotations import quats_to_matrices
from nfc_gs.deformations.static import Rest
from nfc_gs.exporters.base import Exporter, FileError, no_cameras
from nfc_gs.exporters.ply import Ply
from nfc_gs.model import SplatModel

# Curves are fitted to this many samples for each of their intervals: as many equations as a cubic needs, and more.
SAMPLES = 6
# Errors are taken at this many times, which lie between the samples, for Gaussians that are seen.
ERROR_TIMES = 97
OPAQUE = 0.5
# A bone export has so many weights a Gaussian, as graphics hardware's skinning has.
WEIGHTS = 4
# What changes by less than this over the whole clip is written once (float32 numbers of size 1 are no finer).
CONSTANT = 1e-6
# Columns of the numbers that can move, by name.
COLUMNS = {"means": (0, 3), "quats": (3, 7), "log_scales": (7, 10), "opacity_logits": (10, 11), "colours": (11, 14)}


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Distances on the screen between where Gaussians are and where the file puts them, in pixels."""

    mean: float
    p99: float
    largest: float


@spec
class Motion(Exporter):
    """NAME.npz with curves, NAME.json that says how to read them, and NAME.ply with all that does not move.

    Forms: `splines`, for each Gaussian a uniform cubic B-spline with `knots` knots over the clip (`knots` + 2 control
    points, least squares); `chunks`, for each Gaussian `chunks` cubic polynomials one after the other; `bones`, for runs of
    kind dynamic.deformations.bases, the bones' splines and four weights for each Gaussian. The error in pixels is measured
    at other times than those fitted, from the capture's cameras, over Gaussians of opacity above one half, and is both
    printed and written down.
    """

    form: Literal["splines", "chunks", "bones"] = "splines"
    knots: PositiveInt = 40
    chunks: PositiveInt = 20

    def __post_init__(self) -> None:
        if self.knots < 2:
            raise ValueError("knots must be at least 2: one where the clip begins and one where it ends")

    @property
    def suffix(self) -> str:
        """`.npz`."""
        return ".npz"

    def write(self, model: SplatModel, path: Path, cameras: Callable[[], Sequence[Camera]] = no_cameras) -> str:
        """Writes the three files; see the base class.

        Raises:
            FileError: the run is still, has no bones, there are no cameras to measure by, or the disk refuses.
        """
        if path.suffix != ".npz":
            raise FileError(f"{path}: must end in .npz; .json and .ply are written beside it")
        if isinstance(model.field, Rest):
            raise FileError(f"{path}: not written: this run is still, so kind ply holds all of it")
        if self.form == "bones" and not isinstance(model.field, Skeleton):
            raise FileError(
                f"{path}: not written: only runs of kind dynamic.deformations.bases have bones; form=splines"
            )
        views = cameras()
        if not views:
            raise FileError(f"{path}: not written: there are no cameras by which to measure the error in pixels")
        arrays, meaning, place = self._bones(model) if self.form == "bones" else self._curves(model)
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise FileError(
                    f"{path}: not written: {name} has numbers that are not finite; export an earlier checkpoint"
                )
        errors = measure(model, place, views)
        record = {
            "generator": f"nfc-gs {__version__}",
            "form": self.form,
            "gaussians": len(model.gaussians),
            "time_range": [0.0, 1.0],
            "still": f"{path.stem}.ply: every Gaussian at t = 0, in the same order, with all that does not move",
            **meaning,
            "arrays": {name: list(array.shape) for name, array in arrays.items()},
            "error_pixels": None if errors is None else vars(errors),
            "error_pixels_of": f"{ERROR_TIMES} times, the nearest camera each, {views[0].width}x{views[0].height}, opacity > .5",
        }
        _write_together(path, model, arrays, json.dumps(record, indent=2) + "\n")
        size = path.stat().st_size / 1e6
        error = (
            f"error on the screen {errors.mean:.3f} px in the mean, {errors.p99:.3f} at the 99th percentile, "
            f"{errors.largest:.3f} at most"
            if errors is not None
            else "error on the screen not measured: no camera sees a Gaussian of opacity above one half"
        )
        line = f"{path}: {self.form}, {len(model.gaussians)} Gaussians, {size:.1f} MB; {error}"
        if self.form == "chunks" and self.chunks == 1:
            line += "; one cubic for a whole clip is seldom enough: take 10 or 20"
        return line

    def _curves(self, model: SplatModel) -> tuple[dict[str, np.ndarray], dict[str, Any], "Place"]:
        """Curves of each Gaussian's numbers, as arrays, with what the JSON says of them."""
        pieces = self.chunks if self.form == "chunks" else self.knots - 1
        times = np.linspace(0, 1, SAMPLES * pieces + 1)
        basis = self._basis(times)
        solve = np.linalg.pinv(basis)
        first, widest = None, np.zeros(14)
        controls = np.zeros((solve.shape[0], len(model.gaussians), 14))
        # One moment at a time, so that memory does not grow with the samples.
        for i, state in enumerate(_states(model, times)):
            first = state if first is None else first
            widest = np.maximum(widest, np.abs(state - first).max(0, initial=0))
            controls += solve[:, i, None, None] * state
        moving = {name: (a, b) for name, (a, b) in COLUMNS.items() if name == "means" or widest[a:b].max() > CONSTANT}
        arrays = {name: controls[:, :, a:b].transpose(1, 0, 2).astype(np.float32) for name, (a, b) in moving.items()}
        shape = {"knots": self.knots} if self.form == "splines" else {"chunks": self.chunks}
        how = (
            "uniform cubic B-spline: at time t, u = t * (knots - 1), i = min(floor(u), knots - 2), f = u - i, the value is "
            "the sum over j = 0..3 of b_j(f) * control[i + j], b = ((1-f)^3, 3f^3-6f^2+4, -3f^3+3f^2+3f+1, f^3) / 6"
            if self.form == "splines"
            else "cubic chunks: at time t, u = t * chunks, i = min(floor(u), chunks - 1), f = u - i, the value is the sum over "
            "j = 0..3 of f^j * coefficient[4 i + j]"
        )
        meaning = {
            **shape,
            "evaluate": how,
            "moving": {name: "[gaussian, control, number]" for name in arrays},
            "units": "world units of the PLY; quats wxyz, to be normalized; log_scales natural; opacity_logits as the PLY's "
            "opacity; colours in value space, 0.5 + 0.28209479 f_dc",
        }

        def place(time: float) -> Float[np.ndarray, "N 3"]:
            return np.einsum("k,nkd->nd", self._basis(np.array([time]))[0], arrays["means"].astype(np.float64))

        return arrays, meaning, place

    def _basis(self, times: Float[np.ndarray, " T"]) -> Float[np.ndarray, "T K"]:
        """The weight of every control point (or coefficient) at every time."""
        if self.form != "chunks":
            spans = self.knots - 1
            steps = np.arange(-3, spans + 4) / spans
            return BSpline.design_matrix(np.clip(times, 0, 1 - 1e-12), steps, 3).toarray()
        position = times * self.chunks
        chunk = np.minimum(position.astype(int), self.chunks - 1)
        powers = (position - chunk)[:, None] ** np.arange(4)
        basis = np.zeros((len(times), self.chunks, 4))
        basis[np.arange(len(times)), chunk] = powers
        return basis.reshape(len(times), -1)

    def _bones(self, model: SplatModel) -> tuple[dict[str, np.ndarray], dict[str, Any], "Place"]:
        """The bones' splines and each Gaussian's four weights, as arrays, with what the JSON says of them."""
        field = model.field
        assert isinstance(field, Skeleton)
        bones, weights = _four(field, model)
        times = np.linspace(0, 1, SAMPLES * (self.knots - 1) + 1)
        solve = np.linalg.pinv(self._basis(times))
        scale, offset = model.to_world.scale, np.array(model.to_world.translation)
        rows = []
        with torch.no_grad():
            for time in times:
                _, translations, quats = (
                    values.detach().cpu().double().numpy() for values in field.motions(float(time))
                )
                rows.append(np.concatenate([scale * translations, quats], 1))
            means = model.to_world(model.gaussians.means.detach().cpu()).double().numpy()
        controls = np.einsum("kt,tmd->mkd", solve, np.stack(rows)).astype(np.float32)
        centres = scale * field.centres.detach().cpu().double().numpy() + offset
        arrays = {
            "bone_centres": centres.astype(np.float32),
            "bone_translations": controls[:, :, :3],
            "bone_quats": controls[:, :, 3:],
            "bones": bones.astype(np.int32),
            "weights": weights.astype(np.float32),
            "means": means.astype(np.float32),
            "quats": model.gaussians.quats.detach().cpu().numpy(),
        }
        meaning = {
            "knots": self.knots,
            "evaluate": "bones follow uniform cubic B-splines: at time t, u = t * (knots - 1), i = min(floor(u), knots - 2), "
            "f = u - i, the value is the sum over j = 0..3 of b_j(f) * control[i + j], b = ((1-f)^3, 3f^3-6f^2+4, "
            "-3f^3+3f^2+3f+1, f^3) / 6. Normalize q. Bone m carries x to R(q) (x - centre) + centre + translation. A Gaussian's "
            "mean is the weighted sum of what its four bones carry `means` to; its orientation is the weighted sum of the four "
            "q times `quats`, normalized. Sizes, opacities and colours are those of the PLY.",
            "units": "world units of the PLY; quats wxyz",
        }

        def place(time: float) -> Float[np.ndarray, "N 3"]:
            moved = np.einsum("k,mkd->md", self._basis(np.array([time]))[0], controls.astype(np.float64))
            rotations = quats_to_matrices(torch.from_numpy(moved[:, 3:])).numpy()
            carried = np.zeros_like(means)
            for k in range(bones.shape[1]):
                m = bones[:, k]
                turned = np.einsum("nij,nj->ni", rotations[m], means - centres[m])
                carried += weights[:, k, None] * (turned + centres[m] + moved[m, :3])
            return carried

        return arrays, meaning, place


# Where a file puts the Gaussians at a time, in world coordinates.
Place = Callable[[float], np.ndarray]


def measure(model: SplatModel, place: Place, cameras: Sequence[Camera]) -> Errors | None:
    """How far `place` is from the model on the screen, at times that no curve was fitted to.

    Each time is looked at by the camera whose own time is nearest; Gaussians count that are opaque and in the picture;
    None where there are none.
    """
    distances = []
    for i in range(ERROR_TIMES):
        time = (i + 0.5) / ERROR_TIMES
        camera = min(cameras, key=lambda camera: abs(camera.time - time)).to("cpu")
        with torch.no_grad():
            moved = model.at(time)[0]
            opaque = (model.opacities_of(moved) > OPAQUE).cpu()
        true, depth = camera.project(moved.means.detach().cpu().double())
        found, _ = camera.project(model.to_world.inverse(torch.from_numpy(place(time))))
        inside = (true >= 0).all(1) & (true <= true.new_tensor([camera.width, camera.height])).all(1)
        seen = opaque & inside & (depth > camera.near)
        distances.append((found - true).norm(dim=1)[seen].numpy())
    all_distances = np.concatenate(distances)
    if len(all_distances) == 0:
        return None
    return Errors(
        mean=float(all_distances.mean()),
        p99=float(np.quantile(all_distances, 0.99)),
        largest=float(all_distances.max()),
    )


@torch.no_grad()
def _states(model: SplatModel, times: Float[np.ndarray, " T"]) -> Iterator[Float[np.ndarray, "N 14"]]:
    """All numbers that can move, at each time: world means, unit quats without jumps of sign, log-scales, opacity, colour."""
    before: np.ndarray | None = None
    for time in times:
        moved, colours = model.at(float(time))
        opacities = model.opacities_of(moved).double()
        quats = torch.nn.functional.normalize(moved.quats.double(), dim=1).cpu().numpy()
        if before is not None:
            # q and -q are the same rotation, but not half way between them.
            quats = quats * np.where((quats * before).sum(1, keepdims=True) < 0, -1, 1)
        before = quats
        yield np.concatenate(
            [
                model.to_world(moved.means.double()).cpu().numpy(),
                quats,
                moved.log_scales.double().cpu().numpy() + np.log(model.to_world.scale),
                torch.logit(opacities, eps=1e-6)[:, None].cpu().numpy(),
                colours.double().cpu().numpy(),
            ],
            axis=1,
        )


def _four(field: Skeleton, model: SplatModel) -> tuple[Int[np.ndarray, "N K"], Float[np.ndarray, "N K"]]:
    """The (at most) four bones that weigh most for each Gaussian, and their weights, which sum to one."""
    bones, weights = field.weights(model.gaussians)
    bones, weights = bones[:, :WEIGHTS].cpu(), weights[:, :WEIGHTS].cpu().double()
    return bones.numpy(), (weights / weights.sum(1, keepdim=True)).numpy()


def _write_together(path: Path, model: SplatModel, arrays: dict[str, np.ndarray], text: str) -> None:
    """Writes the three files under temporary names, and gives them theirs when all are there."""
    partial = path.with_name(f"{path.stem}.partial.npz")
    endings = (".ply", ".npz", ".json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            Ply().write(model, partial.with_suffix(".ply"))
            np.savez(partial, **arrays)  # type: ignore[arg-type]
            partial.with_suffix(".json").write_text(text)
            for ending in endings:
                os.replace(partial.with_suffix(ending), path.with_suffix(ending))
        finally:
            for ending in endings:
                partial.with_suffix(ending).unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror or error}") from None


Spec = Motion
