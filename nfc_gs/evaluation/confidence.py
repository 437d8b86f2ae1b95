"""How far each Gaussian is to be trusted, by what the training photographs say about it.

Two numbers were found to carry information, and the entropy of a Gaussian's own bits none (docs/method.md): the spread of the
colours that it covers, which is large where renders are wrong, and its accumulated compositing weight, which is small where
it can be left out unnoticed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nfc_gs.config import UserError
from nfc_gs.core.camera import Camera
from nfc_gs.core.scene import Photograph, View
from nfc_gs.evaluation.pictures import ONE_EACH, check_folder_name, file_names, to_bytes, write_pngs
from nfc_gs.model import SplatModel, target_of

# No numbers in [0, 1] have a greater standard deviation.
GREATEST_SPREAD = 0.5


class ConfidenceError(UserError):
    """Nothing is trusted as much as was asked for."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What some photographs say about every Gaussian.

    `weights` [N]: the sum over all pixels of its compositing weight w (alpha times the transmittance before it), in pixels.
    `spread` [N]: the standard deviation of the photographs' colours by these weights, sqrt(E_w[c^2] - E_w[c]^2), the root mean
    square over the channels, in [0, 1/2]; 0 where nothing is seen.
    """

    weights: Float[Tensor, " N"]
    spread: Float[Tensor, " N"]

    @property
    def confidence(self) -> Float[Tensor, " N"]:
        """1 - 2 spread, in [0, 1]: 1 where all that a Gaussian covers has one colour; 0 for what no photograph shows."""
        sure = 1 - self.spread / GREATEST_SPREAD
        return torch.where(self.weights > 0, sure, torch.zeros_like(sure)).clamp(0, 1)


@torch.no_grad()
def evidence(model: SplatModel, cameras: Sequence[Camera], read: Callable[[int], Photograph]) -> Evidence:
    """What photographs say: one render a camera, and one pass that hands its pixels back to the Gaussians.

    Args:
        model: whose Gaussians.
        cameras: where the photographs were taken.
        read: photograph i; pixels outside its mask say nothing.
    """
    weights = torch.zeros(len(model.gaussians), dtype=torch.float64)
    sums = torch.zeros(len(model.gaussians), 6, dtype=torch.float64)
    for i, camera in enumerate(cameras):
        picture = model.render(camera)
        target = target_of(read(i), picture.background)
        ones = torch.ones_like(target.rgb[..., :1]) if target.mask is None else target.mask[..., None].to(target.rgb)
        seen = torch.cat([target.rgb * ones, target.rgb.square() * ones, ones], -1)
        gathered, _ = picture.rendering.gather(seen)
        sums += gathered[:, :6].double().cpu()
        weights += gathered[:, 6].double().cpu()
    means, squares = (sums / weights.clamp(min=torch.finfo(torch.float64).tiny)[:, None]).split(3, -1)
    spread = (squares - means.square()).clamp(min=0).mean(-1).sqrt()
    return Evidence(weights=weights.float(), spread=spread.float())


@torch.no_grad()
def draw_confidence(model: SplatModel, confidence: Float[Tensor, " N"], camera: Camera) -> UInt8[np.ndarray, "H W 3"]:
    """The mean confidence of what a pixel shows, as colours from dark (0) to yellow (1); black where nothing is."""
    picture = model.render(camera)
    values = confidence.to(picture.rgb)[:, None]
    rendering = model.rasterizer(replace(picture.splats, values=values), camera.to(values.device), values.new_zeros(1))
    level = rendering.channels[..., 0] / rendering.alpha.clamp(min=1e-6)
    coloured = cv2.cvtColor(cv2.applyColorMap(to_bytes(level), cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    return (coloured * to_bytes(rendering.alpha)[..., None].astype(np.float32) / 255).round().astype(np.uint8)


def write_confidence(
    model: SplatModel, confidence: Float[Tensor, " N"], views: Sequence[View], folder: Path
) -> list[Path]:
    """Writes one PNG by `draw_confidence` for each view, named after it, and returns the paths in the views' order."""
    check_folder_name(folder, ONE_EACH)
    names = file_names([view.name for view in views])
    return write_pngs(
        (
            (f"{name}.png", draw_confidence(model, confidence, view.camera))
            for name, view in zip(names, views, strict=True)
        ),
        folder,
    )


def trusted(model: SplatModel, found: Evidence, min_weight: float, min_confidence: float) -> tuple[SplatModel, str]:
    """The model without Gaussians of less weight (in pixels) or confidence, and one line on how many were left out.

    Raises:
        ConfidenceError: none would be left.
    """
    light, unsure = found.weights < min_weight, found.confidence < min_confidence
    kept = ~(light | unsure)
    count = len(kept)
    if not kept.any():
        raise ConfidenceError(
            f"no Gaussian of {count:,} has a weight of {min_weight:g} and a confidence of {min_confidence:g}; the greatest "
            f"are {float(found.weights.max()):.3g} pixels and {float(found.confidence.max()):.3g}"
        )
    rows = kept.nonzero()[:, 0].to(model.gaussians.means.device)
    line = (
        f"left out {count - len(rows):,} of {count:,} Gaussians: {int(light.sum()):,} of weight below {min_weight:g}, "
        f"{int((unsure & ~light).sum()):,} others of confidence below {min_confidence:g}"
    )
    return replace(model, gaussians=model.gaussians.map(lambda value: value.detach()[rows])), line
