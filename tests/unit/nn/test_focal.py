import pytest
import torch

from ehr_ray.nn.focal import focal


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_gradients_are_finite_however_sure_a_row_is(gamma):
    entropy = torch.tensor([0.0, 1e-12, 1e-3, 5.0], requires_grad=True)
    focal(entropy, gamma).sum().backward()
    assert torch.isfinite(entropy.grad).all()


def test_easy_rows_count_less_by_the_power_of_what_they_miss():
    entropy = torch.tensor([0.1, 3.0])
    expected = (1 - torch.exp(-entropy)) ** 0.5 * entropy
    torch.testing.assert_close(focal(entropy, 0.5), expected)
    assert torch.equal(focal(entropy, 0.0), entropy)
