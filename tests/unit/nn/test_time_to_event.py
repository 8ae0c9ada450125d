import math

import numpy as np
import pytest
import torch

from ehr_ray.nn.time_to_event import TimeToEvent, Truth, negative_log_likelihood


def test_the_likelihood_is_that_computed_by_hand():
    edges = torch.tensor([0.0, 1.0, 4.0])
    log_hazard = torch.tensor([0.5, 0.2, 0.1]).log()[None, :, None].expand(1, 3, 4)
    hours = torch.tensor([[0.5, 4.0, 6.0, 6.0]])
    event = torch.tensor([[True, True, True, False]])
    found = negative_log_likelihood(log_hazard, hours, event, edges)[0].tolist()
    assert found == pytest.approx(
        [0.25 - math.log(0.5), 1.1 - math.log(0.2), 1.3 - math.log(0.1), 1.3]
    )


def test_the_likelihood_is_that_of_an_integral_over_time():
    rng = np.random.default_rng(0)
    edges = torch.tensor([0.0, 0.7, 2.0, 5.0])
    log_hazard = torch.from_numpy(rng.normal(size=(5, 4, 3))).float()
    hours = torch.from_numpy(rng.uniform(0.1, 9, (5, 3))).float()
    event = torch.from_numpy(rng.random((5, 3)) < 0.5)
    found = negative_log_likelihood(log_hazard, hours, event, edges)
    step = 1e-3
    for n, c in np.ndindex(5, 3):
        at = np.arange(step / 2, float(hours[n, c]), step)
        rate = log_hazard[n, :, c].exp().numpy()[np.searchsorted(edges.numpy(), at) - 1]
        wanted = rate.sum() * step
        if event[n, c]:
            wanted -= math.log(rate[-1])
        assert float(found[n, c]) == pytest.approx(wanted, abs=0.02)


def test_a_row_without_a_moment_has_no_say():
    head = TimeToEvent(16, 3, (1.0, 4.0))
    truth = Truth(
        torch.ones(1, 2, 3), torch.ones(1, 2, 3, dtype=torch.bool), torch.tensor([[1, 0]]) > 0
    )
    state = torch.randn(1, 2, 16)
    other = state.clone()
    other[0, 1] += 5
    assert torch.equal(head(state, truth)["time_to_event"], head(other, truth)["time_to_event"])


def test_rates_are_those_of_the_patients_they_are_fitted_on():
    """One code with 9 events in 18 hours of the first bin, another that never came."""
    head = TimeToEvent(4, 2, (3.0,))
    hours = torch.tensor([2.0, 3.0]).repeat(9, 1, 1)
    event = torch.tensor([True, False]).expand(9, 1, 2)
    head.fit([Truth(hours, event, torch.ones(9, 1, dtype=torch.bool))])
    rate = head.log_rate.exp()
    torch.testing.assert_close(rate[:, 0], torch.tensor([9.5 / 19, 9.5 / 19]))
    assert (rate[:, 1] < 0.02).all()
