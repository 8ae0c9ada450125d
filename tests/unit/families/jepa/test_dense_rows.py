import torch

from ehr_ray.families.jepa.dense_rows import DenseRows, carried, columns, places, sizes


def sheet(level, observed, minute):
    """One patient, one feature, a level and one more statistic."""
    level = torch.tensor(level)[None, :, None]
    value = torch.stack([level, 10 * level], -1)
    mask = torch.ones(1, len(minute), dtype=torch.bool)
    return DenseRows(
        value,
        torch.tensor(observed)[None, :, None],
        torch.tensor(minute)[None],
        mask,
        torch.zeros(1, 1),
        torch.zeros(1, 1, dtype=torch.bool),
    )


SHEET = sheet([0.0, 3.0, 0.0, 5.0], [False, True, False, True], [0.0, 60.0, 180.0, 600.0])


def test_a_level_is_carried_with_its_age_until_the_next_one():
    level, age, known = (found[0, :, 0].tolist() for found in carried(SHEET, SHEET.observed, None))
    assert known == [False, True, True, True]
    assert level[1:] == [3, 3, 5]
    assert age[1:] == [0, 120, 0]
    assert carried(SHEET, SHEET.observed, 119.0)[2][0, :, 0].tolist() == [False, True, False, True]


def test_columns_are_level_freshness_observed_and_statistics():
    found = columns(SHEET, None, 60.0)[0]
    expected = [[0, 0, 0, 0], [3, 1, 1, 30], [3, 1 / 3, 0, 0], [5, 1, 1, 50]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_a_row_that_is_not_taken_is_not_seen_through_later_ones():
    left = SHEET.take(torch.tensor([[True, False, True, False]]))
    assert left.minute.tolist() == [[0, 180]]
    assert not columns(left, None, 60.0).any()


def test_static_values_hold_for_every_row():
    static = DenseRows(
        *[*list(vars(SHEET).values())[:4], torch.tensor([[7.0]]), torch.tensor([[True]])]
    )
    found = columns(static, None, 60.0)[0]
    assert found[:, :2].tolist() == [[7, 1]] * 4


def test_places_are_ragged_and_in_order():
    index, real = places(torch.tensor([[True, False, True], [False, False, True], [False] * 3]))
    assert [i[r].tolist() for i, r in zip(index, real, strict=True)] == [[0, 2], [2], []]
    assert places(torch.zeros(2, 3, dtype=torch.bool))[1].tolist() == [[False], [False]]


def test_sizes_of_several_choices_are_told_at_once():
    first = torch.tensor([[True, False, True], [False, True, False]])
    found = sizes(first, torch.zeros_like(first))
    assert found == [(2, 3), (0, 0)]
    told, known = places(first), places(first, found[0])
    assert all(torch.equal(one, other) for one, other in zip(told, known, strict=True))


def test_taken_rows_know_how_many_of_them_are_real():
    two = DenseRows(**{n: torch.cat([v, v]) for n, v in vars(SHEET).items() if v is not None})
    left = two.take(torch.tensor([[True, False, True, False], [False, False, True, False]]))
    assert left.real == int(left.mask.sum()) == 3
    assert left.rolled().real is None


def test_levels_and_times_are_shaken_where_something_was_observed():
    key = torch.tensor([5])
    found = SHEET.shaken(key, noise=0.5, jitter=10.0)
    change = (found.value - SHEET.value)[0, :, 0]
    assert (change[:, 0] != 0).tolist() == [False, True, False, True]
    assert not change[:, 1].any()
    assert (found.minute != SHEET.minute).all()
    assert torch.equal(found.value, SHEET.shaken(key, 0.5, 10.0).value)
    same = SHEET.shaken(key, 0.0, 0.0)
    assert torch.equal(same.value, SHEET.value)
    assert torch.equal(same.minute, SHEET.minute)
