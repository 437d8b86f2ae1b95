"""Points along a space-filling curve, so that neighbours in space are mostly neighbours in memory."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Cells along each axis, as a power of two: three times this many bits fit the 63 that an int64 has to spare.
BITS = 16


def morton_order(points: Float[Tensor, "N 3"]) -> Int[Tensor, " N"]:
    """The order of the points along Morton's curve (1966) through their bounding cube; points of one cell by index.

    Points that are not finite come last.
    """
    finite = points.isfinite().all(1)
    if not finite.any():
        return torch.arange(len(points), device=points.device)
    inside = points[finite].double()
    low = inside.min(0).values
    size = (inside.max(0).values - low).max().clamp_min(torch.finfo(torch.float64).tiny)
    cells = ((inside - low) / size * (2**BITS - 1)).long()
    keys = torch.full((len(points),), torch.iinfo(torch.int64).max, device=points.device)
    keys[finite] = _spread(cells[:, 0]) << 2 | _spread(cells[:, 1]) << 1 | _spread(cells[:, 2])
    return keys.argsort(stable=True)


def _spread(numbers: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """The bits of 16-bit numbers moved apart, two zeros between neighbours."""
    numbers = (numbers | numbers << 16) & 0x0000_FF00_00FF
    numbers = (numbers | numbers << 8) & 0x00F0_0F00_F00F
    numbers = (numbers | numbers << 4) & 0x0C30_C30C_30C3
    return (numbers | numbers << 2) & 0x2492_4924_9249
