"""gsplat's CUDA kernels (Ye et al., JMLR 2025) behind our interface.

Written against the documented interface of gsplat 1.5.3 and its sources. Its tests run only on a machine with a CUDA
device; where they have not been run, take it as unproven.
"""

import functools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from nfc_gs.config import UserError, spec
from nfc_gs.core.camera import Camera
from nfc_gs.core.gaussians import Splats
from nfc_gs.core.rendering import SCREEN_BLUR, Rendering
from nfc_gs.rasterizers.base import Rasterizer


class NoGpuError(UserError):
    """gsplat cannot draw on this machine."""


@functools.cache
def _rasterization() -> Callable[..., tuple[Tensor, Tensor, dict]]:
    """gsplat's one function, once it is known that there is a device for it."""
    if not torch.cuda.is_available():
        raise NoGpuError("rasterizer gsplat: torch sees no CUDA device; use rasterizer.kind=cpu")
    try:
        from gsplat import rasterization
    except ImportError as error:
        raise NoGpuError(f"rasterizer gsplat: cannot be imported ({error}); pip install 'nfc-gs[cuda]'") from None
    return rasterization


@spec
class Gsplat(Rasterizer):
    """Draws on the CUDA device; float32. Unlike `cpu`, it does not look for splats that are not finite."""

    @property
    def device(self) -> str:
        """The CUDA device.

        Raises:
            NoGpuError: without one, or without gsplat.
        """
        _rasterization()
        return "cuda"

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
        """See `Rasterizer`.

        Raises:
            NoGpuError: without a CUDA device, or without gsplat.
        """
        channels, alpha, meta = _draw(splats, camera, splats.values, background, depth, absgrad)
        projected = meta["means2d"]
        means2d = projected[0]
        if projected.requires_grad:
            means2d.retain_grad()
            # gsplat's own tensor [1 N 2] comes before ours in the graph, so its gradient is passed on by hand.
            projected.register_hook(functools.partial(_accumulate, means2d))

        def gather(picture: Float[Tensor, "H W P"]) -> tuple[Float[Tensor, "N P"], Float[Tensor, " N"]]:
            # The gradient of a picture by its splats' values is their weights.
            incoming = torch.cat([picture, torch.ones_like(picture[..., :1])], -1).detach()
            still = Splats(**{name: getattr(splats, name).detach() for name in _GEOMETRY}, values=splats.values)
            with torch.enable_grad():
                values = incoming.new_zeros(len(splats), incoming.shape[-1], requires_grad=True)
                drawn, _, _ = _draw(still, camera, values, values.new_zeros(values.shape[1]), False, False)
                (sums,) = torch.autograd.grad(drawn, values, incoming)
            return sums[:, :-1], sums[:, -1]

        def absolute() -> Float[Tensor, "N 2"]:
            return projected.absgrad[0]

        def weigh() -> Float[Tensor, " N"]:
            return gather(channels.new_zeros(camera.height, camera.width, 1))[1]

        return Rendering(
            channels=channels[..., : splats.values.shape[1]],
            alpha=alpha,
            depth=channels[..., -1] if depth else None,
            means2d=means2d,
            radii=meta["radii"][0],
            gather=gather,
            absgrad=absolute if absgrad else None,
            weights=weigh if weights else None,
        )


_GEOMETRY = ("means", "scales", "quats", "opacities")


def _draw(
    splats: Splats, camera: Camera, values: Tensor, background: Tensor, depth: bool, absgrad: bool
) -> tuple[Float[Tensor, "H W _"], Float[Tensor, "H W"], dict]:
    """The picture (depth last, if asked for), its alpha, and gsplat's notes."""
    (fx, fy), (cx, cy) = camera.focal, camera.centre
    intrinsics = splats.means.new_tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    channels, alphas, meta = _rasterization()(
        means=splats.means,
        quats=splats.quats,
        scales=splats.scales,
        opacities=splats.opacities,
        colors=values,
        viewmats=camera.world_to_camera.to(splats.means)[None],
        Ks=intrinsics[None],
        width=camera.width,
        height=camera.height,
        near_plane=camera.near,
        eps2d=SCREEN_BLUR,
        sh_degree=None,
        packed=False,
        backgrounds=background.to(splats.means)[None],
        render_mode="RGB+D" if depth else "RGB",
        absgrad=absgrad,
    )
    return channels[0], alphas[0, ..., 0], meta


def _accumulate(means2d: Tensor, gradient: Tensor) -> None:
    means2d.grad = gradient[0].clone() if means2d.grad is None else means2d.grad + gradient[0]


Spec = Gsplat
