import torch

from nfc_gs.core.gaussians import Edit, Gaussians


def column(*numbers):
    """Three Gaussians whose every number tells which row it came from."""
    rows = torch.tensor(numbers, dtype=torch.float32)
    n = len(numbers)
    return Gaussians(
        means=rows[:, None].expand(n, 3).clone(),
        log_scales=rows[:, None].expand(n, 3) + 0.1,
        quats=rows[:, None].expand(n, 4) + 0.2,
        colour_logits=rows[:, None, None].expand(n, 3, 2) + 0.3,
        opacity_logits=rows[:, None] + 0.4,
        harmonics=rows[:, None, None].expand(n, 8, 3) + 0.5,
        motion=rows[:, None].expand(n, 2),
    )


DROP_FIRST_DOUBLE_LAST = Edit(parent=torch.tensor([1, 2, 2]), fresh=torch.tensor([False, False, True]))


def test_every_row_comes_from_its_parent():
    new = DROP_FIRST_DOUBLE_LAST.apply(column(10, 20, 30))
    for name, value in column(20, 30, 30).items():
        assert torch.equal(dict(new.items())[name], value)


def test_given_values_replace_whole_fields():
    edit = Edit(
        parent=torch.tensor([2, 0]),
        fresh=torch.tensor([True, True]),
        values={"means": torch.tensor([[1.0] * 3, [2.0] * 3])},
    )
    new = edit.apply(column(10, 20, 30))
    assert new.means[:, 0].tolist() == [1.0, 2.0]
    assert torch.equal(new.opacity_logits, column(30, 10).opacity_logits)


def test_statistics_follow_their_rows_and_fresh_rows_start_at_zero():
    statistics = {"count": torch.tensor([1.0, 2.0, 3.0]), "moments": torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])}
    carried = DROP_FIRST_DOUBLE_LAST.carry(statistics)
    assert carried["count"].tolist() == [2.0, 3.0, 0.0]
    assert carried["moments"].tolist() == [[2.0, 2.0], [3.0, 3.0], [0.0, 0.0]]
    assert statistics["count"].tolist() == [1.0, 2.0, 3.0]


def test_an_empty_population_can_result():
    nobody = Edit(parent=torch.zeros(0, dtype=torch.long), fresh=torch.zeros(0, dtype=torch.bool))
    assert len(nobody.apply(column(10, 20))) == 0
    assert nobody.carry({"count": torch.ones(2)})["count"].shape == (0,)


def test_a_reordered_edit_makes_the_same_gaussians_in_the_new_order():
    gaussians, order = column(10, 20, 30), torch.tensor([2, 0, 1])
    edit = Edit(
        parent=torch.tensor([1, 2, 2]),
        fresh=torch.tensor([False, False, True]),
        values={"opacity_logits": torch.tensor([[1.0], [2.0], [3.0]])},
        forget=("opacity_logits",),
    )
    plain, reordered = edit.apply(gaussians), edit.reordered(order).apply(gaussians)
    for name, value in plain.items():
        assert torch.equal(dict(reordered.items())[name], value[order])
    assert edit.reordered(order).fresh.tolist() == [True, False, False]
    assert edit.reordered(order).forget == edit.forget
    assert torch.equal(edit.means(gaussians), plain.means)


def test_an_edits_means_are_its_values_where_it_gives_some():
    values = {"means": torch.tensor([[1.0] * 3, [2.0] * 3])}
    edit = Edit(parent=torch.tensor([2, 0]), fresh=torch.tensor([True, True]), values=values)
    assert torch.equal(edit.means(column(10, 20, 30)), values["means"])
