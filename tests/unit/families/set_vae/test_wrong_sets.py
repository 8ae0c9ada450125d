import pytest
import torch

from ehr_ray.families.set_vae.chunking import chosen
from ehr_ray.families.set_vae.data import collate
from ehr_ray.families.set_vae.wrong_sets import (
    SHIFTED_MEASURED,
    SWAPPED_MEASURED,
    foreign,
    made_wrong,
    one_set_each,
    resampled,
    shifted,
    swapped,
)


@pytest.fixture
def made_batch(make_config):
    return lambda *rows: collate(rows, make_config())


@pytest.fixture
def crowd(make_row, made_batch):
    """Eight patients who share variables, one of them with sets of one token, one with none."""
    rows = [make_row(i, [5, 9, 7, 12]) for i in range(20, 26)]
    return made_batch(*rows, make_row(30, [1, 1]), make_row(31, [0]))


@pytest.fixture
def sets(crowd):
    return chosen(crowd, one_set_each(crowd, crowd["mask"]))


def test_one_set_of_each_patient_that_has_one_of_two_tokens(crowd):
    which = one_set_each(crowd, crowd["mask"])
    assert crowd["patient"][which].tolist() == [0, 1, 2, 3, 4, 5]
    assert (crowd["mask"][which].sum(1) >= 2).all()
    assert torch.equal(which, one_set_each(crowd, crowd["mask"]))
    assert len(set(crowd["set_index"][which].tolist())) > 1


def test_resampled_values_are_other_patients_of_the_same_variable(crowd, sets):
    values = resampled(crowd, sets, None)
    mask, owner = crowd["mask"], crowd["patient"].unsqueeze(1).expand_as(crowd["mask"])
    changed = 0
    for i, j in sets["mask"].nonzero().tolist():
        same = mask & (crowd["code"] == sets["code"][i, j])
        others = same & (owner != sets["patient"][i])
        assert values[i, j] in crowd["value"][others]
        changed += bool(values[i, j] != sets["value"][i, j])
    assert changed == int(sets["mask"].sum())
    assert torch.equal(values[~sets["mask"]], sets["value"][~sets["mask"]])


def test_a_variable_of_one_patient_alone_keeps_its_values(make_row, made_batch):
    batch = made_batch(make_row(1, [6, 8]))
    sets = chosen(batch, one_set_each(batch, batch["mask"]))
    assert torch.equal(resampled(batch, sets, None), sets["value"])


def test_one_token_is_shifted_by_three_standard_deviations(crowd, sets):
    change = shifted(sets, None, sets["mask"]) - sets["value"]
    assert ((change != 0).sum(1) == 1).all()
    moved = change[change != 0]
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 3.0))
    assert {-1.0, 1.0} == set(moved.sign().tolist())
    assert not change[~sets["mask"]].any()
    clipped = shifted(sets, 2.0, sets["mask"])
    assert clipped.abs().max() <= 2.0


def test_two_tokens_exchange_their_values(crowd, sets):
    values = swapped(sets, sets["mask"])
    moved = values != sets["value"]
    assert (moved.sum(1) == 2).all()
    assert not (moved & ~sets["mask"]).any()
    for i in range(len(values)):
        assert torch.equal(values[i][moved[i]], sets["value"][i][moved[i]].flip(0))


def test_a_variable_that_does_not_belong_takes_the_place_of_one_with_a_value_others_have(
    make_row, made_batch
):
    rows = [make_row(i, [3, 2, 4]) for i in range(40, 48)]
    crowd = made_batch(*rows)
    sets = chosen(crowd, one_set_each(crowd, crowd["mask"]))
    found = foreign(crowd, sets)
    moved = found["code"] != sets["code"]
    assert (moved.sum(1) == 1).all()
    assert not (moved & ~sets["mask"]).any()
    assert torch.equal(found["value"][~moved], sets["value"][~moved])
    for i, j in moved.nonzero().tolist():
        stay = crowd["patient"] == sets["patient"][i]
        code, value = found["code"][i, j], found["value"][i, j]
        assert code not in crowd["code"][stay][crowd["mask"][stay]]
        assert value in crowd["value"][crowd["mask"] & (crowd["code"] == code)]
    assert len(set(found["code"][moved].tolist())) > 2


def test_where_a_stay_has_every_variable_it_is_one_that_the_set_has_not(crowd, sets):
    found = foreign(crowd, sets)
    for i in range(len(sets["code"])):
        before, after = (set(s[i][sets["mask"][i]].tolist()) for s in (sets["code"], found["code"]))
        full = len(before) == 12
        assert (after == before) == full
        assert len(after) == len(before)


def test_what_is_made_wrong_repeats_and_the_recorded_values_stay(crowd, sets):
    before = crowd["value"].clone()
    for (kind, which, first), (_, _, second) in zip(
        made_wrong(crowd, None), made_wrong(crowd, None), strict=True
    ):
        assert all(torch.equal(first[name], second[name]) for name in first)
        changed = first["value"] != chosen(crowd, which)["value"]
        assert changed.any(), kind
    assert torch.equal(crowd["value"], before)


def test_measured_values_alone_are_changed_where_it_is_asked_for(crowd):
    wrong = {kind: (which, sets) for kind, which, sets in made_wrong(crowd, None)}
    for kind, count in ((SHIFTED_MEASURED, 1), (SWAPPED_MEASURED, 2)):
        which, sets = wrong[kind]
        moved = sets["value"] != crowd["value"][which]
        assert (moved.sum(1) == count).all()
        assert not (moved & crowd["carried"][which]).any()
        measured = crowd["mask"] & ~crowd["carried"]
        assert (measured[which].sum(1) >= 2).all()
