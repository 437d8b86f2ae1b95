"""A scene whose pictures are known without a rasterizer: nothing is drawn, so the background shows."""

import numpy as np
import torch

from nfc_gs.codes.identity import Identity
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Gaussians
from nfc_gs.core.scene import Photograph, View
from nfc_gs.deformations.static import Rest
from nfc_gs.model import SplatModel
from nfc_gs.rasterizers.reference import Reference

WIDTH, HEIGHT = 40, 34


def model(background=(0.0, 0.0, 0.0), count=0) -> SplatModel:
    """`count` wide grey Gaussians, of alpha 0.9 in the picture's middle, and one behind the camera that nobody sees."""
    means = torch.zeros(count + 1, 3)
    means[:, 2] = 2 + torch.arange(count + 1)
    means[count, 2] = -5
    return SplatModel(
        gaussians=Gaussians(
            means=means,
            log_scales=torch.full((count + 1, 3), -0.5),
            quats=torch.tensor([1.0, 0, 0, 0]).repeat(count + 1, 1),
            colour_logits=torch.zeros(count + 1, 3, 1),
            opacity_logits=torch.full((count + 1, 1), float(np.log(9))),
            harmonics=torch.zeros(count + 1, 0, 3),
            motion=torch.zeros(count + 1, 0),
        ),
        code=Identity(),
        opacity_code=Identity(),
        rasterizer=Reference(),
        field=Rest(),
        degree=0,
        background=background,
    )


def view(name: str, photograph: Photograph) -> View:
    """A camera at the origin that looks along z, with a photograph of its own."""
    camera = Camera(
        world_to_camera=torch.eye(4), focal=(30.0, 30.0), centre=(WIDTH / 2, HEIGHT / 2), width=WIDTH, height=HEIGHT
    )
    return View(name=name, camera=camera, read=lambda: photograph)


def flat(level: int, mask=None, alpha=None) -> Photograph:
    """A photograph of one grey level, 0 to 255."""
    return Photograph(rgb=np.full((HEIGHT, WIDTH, 3), level, np.uint8), mask=mask, alpha=alpha)
