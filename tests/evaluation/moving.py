"""A moving scene whose every picture is known from a still one: coloured blobs that slide sideways, evenly in time."""

import math
from dataclasses import replace

import numpy as np
import torch

from nfc_gs.codes.identity import Identity
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Gaussians
from nfc_gs.core.rig import look_at
from nfc_gs.core.scene import Photograph, Scene, Similarity, View
from nfc_gs.deformations.base import DeformationField, Moved
from nfc_gs.deformations.static import Rest
from nfc_gs.model import SplatModel
from nfc_gs.rasterizers.reference import Reference

WIDTH, HEIGHT = 48, 36
# How far everything goes from time 0 to 1, in world units.
SLIDE = (0.6, 0.0, 0.0)


class Slide(DeformationField):
    """x + t * SLIDE, for the Gaussians whose first number of motion is 1."""

    def forward(self, gaussians, time):
        """A translation linear in time."""
        shift = time * gaussians.motion[:, :1] * torch.tensor(SLIDE)
        return Moved(gaussians=replace(gaussians, means=gaussians.means + shift))

    def advance(self, population, progress):
        """Nothing is learnt."""

    def groups(self):
        """None."""
        return {}

    def rates(self, progress):
        """None."""
        return {}

    def penalties(self, gaussians, time):
        """None."""
        return {}

    def scalars(self):
        """None."""
        return {}


def model(still=False, resting=0, count=12) -> SplatModel:
    """Blobs about the origin, the last `resting` of which do not move."""
    generator = torch.Generator().manual_seed(3)
    motion = torch.ones(count, 1)
    motion[count - resting :] = 0
    return SplatModel(
        gaussians=Gaussians(
            means=torch.rand(count, 3, generator=generator) - 0.5,
            log_scales=torch.full((count, 3), -2.3) + 0.3 * torch.rand(count, 3, generator=generator),
            quats=torch.randn(count, 4, generator=generator),
            colour_logits=4 * torch.rand(count, 3, 1, generator=generator) - 1,
            opacity_logits=torch.full((count, 1), 2.0),
            harmonics=0.3 * torch.randn(count, 3, 3, generator=generator),
            motion=motion,
        ),
        code=Identity(),
        opacity_code=Identity(),
        rasterizer=Reference(),
        field=Rest() if still else Slide(),
        degree=1,
        background=(0.1, 0.2, 0.3),
        to_world=Similarity(scale=2.0, translation=(1.0, -1.0, 0.5)),
    )


def camera(angle: float, height: float = 0.8, time: float = 0.0, distance: float = 3.0) -> Camera:
    """One of a level ring about the z axis, looking at the origin."""
    position = torch.tensor([distance * math.cos(angle), distance * math.sin(angle), height])
    up = torch.tensor([0.0, 0.0, 1.0])
    return Camera(
        world_to_camera=look_at(position, torch.zeros(3), up),
        focal=(60.0, 60.0),
        centre=(WIDTH / 2, HEIGHT / 2),
        width=WIDTH,
        height=HEIGHT,
        time=time,
    )


def scene(num_train=8) -> Scene:
    """A ring of cameras at times from 0 to 1, and two held-out ones; the photographs are black."""

    def view(name, seen):
        return View(name=name, camera=seen, read=lambda: Photograph(rgb=np.zeros((HEIGHT, WIDTH, 3), np.uint8)))

    turn = 2 * math.pi / num_train
    ring = [camera(turn * i, time=i / (num_train - 1)) for i in range(num_train)]
    return Scene(
        train=tuple(view(f"r_{i:03d}.png", seen) for i, seen in enumerate(ring)),
        test=(view("top.png", camera(0.3, 1.5, 0.25)), view("side.png", camera(1.3, 0.5, 0.75))),
        points=None,
        extent=1.0,
    )
