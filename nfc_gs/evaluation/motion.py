"""Pictures of motion itself: how fast everything is, and the ways that Gaussians have come."""

import colorsys
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nfc_gs.core.camera import Camera
from nfc_gs.evaluation.pictures import to_bytes
from nfc_gs.model import SplatModel

# Speeds are differences over this much time on both sides; a clip has a few hundred moments at most.
TIME_STEP = 1 / 400
# Fainter Gaussians are not asked how fast they are, nor shown by a trail: nobody sees them.
OPAQUE = 0.5
# What is shown brightest: the speed that this share of the opaque Gaussians stays below, over this many times.
TOP_SHARE, TOP_TIMES = 0.99, 21
# Below this share of the brightest a Gaussian counts as at rest, and has no trail.
AT_REST = 0.05
# How much of the picture's own grey is left below heat and trails.
DIMMED = 0.35
# A trail reaches back over this much time, in so many pieces.
TRAIL_TIME, TRAIL_PIECES = 0.15, 12
NUM_TRAILS = 200


@torch.no_grad()
def speeds(model: SplatModel, time: float) -> Float[Tensor, " N"]:
    """How fast each Gaussian's centre moves at `time`, in world units for the whole clip; zeros for a still model."""
    before, after = max(time - TIME_STEP, 0.0), min(time + TIME_STEP, 1.0)
    moved = model.at(after)[0].means - model.at(before)[0].means
    return moved.norm(dim=1) / (after - before)


@torch.no_grad()
def mean_displacement(model: SplatModel, time: float) -> float:
    """How far opaque Gaussians are, on average, from where they are at time 0, in world units."""
    seen = model.opacities() > OPAQUE
    if not seen.any():
        return 0.0
    return float((model.at(time)[0].means - model.at(0.0)[0].means).norm(dim=1)[seen].mean())


def top_speed(model: SplatModel) -> float:
    """The speed that heat maps show brightest, the same for all pictures of a model; 0 for a still one."""
    seen = model.opacities() > OPAQUE
    if not seen.any():
        return 0.0
    all_speeds = [speeds(model, time / (TOP_TIMES - 1))[seen] for time in range(TOP_TIMES)]
    return float(np.quantile(torch.cat(all_speeds).cpu().numpy(), TOP_SHARE))


@torch.no_grad()
def draw_speeds(model: SplatModel, camera: Camera, top: float) -> UInt8[np.ndarray, "H W 3"]:
    """The Gaussians' speeds composited as a heat map over the dimmed grey picture: grey at rest, yellow at `top`."""
    picture = model.render(camera, background=torch.zeros_like(model.gaussians.means[0]))
    values = speeds(model, camera.time)[:, None] / (top if top > 0 else 1.0)
    heat = model.rasterizer(
        replace(picture.splats, values=values), camera.to(values.device), values.new_zeros(1)
    ).channels
    level = to_bytes(heat[..., 0])
    coloured = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    # Where there is heat it stands alone, so that a colour always means the same speed.
    grey = _dimmed(picture.rgb) * (1 - level[..., None] / 255)
    return np.clip(coloured + grey, 0, 255).round().astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Trails:
    """Some moving Gaussians, by number, and the colour of each one's trail."""

    model: SplatModel
    chosen: Tensor
    colours: tuple[tuple[int, int, int], ...]

    @staticmethod
    @torch.no_grad()
    def of(model: SplatModel) -> "Trails":
        """Up to 200 opaque Gaussians that move, spread over what moves; hues go once around by the order of choosing."""
        fastest = torch.stack([speeds(model, i / (TOP_TIMES - 1)) for i in range(TOP_TIMES)]).max(0).values
        moving = ((model.opacities() > OPAQUE) & (fastest > AT_REST * top_speed(model)) & (fastest > 0)).nonzero()[:, 0]
        places = model.at(0.5)[0].means[moving]
        chosen = moving[_spread(places, min(NUM_TRAILS, len(moving)))]
        hues = [colorsys.hsv_to_rgb((0.61803 * i) % 1.0, 0.75, 1.0) for i in range(len(chosen))]
        return Trails(
            model=model,
            chosen=chosen,
            colours=tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in hues),
        )

    @torch.no_grad()
    def draw(self, camera: Camera) -> UInt8[np.ndarray, "H W 3"]:
        """The dimmed grey picture with the trails over it, fading into the past; what is in front hides none of them."""
        picture = self.model.render(camera, background=torch.zeros_like(self.model.gaussians.means[0]))
        canvas = np.ascontiguousarray(np.repeat(_dimmed(picture.rgb), 3, axis=2).round().astype(np.uint8))
        times = [max(camera.time - TRAIL_TIME * i / TRAIL_PIECES, 0.0) for i in range(TRAIL_PIECES + 1)]
        here = camera.to(self.chosen.device)
        seen = [here.project(self.model.at(time)[0].means[self.chosen]) for time in times]
        # OpenCV's pixel centres are whole numbers, ours are halves; it takes 1/16 pixels with `shift`.
        pixels = np.stack([((points - 0.5) * 16).round().clamp(-1e7, 1e7).cpu().numpy() for points, _ in seen])
        front = np.stack([(depth > camera.near).cpu().numpy() for _, depth in seen]).all(0)
        pixels = np.nan_to_num(pixels).astype(np.int32)
        # Oldest pieces first, so that the present lies on top.
        for piece in range(TRAIL_PIECES - 1, -1, -1):
            fade = 1 - 0.85 * piece / TRAIL_PIECES
            for number in np.flatnonzero(front):
                colour = tuple(fade * channel for channel in self.colours[number])
                ends = [tuple(int(x) for x in pixels[i, number]) for i in (piece + 1, piece)]
                cv2.line(canvas, ends[0], ends[1], colour, 1, cv2.LINE_AA, 4)
        return canvas


def _dimmed(rgb: Float[Tensor, "H W 3"]) -> Float[np.ndarray, "H W 1"]:
    """The picture's grey, dark enough to lie below something, from 0 to 255."""
    return (rgb.clamp(0, 1) @ rgb.new_tensor([0.299, 0.587, 0.114]) * (255 * DIMMED)).double().cpu().numpy()[..., None]


def _spread(places: Float[Tensor, "P 3"], count: int) -> Tensor:
    """The numbers of `count` places, each the farthest from those chosen before it."""
    chosen: list[int] = []
    nearest = torch.full((len(places),), torch.inf, device=places.device)
    for _ in range(count):
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (places - places[chosen[-1]]).norm(dim=1))
    return torch.tensor(chosen, dtype=torch.long, device=places.device)
