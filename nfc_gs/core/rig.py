"""What the cameras of a capture say together: which way is up, and what they look at."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nfc_gs.core.camera import Camera

# Below this share of the largest, an eigenvalue is called zero: the cameras' axes are parallel to within 6 degrees.
PARALLEL = 0.01


@dataclass(frozen=True, kw_only=True)
class Rig:
    """`up` of unit length and `target`, the point the cameras look at, in the coordinates of the cameras (float64)."""

    up: Float[Tensor, "3"]
    target: Float[Tensor, "3"]


def rig_of(cameras: Sequence[Camera], otherwise: Float[Tensor, "3"]) -> Rig:
    """The up axis and the point looked at.

    A camera held level has its horizontal axis at a right angle to up, so up is the direction that those axes have least
    of, with the sign of the cameras' own up. Where they all look the same way, that leaves up open, and it is the mean of
    the cameras' own. The target is the point nearest to all optical axes (least squares); where these are parallel there
    is none, and it is the point of the mean axis nearest to `otherwise`.

    Args:
        cameras: at least one.
        otherwise: a point of the subject, as the middle of the Gaussians.
    """
    poses = torch.stack([camera.world_to_camera for camera in cameras]).double().cpu()
    rotations = poses[:, :3, :3]
    positions = -(rotations.mT @ poses[:, :3, 3:])[..., 0]
    right, down, forward = rotations.unbind(1)
    own = -down.mean(0)
    sizes, axes = torch.linalg.eigh(right.T @ right)
    up = axes[:, 0] * torch.where(axes[:, 0] @ own < 0, -1.0, 1.0)
    if sizes[1] < PARALLEL * sizes[2]:
        up = own / own.norm().clamp(min=1e-12)
    across = torch.eye(3, dtype=torch.float64) - forward[:, :, None] * forward[:, None, :]
    normal = across.sum(0)
    sizes = torch.linalg.eigvalsh(normal)
    if sizes[0] > PARALLEL * sizes[2]:
        return Rig(up=up, target=torch.linalg.solve(normal, (across @ positions[:, :, None]).sum(0)[:, 0]))
    axis, middle = forward.mean(0), positions.mean(0)
    axis = axis / axis.norm()
    return Rig(up=up, target=middle + axis * (axis @ (otherwise.double().cpu() - middle)))


def look_at(position: Float[Tensor, "3"], target: Float[Tensor, "3"], up: Float[Tensor, "3"]) -> Float[Tensor, "4 4"]:
    """The world-to-camera matrix of a level camera at `position` with `target` in its middle."""
    forward = torch.nn.functional.normalize(target - position, dim=0)
    right = torch.linalg.cross(forward, up)
    if right.norm() < 1e-6:  # straight up or down every heading is level: any one will do
        right = torch.linalg.cross(forward, up.roll(1) + up.new_tensor([0.1, 0.2, 0.3]))
    right = torch.nn.functional.normalize(right, dim=0)
    matrix = torch.eye(4, dtype=position.dtype)
    matrix[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    matrix[:3, 3] = -matrix[:3, :3] @ position
    return matrix
