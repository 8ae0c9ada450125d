import numpy as np
import torch

from ehr_ray.events.grid import hours_since, imputed
from ehr_ray.families.vitals_vae.masking import channels, fill, hidden_cells

CARRY = torch.tensor([6, 6, 6, 6, 6, 4, 12])


def test_filling_is_that_of_the_grid(batch):
    value, observed = batch["value"].numpy(), batch["observed"].numpy()
    observed[0, :, 2] = False
    filled, since = fill(batch["value"], batch["observed"], CARRY, -24)
    expected, _ = imputed(value * observed, observed, CARRY.numpy(), np.zeros(7))
    np.testing.assert_allclose(filled, expected, atol=1e-5)
    np.testing.assert_array_equal(since, hours_since(observed, -24))


def test_masks_and_times_are_channels(batch):
    seen = channels(batch["value"], batch["observed"], CARRY, 0)
    assert seen.shape == (4, 21, 96)
    torch.testing.assert_close(seen[:, 7:14].transpose(1, 2), batch["observed"].float())
    assert (seen[:, 14:].transpose(1, 2)[batch["observed"]] == 0).all()
    assert (seen[:, 14:].transpose(1, 2)[~batch["observed"]] > 0).all()


def test_a_tenth_of_observed_cells_is_hidden_the_same_ones_each_time(make_batch, make_config):
    batch = make_batch(range(40))
    hidden = hidden_cells(batch, make_config(), 5, cut=False)
    assert not (hidden & ~batch["observed"]).any()
    assert 0.08 < hidden.sum() / batch["observed"].sum() < 0.12
    assert torch.equal(hidden, hidden_cells(batch, make_config(), 5, cut=False))
    assert not torch.equal(hidden, hidden_cells(batch, make_config(), 6, cut=False))


def test_what_is_hidden_does_not_depend_on_the_batch(make_batch, make_config):
    config = make_config(landmark_share=0.5)
    whole = hidden_cells(make_batch([3, 5, 8]), config, 5, cut=True)
    alone = hidden_cells(make_batch([8]), config, 5, cut=True)
    assert torch.equal(whole[2], alone[0])


def test_some_patients_are_hidden_from_a_landmark_on(make_batch, make_config):
    batch = make_batch(range(60), share=1.0)
    config = make_config(hide=0.0, landmark_share=0.5, landmarks=(24, 48))
    hidden = hidden_cells(batch, config, 1, cut=True)
    first = torch.where(hidden.any(1).any(1), hidden.all(2).float().argmax(1), 96)
    assert set(first.tolist()) == {24, 48, 96}
    for row, at in zip(hidden, first.tolist(), strict=True):
        assert row[at:].all()
        assert not row[:at].any()
    assert not hidden_cells(batch, config, 1, cut=False).any()


def test_landmarks_off_the_grid_cut_nobody(make_batch, make_config):
    config = make_config(hide=0.0, landmark_share=1.0, landmarks=(96, 500))
    assert not hidden_cells(make_batch([1, 2]), config, 1, cut=True).any()


def test_validation_hides_one_share_whatever_training_hides(make_model, make_batch):
    batch = make_batch(range(1, 60))
    shares = []
    for hide in (0.0, 0.4):
        model = make_model(hide=hide).eval()
        shares.append(model(batch, 5)["hidden"])
    assert torch.equal(*shares)
    share = shares[0].sum() / batch["observed"].sum()
    assert 0.08 < share < 0.12
