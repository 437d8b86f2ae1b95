import pytest
import torch

from nfc_gs.core.neighbours import mean_neighbour_distance

ROUNDED = dict(rtol=1e-5, atol=0)  # float32
SMALLEST = 1e-7**0.5  # 3DGS clamps the mean square distance at 1e-7


@pytest.mark.parametrize("k", [1, 3, 5])
def test_distances_are_those_of_all_pairs(k):
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    pairs = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = pairs.fill_diagonal_(float("inf")).topk(k, largest=False).values
    expected = nearest.square().mean(1).sqrt().float()
    torch.testing.assert_close(mean_neighbour_distance(points, k), expected, **ROUNDED)


def test_inside_a_grid_the_distance_is_its_spacing():
    axis = torch.arange(5) * 0.25
    grid = torch.cartesian_prod(axis, axis, axis)
    torch.testing.assert_close(mean_neighbour_distance(grid), torch.full((125,), 0.25), **ROUNDED)


def test_coinciding_points_get_the_smallest_distance():
    points = torch.cat([torch.ones(6, 3), torch.zeros(1, 3)])
    distances = mean_neighbour_distance(points)
    torch.testing.assert_close(distances[:6], torch.full((6,), SMALLEST), **ROUNDED)
    torch.testing.assert_close(distances[6], torch.tensor(3**0.5), **ROUNDED)


def test_a_duplicate_counts_as_a_neighbour_at_distance_zero():
    points = torch.tensor([[0.0, 0, 0], [0.0, 0, 0], [3.0, 0, 0]])
    expected = torch.tensor([4.5, 4.5, 9.0]).sqrt()  # mean squares of (0, 3) and of (3, 3)
    torch.testing.assert_close(mean_neighbour_distance(points, 2), expected, **ROUNDED)


def test_few_points_use_the_neighbours_there_are():
    two = mean_neighbour_distance(torch.tensor([[0.0, 0, 0], [2.0, 0, 0]]))
    torch.testing.assert_close(two, torch.tensor([2.0, 2.0]), **ROUNDED)
    torch.testing.assert_close(mean_neighbour_distance(torch.zeros(1, 3)), torch.tensor([SMALLEST]), **ROUNDED)
    assert mean_neighbour_distance(torch.zeros(0, 3)).shape == (0,)
