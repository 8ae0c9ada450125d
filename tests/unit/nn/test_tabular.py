import numpy as np
import pytest
import torch

from ehr_ray.nn.tabular import LIMIT, TabularInputs

MISSING = float("nan")


def fitted(*columns):
    inputs = TabularInputs(len(columns))
    inputs.fit(np.array(columns, np.float32).T)
    return inputs


def test_numbers_are_standardised_as_they_are_in_train():
    x = np.random.default_rng(0).normal(5, 3, size=(700, 3)).astype(np.float32)
    x[::3, 1] = np.nan
    inputs = TabularInputs(3)
    inputs.fit(x)
    given = inputs(torch.from_numpy(x))
    number = given[:, :, 0]
    assert number[torch.from_numpy(np.isnan(x))].eq(0).all()
    for column in number.T:
        seen = column[column != 0]
        assert seen.mean().abs() < 0.01
        assert seen.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("unit", [1.0, 1000.0])
def test_a_skewed_number_is_told_by_its_logarithm_in_any_unit(unit):
    x = np.exp(np.random.default_rng(0).normal(size=900)) * (np.arange(900) % 9 > 0)
    given = fitted(x * unit)(torch.tensor([[0.0], [1.0], [2.0], [4.0]]) * unit)[:, 0, 0]
    assert given[0] < given[1] < given[2] < given[3]
    assert given[3] - given[2] == pytest.approx(float(given[2] - given[1]), rel=0.2)
    torch.testing.assert_close(given, fitted(x)(torch.tensor([[0.0], [1], [2], [4]]))[:, 0, 0])


def test_a_number_that_may_be_negative_is_told_as_it_is():
    x = np.append(np.exp(np.random.default_rng(0).normal(size=900)), -0.5)
    given = fitted(x)(torch.tensor([[1.0], [2.0], [3.0]]))[:, 0, 0]
    assert given[1] - given[0] == pytest.approx(float(given[2] - given[1]), rel=1e-4)


def test_numbers_missing_together_say_so_once():
    column = [MISSING if i % 4 == 0 else i for i in range(80)]
    other = [MISSING if i % 5 == 0 else i for i in range(80)]
    inputs = fitted(column, column, other, list(range(80)))
    absent = inputs(torch.tensor([[MISSING] * 4]))[0, :, 1]
    assert (absent != 0).tolist() == [True, False, True, False]
    assert absent[0] == pytest.approx(0.75, abs=1e-6)


@pytest.mark.parametrize(
    "column", [[MISSING] * 500, [3.0] * 500, [MISSING] * 499 + [3.0]], ids=["none", "same", "one"]
)
def test_a_number_without_a_range_in_train_says_nothing(column):
    inputs = fitted(column)
    for value in (-1.0, 3.0, 8.0, MISSING):
        assert inputs(torch.tensor([[value]])).eq(0).all()


def test_no_number_of_another_cohort_is_told_beyond_a_limit():
    given = fitted(np.arange(100))(torch.tensor([[-1e30], [1e30], [float("inf")]]))
    assert given[:, 0, 0].tolist() == [-LIMIT, LIMIT, LIMIT]


def test_a_number_that_overflowed_spoils_no_input():
    inputs = fitted([*range(99), float("inf")], [2.0] * 100)
    given = inputs(torch.tensor([[50.0, float("inf")], [float("inf"), 2.0]]))
    assert torch.isfinite(given).all()
    assert given[1, 0, 0] > given[0, 0, 0]


def test_what_was_fitted_travels_in_the_state_dict():
    one, other = fitted(np.exp(np.arange(50) / 9)), TabularInputs(1)
    other.load_state_dict(one.state_dict())
    value = torch.tensor([[17.3]])
    torch.testing.assert_close(other(value), one(value))
