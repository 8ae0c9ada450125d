import pytest
import torch

from ehr_ray.families.set_vae.sequence.value_table import last_values, values


@pytest.fixture
def model(make_model):
    return make_model().eval()


@pytest.fixture
def crowd(make_row, made_batch):
    return made_batch(*(make_row(i, [5, 9, 7, 12]) for i in range(20, 26)), make_row(31, [0]))


def test_a_last_value_is_that_of_the_stay_before_and_of_no_other(crowd):
    last = last_values(crowd)
    for i, j in crowd["mask"].nonzero().tolist():
        code = crowd["code"][i, j]
        before = (crowd["patient"] == crowd["patient"][i]) & (
            crowd["set_index"] < crowd["set_index"][i]
        )
        same = (crowd["mask"] & (crowd["code"] == code) & before.unsqueeze(1)).nonzero().tolist()
        if same:
            assert last[i, j] == crowd["value"][same[-1][0], same[-1][1]]
        else:
            assert last[i, j].isnan()
    assert last[~crowd["mask"]].isnan().all()


def test_every_measured_value_has_a_row_and_of_wrong_sets_what_was_changed_too(model, crowd):
    with torch.no_grad():
        found, again = values(model, crowd), values(model, crowd)
    assert all(torch.equal(found[k].nan_to_num(), again[k].nan_to_num()) for k in found)
    clean, measured = found["kind"] == 0, crowd["mask"] & ~crowd["carried"]
    for name in ("code", "value"):
        assert torch.equal(found[name][clean], crowd[name][measured])
    assert torch.equal(found["last"][clean].nan_to_num(), last_values(crowd)[measured].nan_to_num())
    assert not found["carried"][clean].any()
    assert found["carried"][found["kind"] == 1].any()
    assert not found["carried"][found["kind"] >= 5].any()
    # Every other value of a set with a changed one is there as it was.
    wrong = found["kind"] == 6
    assert wrong.sum() >= 2 * 6


def test_what_is_expected_has_not_seen_the_set(model, crowd):
    last_set = crowd["set_index"] == 3
    later = {**crowd, "value": crowd["value"] + 5.0 * last_set.unsqueeze(1)}
    with torch.no_grad():
        before, after = values(model, crowd), values(model, later)
    at = (before["kind"] == 0) & (before["set"] == 3)
    torch.testing.assert_close(before["expected"][at], after["expected"][at])
    assert not torch.equal(before["value"][at], after["value"][at])


def test_a_variable_that_took_anothers_place_has_no_last_value(model, crowd):
    with torch.no_grad():
        found = values(model, crowd)
    foreign = found["kind"] == 4
    codes = {
        (p, s): set(crowd["code"][i][crowd["mask"][i]].tolist())
        for i, (p, s) in enumerate(
            zip(crowd["patient"].tolist(), crowd["set_index"].tolist(), strict=True)
        )
    }
    rows = zip(*(found[name][foreign].tolist() for name in ("patient", "set", "code")), strict=True)
    new = torch.tensor([code not in codes[patient, at] for patient, at, code in rows])
    assert new.any()
    assert found["last"][foreign][new].isnan().all()
