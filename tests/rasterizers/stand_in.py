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
    """`gsplat.rasterization`, as version 1.5.3 documents arguments and notes."""
    assert eps2d == 0.3 and sh_degree is None and len(means) > 0
    cameras = len(viewmats)
    assert viewmats.shape == (cameras, 4, 4) and Ks.shape == (cameras, 3, 3)
    assert colors.shape[:-1] in {(len(means),), (cameras, len(means))}
    # Packed, version 1.5.3 asserts that a background has no axis of pictures, which it then wants.
    assert backgrounds is None if packed else backgrounds.shape == (cameras, colors.shape[-1])
    assert colors.shape[-1] <= channel_chunk
    drawn = []
    for number in range(cameras):
        matrix = Ks[number].tolist()
        camera = Camera(
            world_to_camera=viewmats[number],
            focal=(matrix[0][0], matrix[1][1]),
            centre=(matrix[0][2], matrix[1][2]),
            width=width,
            height=height,
            near=near_plane,
        )
        values = colors if colors.ndim == 2 else colors[number]
        drawn.append(_projected(means, quats, scales, opacities, values, camera, packed, eps2d, rasterize_mode))
    rows = [each.numbers for each in drawn]
    # One tensor of all pictures' places, from which they are drawn: its gradient is what gsplat's own has.
    projected = (torch.cat if packed else torch.stack)([each.means2d for each in drawn])
    starts = torch.tensor([0, *map(len, rows)]).cumsum(0).tolist()
    pictures = []
    for i, each in enumerate(drawn):
        mine = slice(starts[i], starts[i + 1]) if packed else i
        pictures.append(_composited(each, projected, mine, None if packed else backgrounds[i], render_mode, absgrad))
    radii = [each.radii[each.numbers] for each in drawn]
    notes = {"means2d": projected, "camera_ids": None, "gaussian_ids": None}
    notes["radii"] = torch.cat(radii) if packed else torch.stack(radii)
    if packed:
        notes["gaussian_ids"] = torch.cat(rows)
        notes["camera_ids"] = torch.cat([torch.full_like(row, i) for i, row in enumerate(rows)])
    return torch.stack([picture for picture, _ in pictures]), torch.stack([alpha for _, alpha in pictures]), notes


def _projected(means, quats, scales, opacities, values, camera, packed, eps2d, rasterize_mode):
    """What one camera sees, those alone that it sees where that is asked for."""
    splats = Splats(means=means, quats=quats, scales=scales, opacities=opacities, values=values)
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
        values=values[numbers],
    )  # fmt: skip
    return SimpleNamespace(
        splats=splats, camera=camera, means2d=means2d[numbers], covariances=covariances[numbers], depths=depths[numbers],
        radii=radii, numbers=numbers,
    )  # fmt: skip


def _composited(seen, projected, mine, background, render_mode, absgrad):
    """One picture and its alpha, from its part of all places; absolute gradients are left where gsplat leaves them."""
    camera = seen.camera
    copies = projected[mine].expand(camera.width * camera.height, -1, -1)
    if absgrad and copies.requires_grad:

        def remember(gradient):
            if not hasattr(projected, "absgrad"):
                projected.absgrad = torch.zeros_like(projected)
            projected.absgrad[mine] = gradient.abs().sum(0)

        copies.register_hook(remember)
    order = torch.argsort(seen.depths, stable=True)
    visible = (seen.radii[seen.numbers] > 0).all(1)
    weights, remaining = reference.weigh(seen.splats, camera, copies, seen.covariances, visible, order)
    drawn = weights @ seen.splats.values[order] + remaining[:, None] * (0 if background is None else background)
    if render_mode == "RGB+D":
        drawn = torch.cat([drawn, (weights @ seen.depths[order])[:, None]], 1)
    return drawn.reshape(camera.height, camera.width, -1), (1 - remaining).reshape(camera.height, camera.width, 1)


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
