import pytest
import torch

from ehr_ray.nn.moment_heads import chunks_of, gain, sum_over


def test_a_sum_over_chunks_and_its_gradient_are_those_of_the_whole():
    weight = torch.ones(3, requires_grad=True)
    left, right = torch.randn(7, 3), torch.randn(7)
    found = []
    for rows in (0, 2, 7, 100):
        weight.grad = None
        chunks = chunks_of(rows, left, right)
        assert len(chunks) == -(-7 // max(1, rows))
        total = sum_over(chunks, lambda x, y: ((x * weight).sum(1) * y).square().sum())
        total.backward()
        found.append((total.detach(), weight.grad.clone()))
    for total, gradient in found[1:]:
        torch.testing.assert_close(total, found[0][0])
        torch.testing.assert_close(gradient, found[0][1])


def test_terms_are_told_as_what_they_are_below_their_baselines():
    means = {"time_to_event": 1.0, "time_to_event_baseline": 1.5, "value": 0.3}
    assert gain(means) == pytest.approx({"time_to_event_gain": 0.5})
    assert gain({}) == {}
