import pytest
import torch
from torch.nn import functional as F

from ehr_ray.families.jepa.dense_rows import dense
from ehr_ray.families.jepa.drift import LEADS, drift

HOURS = [60, 20, 7, 1]


def test_a_record_has_an_entry_for_each_lead_it_is_long_enough_for(make_model, make_batch):
    model, batch = make_model(), make_batch(HOURS)
    with torch.no_grad():
        found = drift(model, batch)
    pairs = list(zip(found["patient"].tolist(), found["lead"].tolist(), strict=True))
    assert sorted(pairs) == [(0, 6), (0, 12), (0, 24), (0, 48), (1, 6), (1, 12), (2, 6)]
    assert set(LEADS) == {lead for _, lead in pairs}


def test_errors_are_of_the_last_hour_from_rows_up_to_the_lead(make_model, make_batch):
    """The one of 20 hours, 12 ahead: hours 0 to 7 are seen, hour 19 is predicted."""
    model, batch = make_model(), make_batch(HOURS)
    with torch.no_grad():
        found = drift(model, batch)
        sheet = dense(make_batch([60, 20])).rolled().rolled()
        seen = sheet.take(sheet.minute <= 7 * 60)
        goal = model.goals(sheet)[1, 19]
        ahead, wanted = torch.full((2, 1), 19 * 60.0), torch.ones(2, 1, dtype=torch.bool)
        states = model.encode(seen)
        told = model.predictor(states, seen.minute, seen.mask, ahead, wanted, None)[1, 0]
        last = model.goals(seen)[1, 7]
    (entry,) = ((found["patient"] == 1) & (found["lead"] == 12)).nonzero()[0].tolist()
    for name, guess in (("predicted", told), ("last", last)):
        assert found[name][entry].item() == pytest.approx(F.smooth_l1_loss(guess, goal).item())


def test_what_happens_after_the_lead_changes_the_goal_alone(make_model, make_batch):
    """Values of hours 14 and later are not read by predictions of hour 19 from hours up to 13."""
    model, batch = make_model(), make_batch([20])
    seen = []
    model.predictor.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        drift(model, batch)
        row = batch["cell"] // batch["static"].shape[1]
        later = {**batch, "value": batch["value"] + (row >= 14)[:, None] * 1.0}
        drift(model, later)
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])


def test_there_is_none_of_admissions_nor_of_short_records(make_model, make_batch):
    model = make_model()
    assert all(len(values) == 0 for values in drift(model, make_batch([3, 1])).values())
    assert drift(make_model(rows="visits"), {}) == {}
    contrasted = make_model(target="online", latent_loss="infonce")
    assert drift(contrasted, make_batch(HOURS)) == {}
