"""How near renders come to held-out photographs: PSNR, SSIM and LPIPS by view, and the record of a measurement."""

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

import nfc_gs
from nfc_gs.config import UserError
from nfc_gs.core.scene import Photograph, View
from nfc_gs.core.ssim import mean_ssim
from nfc_gs.evaluation.lpips import MIN_SIDE, Lpips
from nfc_gs.evaluation.pictures import contact_sheet
from nfc_gs.model import Picture, SplatModel, Target, target_of

SSIM_VARIANT = "Gaussian window 11x11, sigma 1.5, zero padding, mean over pixels and RGB channels, as 3DGS"


class MetricsError(UserError):
    """The record cannot be written."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One held-out view: its time, PSNR in dB, SSIM, LPIPS by network (None where not computed), seconds of the render."""

    name: str
    time: float
    width: int
    height: int
    psnr: float
    ssim: float
    lpips_alex: float | None
    lpips_squeeze: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model measured on held-out views; means are over views, NaN where there are none.

    `lpips_reason` says why there is no LPIPS, or not by every network; else None. `kept` holds some views to be shown: name,
    contact sheet of one row, render and photograph, both [H W 3] in [0, 1] and on the CPU.
    """

    scores: tuple[Score, ...]
    background: tuple[float, float, float]
    lpips_reason: str | None
    kept: tuple[tuple[str, UInt8[np.ndarray, "A B 3"], Float[Tensor, "H W 3"], Float[Tensor, "H W 3"]], ...] = ()

    @property
    def psnr(self) -> float:
        """The mean over the views of their PSNR, in dB."""
        return _mean([score.psnr for score in self.scores])

    @property
    def ssim(self) -> float:
        """The mean over the views, of the variant `SSIM_VARIANT`."""
        return _mean([score.ssim for score in self.scores])

    @property
    def lpips_alex(self) -> float | None:
        """The mean over the views by AlexNet, None where a view has none."""
        return _mean_if_all([score.lpips_alex for score in self.scores])

    @property
    def lpips_squeeze(self) -> float | None:
        """The mean over the views by SqueezeNet, None where a view has none."""
        return _mean_if_all([score.lpips_squeeze for score in self.scores])

    @property
    def seconds_per_frame(self) -> float:
        """The mean time of rendering a view, without reading its photograph or comparing."""
        return _mean([score.seconds for score in self.scores])


def psnr(
    x: Float[Tensor, "H W 3"], y: Float[Tensor, "H W 3"], mask: Bool[Tensor, "H W"] | None = None
) -> Float[Tensor, ""]:
    """The peak signal-to-noise ratio in dB, -10 log10 of the mean squared error, of pictures clamped to [0, 1].

    Over the pixels of `mask`, if there is one. Infinite for equal pictures, NaN where no pixel counts.
    """
    error = (x.clamp(0, 1).double() - y.clamp(0, 1).double()) ** 2
    return -10 * (error.mean() if mask is None else error[mask].mean()).log10()


@torch.no_grad()
def evaluate(
    model: SplatModel,
    views: Sequence[View],
    read: Callable[[int], Photograph],
    *,
    lpips: Lpips,
    keep: int = 0,
    shown: Callable[[View, Picture, Target], None] | None = None,
) -> Evaluation:
    """Renders the views over the model's background and compares them, not rounded to 8 bits, with the photographs.

    Masked pixels count in no metric: PSNR and the mean of SSIM leave them out; for SSIM's windows and for LPIPS, which
    look at neighbourhoods, the render takes the photograph's values there. One frame is drawn beforehand, untimed.

    Args:
        model: what is measured; its harmonics up to `model.degree`.
        views: held out from training.
        read: the photograph of view i.
        lpips: the networks at hand.
        keep: how many views, evenly spread, to keep for showing.
        shown: is handed every view with its picture and its photograph, to save them.
    """
    kept_numbers = {round(i * (len(views) - 1) / max(keep - 1, 1)) for i in range(min(keep, len(views)))}
    if views:
        model.render(views[0].camera)
    scores, kept = [], []
    for i, view in enumerate(views):
        _synchronize(model)
        began = time.perf_counter()
        picture = model.render(view.camera)
        _synchronize(model)
        seconds = time.perf_counter() - began
        target = target_of(read(i), picture.background)
        render, photograph = picture.rgb.clamp(0, 1), target.rgb.clamp(0, 1)
        compared = render if target.mask is None else torch.where(target.mask[..., None], render, photograph)
        distances = lpips(compared, photograph)
        scores.append(
            Score(
                name=view.name,
                time=view.camera.time,
                width=view.camera.width,
                height=view.camera.height,
                psnr=float(psnr(render, photograph, target.mask)),
                ssim=float(mean_ssim(compared, photograph, target.mask)),
                lpips_alex=distances.get("alex"),
                lpips_squeeze=distances.get("squeeze"),
                seconds=seconds,
            )
        )
        if i in kept_numbers:
            sheet = contact_sheet([(view.name, photograph, compared)])
            kept.append((view.name, sheet, render.cpu(), photograph.cpu()))
        if shown is not None:
            shown(view, picture, target)
    return Evaluation(
        scores=tuple(scores),
        background=model.background,
        lpips_reason=_lpips_reason(lpips, scores),
        kept=tuple(kept),
    )


def metrics(
    evaluation: Evaluation,
    model: SplatModel,
    *,
    split: str,
    steps: int,
    train_seconds: float,
    num_bytes: int | None,
) -> dict[str, Any]:
    """The record of a measurement, ready for JSON: means, each view, and what made them; NaN and infinities are null.

    Args:
        evaluation: what was measured.
        model: the model that was.
        split: the views' name, such as "test".
        steps: of training so far.
        train_seconds: wall time of those steps, evaluation not counted.
        num_bytes: the size of the trained model's file; None where there is none yet.
    """
    sizes = sorted({(score.width, score.height) for score in evaluation.scores})
    commit, changed = _commit()
    record = {
        "psnr": evaluation.psnr,
        "ssim": evaluation.ssim,
        "lpips_alex": evaluation.lpips_alex,
        "lpips_squeeze": evaluation.lpips_squeeze,
        "lpips_reason": evaluation.lpips_reason,
        "num_gaussians": len(model.gaussians),
        "num_test_views": len(evaluation.scores),
        "num_times": len({score.time for score in evaluation.scores}),
        "steps": steps,
        "train_seconds": train_seconds,
        "seconds_per_frame": evaluation.seconds_per_frame,
        "bytes": num_bytes,
        "split": split,
        "resolution": ", ".join(f"{width}x{height}" for width, height in sizes),
        "background": list(evaluation.background),
        "sh_degree": model.degree,
        "ssim_variant": SSIM_VARIANT,
        "device": _device(model),
        "versions": {
            "nfc_gs": nfc_gs.__version__,
            "torch": torch.__version__,
            "numba": version("numba"),
            "python": platform.python_version(),
        },
        "commit": commit,
        "uncommitted_changes": changed,
        "per_view": [vars(score) for score in evaluation.scores],
    }
    finite: dict[str, Any] = _finite(record)
    return finite


def write_metrics(record: dict[str, Any], path: Path) -> None:
    """Writes a record as JSON, under a temporary name first.

    Raises:
        MetricsError: the file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        try:
            partial.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise MetricsError(f"{path}: cannot be written: {error.strerror or error}") from None


def _lpips_reason(lpips: Lpips, scores: Sequence[Score]) -> str | None:
    if lpips.reason is not None:
        return lpips.reason
    small = [score.name for score in scores if score.lpips_alex is None]
    return f"{small[0]} is smaller than the {MIN_SIDE} pixels a side that the networks need" if small else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _mean_if_all(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return _mean(present) if present and len(present) == len(values) else None


def _finite(value: Any) -> Any:
    """The same nested record with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _synchronize(model: SplatModel) -> None:
    """Waits for a GPU's queue, so that a clock reads the work and not its ordering."""
    if model.rasterizer.device == "cuda":
        torch.cuda.synchronize()


def _device(model: SplatModel) -> str:
    if model.rasterizer.device == "cuda":
        return f"cuda: {torch.cuda.get_device_name()}"
    return f"cpu: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def _commit() -> tuple[str | None, bool | None]:
    """The source checkout's git commit and whether files differ from it; nothing for an installed package."""
    source = Path(nfc_gs.__file__).parents[1]
    if not (source / ".git").exists():
        return None, None
    try:
        commit = _git(source, "rev-parse", "HEAD")
        return commit, bool(_git(source, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):  # no git on this machine, or a checkout it does not trust
        return None, None


def _git(folder: Path, *command: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *command], check=True, capture_output=True, text=True
    ).stdout.strip()
