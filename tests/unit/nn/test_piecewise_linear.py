import numpy as np
import pytest
import torch

from ehr_ray.nn.piecewise_linear import PiecewiseLinear

MISSING = float("nan")


def fitted(column, pieces=4):
    encoding = PiecewiseLinear(1, pieces)
    encoding.fit(np.array(column, np.float32)[:, None])
    return encoding


def raw(encoding, value):
    """Return the inputs of one number before they are standardised."""
    given = encoding(torch.tensor([[value]]))[0, 0]
    return (given * encoding.scale[0] + encoding.center[0]).tolist()


def test_a_number_fills_the_pieces_below_it_and_its_own_as_far_as_it_goes():
    encoding = fitted(np.arange(101))
    assert raw(encoding, 60.0) == pytest.approx([1, 1, 0.4, 0, 0], abs=1e-5)
    assert raw(encoding, -9.0) == pytest.approx([0, 0, 0, 0, 0], abs=1e-5)
    assert raw(encoding, 999.0) == pytest.approx([1, 1, 1, 1, 0], abs=1e-5)


def test_a_missing_number_has_an_input_of_its_own_and_no_piece():
    encoding = fitted([*range(101), *[MISSING] * 30])
    assert raw(encoding, MISSING) == pytest.approx([0, 0, 0, 0, 1], abs=1e-5)
    assert raw(encoding, 100.0)[-1] == pytest.approx(0, abs=1e-5)


def test_inputs_are_standardised_as_they_are_in_train():
    x = np.random.default_rng(0).normal(size=(700, 3)).astype(np.float32)
    x[::3, 1] = np.nan
    encoding = PiecewiseLinear(3, 5)
    encoding.fit(x)
    inputs = encoding(torch.from_numpy(x)).flatten(1)
    varying = torch.tensor([True] * 5 + [False] + [True] * 6 + [True] * 5 + [False])
    assert inputs[:, varying].mean(0).abs().max() < 0.02  # some end at the limit
    torch.testing.assert_close(inputs[:, varying].std(0), torch.ones(16), atol=0.05, rtol=0)
    assert inputs[:, ~varying].abs().max() == 0  # never missing in train: nothing to tell


@pytest.mark.parametrize("column", [[MISSING] * 5, [3.0] * 5], ids=["never seen", "one value"])
def test_a_number_without_a_range_in_train_says_nothing_but_whether_it_is_there(column):
    encoding = fitted(column)
    for value in (-1.0, 3.0, 8.0):
        assert encoding(torch.tensor([[value]]))[0, 0, :-1].tolist() == [0, 0, 0, 0]
    assert torch.isfinite(encoding(torch.tensor([[MISSING]]))).all()


def test_the_encoding_travels_in_the_state_dict():
    one, other = fitted(np.arange(50)), PiecewiseLinear(1, 4)
    other.load_state_dict(one.state_dict())
    value = torch.tensor([[17.3]])
    torch.testing.assert_close(other(value), one(value))
