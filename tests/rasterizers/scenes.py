"""Scenes and cameras to draw, and the pixels in which float32 cannot decide a threshold."""

import torch
from torch import Tensor

from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Splats
from nfc_gs.core.rendering import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN
from nfc_gs.rasterizers import reference

INPUTS = ("means", "scales", "quats", "opacities", "values")
# Relative distance from a threshold that float32 arithmetic may not resolve: some hundred roundings.
UNDECIDED = 2e-5


def splats(count: int, channels: int, seed: int = 0, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Splats:
    """A cloud around the origin, with all that can go wrong in it; the same in every precision."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    means, scales, quats = normal(count, 3), (0.7 * normal(count, 3) - 2.5).exp(), normal(count, 4)
    opacities, values = torch.sigmoid(2 * normal(count)), torch.rand(count, channels, generator=generator)
    if count >= 20:
        means[0:3, 2] = -10  # behind the camera
        means[3:6, 0] = 50  # far outside the picture
        means[6:8, 0] = 2.2  # its middle just outside
        scales[8:11] = torch.tensor([1.5, 1e-3, 1e-3])  # needles
        scales[11:13] = 1e-6  # specks, drawn by the blur alone
        opacities[13:15] = 0
        opacities[15:17] = 0.9999  # capped in the middle
        scales[17:19] = torch.tensor([2.0, 2.0, 1e-4])  # sheets
        means[19] = torch.tensor([0.05, 0.0, -2.9])  # right before the lens
    tensors = {"means": means, "scales": scales, "quats": quats, "opacities": opacities, "values": values}
    return Splats(**{name: tensor.to(device, dtype).requires_grad_() for name, tensor in tensors.items()})


def camera(width: int, height: int) -> Camera:
    """Three units off, with unequal focal lengths and the centre not in the middle."""
    matrix = torch.eye(4)
    matrix[:3, :3] = torch.linalg.qr(torch.eye(3) + 0.1 * torch.arange(9.0).reshape(3, 3).sin())[0]
    matrix[:3, :3] *= matrix[:3, :3].diagonal().sign()[None]
    matrix[:3, 3] = torch.tensor([0.2, -0.1, 3.0])
    return Camera(
        world_to_camera=matrix,
        focal=(1.3 * width, 1.2 * width),
        centre=(0.42 * width, 0.57 * height),
        width=width,
        height=height,
    )


def undecided(cloud: Splats, seen_from: Camera) -> Tensor:
    """Pixels [H W] in which, in float64, an alpha or a transmittance lies within UNDECIDED of its threshold."""
    with torch.no_grad():
        means2d, covariances, depths = reference.project(cloud, seen_from)
        visible = reference.extents(cloud, seen_from, means2d, covariances)[:, 0] > 0
        rows, columns = torch.meshgrid(torch.arange(seen_from.height), torch.arange(seen_from.width), indexing="ij")
        pixels = torch.stack([columns, rows], -1).reshape(-1, 1, 2).to(means2d) + 0.5
        order = torch.argsort(depths[visible])
        offsets = means2d[visible][order] - pixels
        inverses = torch.linalg.inv(covariances[visible][order])
        exponents = 0.5 * (offsets[..., None, :] @ inverses @ offsets[..., :, None]).squeeze((-1, -2))
        alphas = cloud.opacities[visible][order] * (-exponents).exp()
        near = (alphas / ALPHA_MIN - 1).abs() < UNDECIDED
        near |= (alphas / ALPHA_MAX - 1).abs() < UNDECIDED
        through = (1 - torch.where(alphas >= ALPHA_MIN, alphas.clamp(max=ALPHA_MAX), 0)).cumprod(1)
        near |= (through / TRANSMITTANCE_MIN - 1).abs() < 50 * UNDECIDED  # a product of many factors
        return near.any(1).reshape(seen_from.height, seen_from.width)
