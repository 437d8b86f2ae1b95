"""How far apart points are: the size a Gaussian starts with."""

import torch
from jaxtyping import Float
from torch import Tensor

# The smallest mean square distance, in squared world units (3DGS, Kerbl et al. 2023): coinciding points get a size too.
MEAN_SQUARE_MIN = 1e-7


def mean_neighbour_distance(points: Float[Tensor, "P 3"], k: int = 3) -> Float[Tensor, " P"]:
    """The root mean square of each point's distances to its `k` nearest others, in world units.

    With `k` others or fewer, all of them are taken; a lone point gets the smallest distance, the root of
    `MEAN_SQUARE_MIN`. The tree is searched on the CPU in float64; the answer is on the points' device, in their type.
    """
    neighbours = min(k, len(points) - 1)
    if neighbours < 1:
        return points.new_full((len(points),), MEAN_SQUARE_MIN**0.5)
    from scipy.spatial import cKDTree  # here, because importing it takes long and only new scenes need it

    xyz = points.detach().cpu().double().numpy()
    distances, _ = cKDTree(xyz).query(xyz, k=neighbours + 1)
    # The nearest of all is the point itself, or a duplicate of it at the same distance zero.
    mean_square = torch.from_numpy(distances[:, 1:]).square().mean(1)
    return mean_square.clamp_min(MEAN_SQUARE_MIN).sqrt().to(points)
