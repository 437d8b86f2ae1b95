"""Every splat against every pixel, in plain torch: slow, of any precision, and the judge of all other rasterizers."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nfc_gs.config import spec
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Splats
from nfc_gs.core.harmonics import evaluate
from nfc_gs.core.rendering import ALPHA_MAX, ALPHA_MIN, SCREEN_BLUR, TRANSMITTANCE_MIN, Rendering
from nfc_gs.core.rotations import quats_to_matrices
from nfc_gs.rasterizers.base import Rasterizer


def project(splats: Splats, camera: Camera) -> tuple[Float[Tensor, "N 2"], Float[Tensor, "N 2 2"], Float[Tensor, " N"]]:
    """Screen positions (pixels), screen covariances (square pixels, blur included) and depths of all splats.

    The covariance goes through the derivative of the perspective (EWA splatting, Zwicker et al. 2001), taken no further
    outside the picture than 0.3 half-pictures, as in gsplat. Where the depth is below `near` the numbers mean nothing.
    """
    rotation = camera.world_to_camera[:3, :3].to(splats.means)
    translation = camera.world_to_camera[:3, 3].to(splats.means)
    x, y, z = (splats.means @ rotation.T + translation).unbind(-1)
    z = z.clamp(min=camera.near)
    (fx, fy), (cx, cy) = camera.focal, camera.centre
    margin_x, margin_y = 0.3 * 0.5 * camera.width / fx, 0.3 * 0.5 * camera.height / fy
    near_x = z * (x / z).clamp(-cx / fx - margin_x, (camera.width - cx) / fx + margin_x)
    near_y = z * (y / z).clamp(-cy / fy - margin_y, (camera.height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * near_x / z**2, zero, fy / z, -fy * near_y / z**2], -1).unflatten(
        -1, (2, 3)
    )
    roots = jacobian @ rotation @ (quats_to_matrices(splats.quats) * splats.scales[:, None, :])
    covariances = roots @ roots.mT + SCREEN_BLUR * torch.eye(2).to(splats.means)
    return torch.stack([fx * x / z + cx, fy * y / z + cy], -1), covariances, z


def extents(
    splats: Splats, camera: Camera, means2d: Float[Tensor, "N 2"], covariances: Float[Tensor, "N 2 2"]
) -> Int[Tensor, "N 2"]:
    """Half extents of the boxes in which alpha reaches 1/255, in whole pixels; 0 where a splat is not drawn."""
    reach = (2 * (splats.opacities / ALPHA_MIN).log()).clamp(min=0).sqrt()
    half = reach[:, None] * covariances.diagonal(dim1=1, dim2=2).sqrt()
    size = half.new_tensor([camera.width, camera.height])
    depths = splats.means @ camera.world_to_camera[2, :3].to(splats.means) + camera.world_to_camera[2, 3].to(
        splats.means
    )
    drawn = (depths >= camera.near) & (splats.opacities >= ALPHA_MIN)
    drawn &= ((means2d + half > 0) & (means2d - half < size)).all(1)
    return torch.where(drawn[:, None], half.clamp(min=1).ceil(), 0).int()


def weigh(
    splats: Splats,
    camera: Camera,
    means2d: Float[Tensor, "... N 2"],
    covariances: Float[Tensor, "N 2 2"],
    visible: Bool[Tensor, " N"],
    order: Int[Tensor, " N"],
) -> tuple[Float[Tensor, "P N"], Float[Tensor, " P"]]:
    """Each splat's weight at each of the P = H W pixels (columns in `order`), and what light is left behind them."""
    rows, columns = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
    pixels = torch.stack([columns, rows], -1).reshape(-1, 1, 2).to(means2d) + 0.5
    offsets = means2d[..., order, :] - pixels
    inverses = torch.linalg.inv(covariances[order])
    exponents = 0.5 * torch.einsum("pni,nij,pnj->pn", offsets, inverses, offsets)
    alphas = (splats.opacities[order] * (-exponents).exp()).clamp(max=ALPHA_MAX)
    alphas = torch.where((alphas >= ALPHA_MIN) & visible[order], alphas, 0)
    through = (1 - alphas).cumprod(1)
    before = torch.cat([torch.ones_like(through[:, :1]), through[:, :-1]], 1)
    # A pixel that has stopped stays stopped: `through` only falls.
    composited = through > TRANSMITTANCE_MIN
    weights = torch.where(composited, alphas * before, 0)
    return weights, torch.where(composited, 1 - alphas, 1).prod(1)


@spec
class Reference(Rasterizer):
    """Dense compositing with autograd; memory grows as pixels times splats, so for tests and toys."""

    @property
    def device(self) -> str:
        """The CPU."""
        return "cpu"

    def shade(
        self,
        base: Float[Tensor, "N 3"],
        harmonics: Float[Tensor, "N L 3"],
        means: Float[Tensor, "N 3"],
        position: Float[Tensor, "3"],
        degree: int,
    ) -> Float[Tensor, "N 3"]:
        """See `Rasterizer`."""
        return evaluate(base, harmonics, means, position, degree)

    def __call__(
        self,
        splats: Splats,
        camera: Camera,
        background: Float[Tensor, " C"],
        *,
        depth: bool = False,
        absgrad: bool = False,
        weights: bool = False,
    ) -> Rendering:
        """See `Rasterizer`; the precision is that of `splats.means`."""
        finite = torch.stack([t.detach().isfinite().all(1) for t in _geometry(splats)]).all(0)
        means2d, covariances, depths = project(splats, camera)
        if means2d.requires_grad:
            means2d.retain_grad()
        with torch.no_grad():
            radii = extents(splats, camera, means2d, covariances) * finite[:, None]
            order = torch.argsort(depths, stable=True)
        # For absgrad every pixel has its own copy of the positions, whose gradients can be told apart.
        copies = means2d.expand(camera.height * camera.width, -1, -1) if absgrad else means2d
        if absgrad and copies.requires_grad:
            copies.retain_grad()
        seen, remaining = weigh(splats, camera, copies, covariances, radii[:, 0] > 0, order)
        shape = (camera.height, camera.width)

        def gather(picture: Float[Tensor, "H W P"]) -> tuple[Float[Tensor, "N P"], Float[Tensor, " N"]]:
            sums = seen.new_zeros(len(splats), picture.shape[-1])
            totals = seen.new_zeros(len(splats))
            still = seen.detach()
            sums[order], totals[order] = still.T @ picture.reshape(-1, picture.shape[-1]).to(still), still.sum(0)
            return sums, totals

        def absolute() -> Float[Tensor, "N 2"]:
            if copies.grad is None:
                raise RuntimeError("absgrad is known only after the backward pass")
            return copies.grad.abs().sum(0)

        def total() -> Float[Tensor, " N"]:
            return gather(seen.new_zeros(*shape, 1))[1]

        return Rendering(
            channels=(seen @ splats.values[order] + remaining[:, None] * background.to(seen)).reshape(*shape, -1),
            alpha=(1 - remaining).reshape(shape),
            depth=(seen @ depths[order]).reshape(shape) if depth else None,
            means2d=means2d,
            radii=radii,
            gather=gather,
            absgrad=absolute if absgrad else None,
            weights=total if weights else None,
        )


def _geometry(splats: Splats) -> tuple[Tensor, ...]:
    return splats.means, splats.scales, splats.quats, splats.opacities[:, None]


Spec = Reference
