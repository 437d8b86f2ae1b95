"""Takes gsplat's place without a device: its documented interface, drawn by the dense reference; any precision."""

from types import SimpleNamespace

import torch

from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Splats
from nfc_gs.core.harmonics import basis
from nfc_gs.rasterizers import reference
from nfc_gs.rasterizers.gsplat import SH_C0


def rasterization(
    *, means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane, eps2d, sh_degree, packed,
    backgrounds, render_mode, absgrad, rasterize_mode, channel_chunk,
):  # fmt: skip
    """`gsplat.rasterization` of one camera, as version 1.5.3 documents arguments and notes."""
    assert eps2d == 0.3 and sh_degree is None and len(means) > 0
    assert viewmats.shape == (1, 4, 4) and Ks.shape == (1, 3, 3)
    # Packed, version 1.5.3 asserts that a background has no axis of pictures, which it then wants.
    assert backgrounds is None if packed else backgrounds.shape == (1, colors.shape[1])
    assert colors.shape[1] <= channel_chunk
    matrix = Ks[0].tolist()
    camera = Camera(
        world_to_camera=viewmats[0],
        focal=(matrix[0][0], matrix[1][1]),
        centre=(matrix[0][2], matrix[1][2]),
        width=width,
        height=height,
        near=near_plane,
    )
    splats = Splats(means=means, quats=quats, scales=scales, opacities=opacities, values=colors)
    means2d, covariances, depths = reference.project(splats, camera)
    with torch.no_grad():
        radii = reference.extents(splats, camera, means2d, covariances)
    numbers = (radii > 0).all(1).nonzero()[:, 0] if packed else torch.arange(len(means))
    if rasterize_mode == "antialiased":
        before = covariances - eps2d * torch.eye(2).to(covariances)
        shrink = (before.det().clamp_min(0) / covariances.det()).sqrt()
        opacities = opacities * shrink
    splats = Splats(
        means=means[numbers], quats=quats[numbers], scales=scales[numbers], opacities=opacities[numbers],
        values=colors[numbers],
    )  # fmt: skip
    projected = means2d[numbers] if packed else means2d[None]
    copies = (projected if packed else projected[0]).expand(width * height, -1, -1)
    if absgrad and copies.requires_grad:

        def remember(gradient):
            total = gradient.abs().sum(0)
            projected.absgrad = total if packed else total[None]

        copies.register_hook(remember)
    order = torch.argsort(depths[numbers], stable=True)
    visible = (radii[numbers] > 0).all(1)
    seen, remaining = reference.weigh(splats, camera, copies, covariances[numbers], visible, order)
    drawn = seen @ splats.values[order] + remaining[:, None] * (0 if packed else backgrounds)
    if render_mode == "RGB+D":
        drawn = torch.cat([drawn, (seen @ depths[numbers][order])[:, None]], 1)
    notes = {"means2d": projected, "radii": radii[numbers] if packed else radii[None], "gaussian_ids": None}
    if packed:
        notes["gaussian_ids"] = numbers
    return drawn.reshape(1, height, width, -1), (1 - remaining).reshape(1, height, width, 1), notes


def spherical_harmonics(degrees_to_use, dirs, coeffs, masks=None):
    """`gsplat.spherical_harmonics`: no 0.5 is added, and directions may have any length."""
    values = basis(torch.nn.functional.normalize(dirs, dim=-1), degrees_to_use)
    count = values.shape[1]
    return SH_C0 * coeffs[:, 0] + (values[..., None] * coeffs[:, 1 : 1 + count]).sum(1)


def adam(param, param_grad, exp_avg, exp_avg_sq, valid, lr, b1, b2, eps):
    """gsplat's kernel of a step: in place, without any correction of bias."""
    rows = valid.nonzero()[:, 0]
    first = b1 * exp_avg[rows] + (1 - b1) * param_grad[rows]
    second = b2 * exp_avg_sq[rows] + (1 - b2) * param_grad[rows] ** 2
    exp_avg[rows], exp_avg_sq[rows] = first, second
    param[rows] -= lr * first / (second.sqrt() + eps)


def package():
    """What `import gsplat` would give."""
    return SimpleNamespace(
        rasterization=rasterization,
        spherical_harmonics=spherical_harmonics,
        cuda=SimpleNamespace(_wrapper=SimpleNamespace(adam=adam)),
    )
