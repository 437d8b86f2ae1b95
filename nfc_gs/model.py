"""The model: Gaussians, their codes, where they move, and the one way they are rendered."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nfc_gs.codes.base import TargetCode
from nfc_gs.core import channels
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Gaussians, Population, Splats
from nfc_gs.core.rendering import Rendering
from nfc_gs.core.rounding import UNROUNDED, Rounding, rounded
from nfc_gs.core.scene import Photograph, Pixels, Similarity
from nfc_gs.deformations.base import DeformationField
from nfc_gs.kernels import pictures, rows
from nfc_gs.kernels.threads import threads_for
from nfc_gs.losses.base import Appearance, Comparison, PlaneLoss
from nfc_gs.rasterizers.base import Rasterizer

NO_PLANES: Mapping[str, PlaneLoss] = {}
NO_MEMORY: Mapping[str, dict[str, Tensor]] = {}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A rendered view: colour (not clamped above), the planes that losses asked for, and how it came about."""

    rgb: Float[Tensor, "H W 3"]
    planes: dict[str, Tensor]
    rendering: Rendering
    appearance: Appearance
    splats: Splats
    background: Float[Tensor, "3"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A photograph as tensors: `rgb` in [0, 1], composited over the background of the picture it is compared with."""

    rgb: Tensor
    alpha: Tensor | None
    mask: Tensor | None


@dataclass(kw_only=True)
class SplatModel:
    """Everything that is needed to draw the scene; training, evaluation and export all look through `render`.

    `degree` is the spherical harmonics' degree in use, at most what `gaussians.harmonics` holds; `background` the colour
    behind everything, in [0, 1]; `to_world` leads back to the input data's coordinates; `extent` is the scene's radius;
    `rounding` what is rounded to few bits now.
    """

    gaussians: Gaussians
    code: TargetCode
    opacity_code: TargetCode
    rasterizer: Rasterizer
    field: DeformationField
    degree: int
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    to_world: Similarity = field(default_factory=Similarity)
    extent: float = 1.0
    rounding: Rounding = UNROUNDED

    def at(self, time: float) -> tuple[Gaussians, Float[Tensor, "N 3"]]:
        """The Gaussians at a time in [0, 1], and their decoded colours there without the view-dependent part.

        Colours are in [0, 1] for bit codes of still scenes, unbounded otherwise.
        """
        moved = self.field(self.gaussians, time)
        base = self.base_colours(moved.gaussians)
        return moved.gaussians, base if moved.colour_residual is None else base + moved.colour_residual

    def base_colours(self, gaussians: Gaussians) -> Float[Tensor, "N 3"]:
        """Decoded colours without the view-dependent part, rounded if that is due."""
        return rounded(self.code.values(gaussians.colour_logits, unit=False), self.rounding.colour_bits)

    def opacities_of(self, gaussians: Gaussians) -> Float[Tensor, " N"]:
        """Decoded opacities in [0, 1], rounded if that is due."""
        return rounded(self.opacity_code.values(gaussians.opacity_logits, unit=True), self.rounding.opacity_bits)

    def opacities(self) -> Float[Tensor, " N"]:
        """Decoded opacities, in [0, 1]."""
        return self.opacities_of(self.gaussians)

    def population(self) -> Population:
        """What a strategy looks at, detached."""
        gaussians = self.gaussians.map(torch.detach)
        return Population(
            gaussians=gaussians,
            decode_opacities=lambda: self.opacity_code.values(gaussians.opacity_logits, unit=True),
            encode_opacities=lambda opacities: self.opacity_code.logits(opacities, unit=True),
            extent=self.extent,
        )

    def render(
        self,
        camera: Camera,
        *,
        background: Tensor | None = None,
        planes: Mapping[str, PlaneLoss] = NO_PLANES,
        depth: bool = False,
        absgrad: bool = False,
        weights: bool = False,
        step: int = 0,
        view: int = 0,
        memory: Mapping[str, dict[str, Tensor]] = NO_MEMORY,
    ) -> Picture:
        """What `camera` sees, over `background` [3] (default: the model's own).

        `planes` are losses that want more than colour composited; each one's channels ride along in the same pass. `step`
        is the training step, if this is one, `view` its view's number, and `memory` what losses remember.
        """
        device = self.gaussians.means.device
        camera = camera.to(device)
        if background is None:
            background = torch.tensor(self.background, device=device)
        moved, base = self.at(camera.time)
        colours = self.rasterizer.shade(base, moved.harmonics, moved.means, camera.position, self.degree)
        appearance = Appearance(
            colours=colours,
            base=base,
            colour_logits=moved.colour_logits,
            code=self.code,
            step=step,
            view=view,
            memory=memory,
        )
        extra = {name: loss.planes(appearance) for name, loss in planes.items()}
        behind = [loss.background(background, appearance) for loss in planes.values()]
        splats = Splats(
            means=moved.means,
            scales=moved.log_scales.exp(),
            quats=moved.quats,
            opacities=self.opacities_of(moved),
            values=channels.join([colours, *extra.values()]) if extra else colours,
        )
        rendering = self.rasterizer(
            splats,
            camera,
            torch.cat([background, *behind]) if behind else background,
            depth=depth,
            absgrad=absgrad,
            weights=weights,
        )
        widths = [3, *(plane.shape[1] for plane in extra.values())]
        # Cutting costs a copy both ways, so it is done only where there is something to cut off.
        parts = channels.cut(rendering.channels, widths) if extra else (rendering.channels,)
        return Picture(
            rgb=parts[0],
            planes=dict(zip(extra, parts[1:], strict=True)),
            rendering=rendering,
            appearance=appearance,
            splats=splats,
            background=background,
        )


def target_of(photograph: Photograph, background: Float[Tensor, "3"]) -> Target:
    """A photograph as float tensors on the background's device, transparent pixels composited over it."""
    return compose(Pixels.of(photograph).map(lambda tensor: tensor.to(background.device)), background)


def compose(pixels: Pixels, background: Float[Tensor, "3"]) -> Target:
    """8-bit tensors as floats, transparent pixels composited over the background, which is on the same device."""
    if background.device.type == "cpu" and background.dtype == torch.float32:
        rgb, alpha = _numbers(pixels.rgb, pixels.alpha, background)
        return Target(rgb=rgb, alpha=alpha, mask=pixels.mask)
    rgb, alpha = pixels.rgb.float().div_(255), None
    if pixels.alpha is not None:
        alpha = pixels.alpha.float().div_(255)
        rgb = rgb + (1 - alpha)[..., None] * background
    return Target(rgb=rgb, alpha=alpha, mask=pixels.mask)


def _numbers(
    codes: UInt8[Tensor, "H W 3"], alpha_codes: UInt8[Tensor, "H W"] | None, background: Float[Tensor, "3"]
) -> tuple[Tensor, Tensor | None]:
    """A photograph's colours and alpha as floats, in one pass by the compiled kernel; the same bits as by torch."""
    height, width = codes.shape[:2]
    clear = torch.empty(0, width, dtype=torch.uint8) if alpha_codes is None else alpha_codes
    rgb, alpha = torch.empty(height, width, 3), torch.empty(clear.shape)
    rows.split(
        pictures.photograph,
        height,
        threads_for(rgb.numel()),
        codes.contiguous().view(height, 3 * width).numpy(),
        clear.contiguous().numpy(),
        background.contiguous().numpy(),
        rgb.view(height, 3 * width).numpy(),
        alpha.numpy(),
    )
    return rgb, None if alpha_codes is None else alpha


def compare(
    picture: Picture, target: Target, *, memory: dict[str, dict[str, Tensor]], progress: float, step: int
) -> Comparison:
    """A picture laid beside its photograph, for the losses."""
    return Comparison(
        rgb=picture.rgb,
        target_rgb=target.rgb,
        alpha=picture.rendering.alpha,
        target_alpha=target.alpha,
        mask=target.mask,
        appearance=picture.appearance,
        opacities=picture.splats.opacities,
        scales=picture.splats.scales,
        planes=picture.planes,
        memory=memory,
        gather=picture.rendering.gather,
        progress=progress,
        step=step,
    )
