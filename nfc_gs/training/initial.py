"""The first Gaussians, from points or from nothing."""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from nfc_gs.codes.base import TargetCode
from nfc_gs.core.gaussians import Gaussians
from nfc_gs.core.neighbours import mean_neighbour_distance
from nfc_gs.core.scene import Points, Scene
from nfc_gs.model import target_of
from nfc_gs.training.experiment import InitialSettings

# Harmonics of degree 1 to d, as a function of d.
NUM_HARMONICS = (0, 3, 8, 15)
# By so many photographs, and so many pixels of each, evenly chosen, a code is fitted to a scene.
FITTED_VIEWS, FITTED_PIXELS = 64, 100_000


def code_for(code: TargetCode, scene: Scene) -> TargetCode:
    """The code, fitted to the training photographs' colours if it asks for them."""
    if not code.adapts:
        return code
    step = -(-len(scene.train) // FITTED_VIEWS)
    background = torch.tensor(scene.background)
    colours = []
    for view in scene.train[::step]:
        target = target_of(view.read(), background)
        pixels = target.rgb.flatten(0, 1) if target.mask is None else target.rgb[target.mask]
        colours.append(pixels[:: -(-len(pixels) // FITTED_PIXELS) or 1])
    return code.fit(torch.cat(colours))


def first_gaussians(
    scene: Scene,
    settings: InitialSettings,
    code: TargetCode,
    opacity_code: TargetCode,
    sh_degree: int,
    motion_width: int,
    generator: Generator,
) -> Gaussians:
    """Round Gaussians as large as the distance to their neighbours, turned at random (Kerbl et al. 2023)."""
    points = scene.points
    if points is None or len(points.xyz) == 0:
        points = random_points(scene, settings.random, generator)
    elif len(points.xyz) > settings.max_points:
        kept = torch.randperm(len(points.xyz), generator=generator)[: settings.max_points].sort().values
        points = Points(xyz=points.xyz[kept], rgb=points.rgb[kept])
    num = len(points.xyz)
    # A lone point far from all others must not begin as a splat that covers the scene.
    sizes = (mean_neighbour_distance(points.xyz) * settings.scale).clamp(1e-6 * scene.extent, 0.1 * scene.extent)
    return Gaussians(
        means=points.xyz.clone(),
        log_scales=sizes.log()[:, None].repeat(1, 3),
        quats=torch.randn(num, 4, generator=generator),
        colour_logits=code.logits(points.rgb, unit=False),
        opacity_logits=opacity_code.logits(torch.full((num,), settings.opacity), unit=True),
        harmonics=torch.zeros(num, NUM_HARMONICS[sh_degree], 3),
        motion=torch.zeros(num, motion_width),
    )


def random_points(scene: Scene, num: int, generator: Generator) -> Points:
    """Grey points, evenly in the scene's box where it has one, otherwise in the training cameras' frustums."""
    if scene.bounds is not None:
        low, high = scene.bounds
        xyz = low + (high - low) * torch.rand(num, 3, generator=generator)
    else:
        xyz = _in_frustums(scene, num, generator)
    return Points(xyz=xyz, rgb=torch.full((num, 3), 0.5))


def _in_frustums(scene: Scene, num: int, generator: Generator) -> Float[Tensor, "P 3"]:
    """Points that some camera sees, at depths from a tenth of the extent to three times it, evenly in the logarithm."""
    which = torch.randint(len(scene.train), (num,), generator=generator)
    across = torch.rand(num, 2, generator=generator)
    depth = scene.extent * torch.exp(
        torch.rand(num, generator=generator) * (math.log(3.0) - math.log(0.1)) + math.log(0.1)
    )
    xyz = torch.empty(num, 3)
    for number, view in enumerate(scene.train):
        mine = which == number
        size = torch.tensor([view.camera.width, view.camera.height], dtype=torch.float32)
        xyz[mine] = view.camera.unproject(across[mine] * size, depth[mine])
    return xyz
