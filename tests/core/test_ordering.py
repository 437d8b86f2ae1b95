"""The order of points along a space-filling curve."""

import torch

from nfc_gs.core.ordering import BITS, morton_order


def _key(cell: tuple[int, int, int]) -> int:
    """The interleaved bits, one at a time."""
    key = 0
    for bit in range(BITS):
        for axis, number in enumerate(cell):
            key |= (number >> bit & 1) << (3 * bit + 2 - axis)
    return key


def test_the_order_is_that_of_the_interleaved_bits():
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(0, 2**BITS, (500, 3), generator=generator)
    # The corners make the cube exactly the grid, so that a cell's number comes back.
    cells = torch.cat([cells, torch.tensor([[0, 0, 0], [2**BITS - 1] * 3])])
    keys = [_key(tuple(cell)) for cell in cells.tolist()]
    expected = sorted(range(len(keys)), key=keys.__getitem__)
    assert morton_order(cells.float()).tolist() == expected


def test_neighbours_in_the_order_are_near_in_space():
    points = torch.rand(4000, 3, generator=torch.Generator().manual_seed(1))
    ordered = points[morton_order(points)]
    steps = (ordered[1:] - ordered[:-1]).norm(dim=1).mean()
    # Between two random points of the unit cube lie .66 on the average (Robbins 1978); 4,000 points are .063 apart.
    assert steps < 0.12


def test_it_is_a_permutation_whatever_the_points():
    for points in (
        torch.empty(0, 3),
        torch.zeros(5, 3),
        torch.tensor([[float("nan"), 0, 0], [1.0, 2, 3], [float("inf"), 0, 0], [0.0, 0, 0]]),
        torch.tensor([[1e30, 0, 0], [-1e30, 0, 0]]),
    ):
        order = morton_order(points)
        assert sorted(order.tolist()) == list(range(len(points)))
    assert morton_order(points.new_tensor([[float("nan")] * 3, [0, 0, 0]])).tolist() == [1, 0]
