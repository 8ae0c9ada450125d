import math

import numpy as np
import pytest

from ehr_ray.evaluation.metrics.conformal import fit_sets


def drawn(n, seed):
    rng = np.random.default_rng(seed)
    risk = rng.beta(1, 5, n)
    return risk, rng.random(n) < risk


@pytest.mark.parametrize("miss", [0.05, 0.1, 0.3])
def test_sets_hold_the_truth_as_often_as_promised_in_either_class(miss):
    risk, label = drawn(4000, 0)
    sets = fit_sets(risk, label, miss=miss)
    risk, label = drawn(40_000, 1)
    held = sets.possible(risk)[np.arange(label.size), label.astype(int)]
    for rows in (label, ~label):
        assert held[rows].mean() == pytest.approx(1 - miss, abs=0.02)


def test_the_bound_is_the_rank_that_the_promise_needs():
    """Of 9 rows, and a tenth to miss, the highest score: the tenth of 10 may lie above it."""
    risk = np.arange(1, 10) / 10
    sets = fit_sets(risk, np.zeros(9, bool))
    assert sets.most_no == 0.9
    assert fit_sets(np.arange(1, 20) / 20, np.ones(19, bool)).least_yes == 0.1


def test_an_answer_with_too_few_rows_is_always_possible():
    risk = np.array([0.1, 0.2, 0.9])
    sets = fit_sets(risk, np.array([False, False, True]))
    assert (sets.least_yes, sets.most_no) == (-math.inf, math.inf)
    assert sets.possible(np.array([0.0, 1.0])).all()


def test_sure_rows_have_one_answer_and_unsure_ones_both():
    rng = np.random.default_rng(0)
    label = rng.random(2000) < 0.5
    risk = np.clip(np.where(label, 0.7, 0.3) + rng.normal(0, 0.2, 2000), 0, 1)
    sets = fit_sets(risk, label, miss=0.05)
    assert sets.possible(np.array([0.02, 0.5, 0.98])).tolist() == [
        [True, False],
        [True, True],
        [False, True],
    ]
