import numpy as np
import pytest
from made_up_rows import outcomes_and_risks
from sklearn import metrics as reference

from ehr_ray.evaluation.metrics.binary import (
    binary_metrics,
    paired_differences,
    undefined,
)
from ehr_ray.evaluation.table import Interval


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scikit_learn(seed, ties):
    y, p = outcomes_and_risks(seed, ties=ties)
    ours = binary_metrics(y, p, threshold=0.4, num_bootstrap=10)
    called = p >= 0.4
    assert ours["auroc"] == pytest.approx(reference.roc_auc_score(y, p))
    assert ours["auprc"] == pytest.approx(reference.average_precision_score(y, p))
    assert ours["brier"] == pytest.approx(reference.brier_score_loss(y, p))
    assert ours["sensitivity"] == pytest.approx(reference.recall_score(y, called))
    assert ours["specificity"] == pytest.approx(reference.recall_score(~y, ~called))
    assert ours["ppv"] == pytest.approx(reference.precision_score(y, called))
    assert ours["min_se_ppv"] == pytest.approx(min(ours["sensitivity"], ours["ppv"]))
    assert ours["prevalence"] == pytest.approx(y.mean())
    assert ours["n"] == len(y)


def test_ece_equals_a_loop_over_ten_bins_of_equal_mass():
    y, p = outcomes_and_risks(7, n=1000)
    order = np.argsort(p)
    expected = sum(
        abs(y[rows].mean() - p[rows].mean()) * rows.size / y.size
        for rows in np.array_split(order, 10)
    )
    assert binary_metrics(y, p, threshold=0.5, num_bootstrap=2)["ece"] == pytest.approx(expected)


def test_ece_of_a_constant_probability_is_its_distance_from_the_prevalence():
    y = np.array([1, 0, 0, 0])
    constant = binary_metrics(y, np.full(4, 0.6), threshold=0.5, num_bootstrap=2)
    assert constant["ece"] == pytest.approx(0.35)


def test_event2_of_twenty_rows_as_computed_by_hand():
    """Deciles of two rows each: risk 0.05, 0.15, ..., 0.95, the upper half died."""
    p = np.repeat(np.arange(10) / 10 + 0.05, 2)
    y = np.repeat([0] * 5 + [1] * 5, 2)
    # Of a decile at risk r: (O - 2 r)^2 / (2 r (1 - r) + 0.001); deciles 0..4 have O = 0.
    lower = [(2 * r) ** 2 / (2 * r * (1 - r) + 0.001) for r in (0.05, 0.15, 0.25, 0.35, 0.45)]
    expected = 2 * sum(lower) / (0.95 - 0.05)
    assert expected == pytest.approx(8.5072, abs=1e-4)
    ours = binary_metrics(y, p, threshold=0.5, num_bootstrap=2)["event2"]
    assert ours == pytest.approx(expected)
    order = np.random.default_rng(0).permutation(20)
    again = binary_metrics(y[order], p[order], threshold=0.5, num_bootstrap=2)["event2"]
    assert again == pytest.approx(expected)


def test_event2_of_risks_that_come_true_is_zero_and_of_equal_risks_undefined():
    p = np.repeat([0.1, 0.5, 0.9], 10)
    y = np.concatenate([[1] + [0] * 9, [1, 0] * 5, [0] + [1] * 9])
    exact = binary_metrics(y, p, threshold=0.5, num_bootstrap=2)
    assert exact["event2"] == pytest.approx(0, abs=1e-12)
    flat = binary_metrics(y, np.full(30, 0.5), threshold=0.5, num_bootstrap=2)
    assert np.isnan(flat["event2"])
    assert "event2" in undefined(flat)


def test_risks_that_are_off_have_a_larger_event2_and_its_interval_holds_the_value():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.5, 2000)
    y = rng.random(2000) < p
    right = binary_metrics(y, p, threshold=0.5, num_bootstrap=200)
    wrong = binary_metrics(y, np.minimum(1, 2 * p), threshold=0.5, num_bootstrap=200)
    assert wrong["event2"] > 5 * right["event2"]
    for found in (right, wrong):
        assert found["event2/low"] <= found["event2"] <= found["event2/high"]


def test_large_numbers_are_written_with_fewer_decimals():
    assert str(Interval(0.85, 0.8, 0.9)) == "0.850 [0.800, 0.900]"
    assert str(Interval(17.88, 9.0, 31.26)) == "17.9 [9.0, 31.3]"
    assert str(Interval(-1.5, -40.0, 3.0)) == "-1.5 [-40.0, 3.0]"


def test_only_the_metrics_asked_for_are_computed():
    y, p = outcomes_and_risks(1)
    found = binary_metrics(y, p, threshold=0.5, names=("auroc",), num_bootstrap=20)
    assert set(found) == {"n", "auroc", "auroc/low", "auroc/high"}
    whole = binary_metrics(y, p, threshold=0.5, num_bootstrap=20)
    assert all(whole[name] == value for name, value in found.items())


def test_differences_of_several_metrics_are_those_of_each():
    y, p = outcomes_and_risks(4)
    q = np.clip(p + np.random.default_rng(0).normal(0, 0.1, len(p)), 0, 1)
    names = ("auroc", "min_se_ppv", "event2")
    together = paired_differences(y, p, q, names, thresholds=(0.3, 0.4), num_bootstrap=40)
    for name in names:
        alone = paired_differences(y, p, q, (name,), thresholds=(0.3, 0.4), num_bootstrap=40)
        assert together[name] == alone[name]
    first = binary_metrics(y, p, threshold=0.3, num_bootstrap=2)
    second = binary_metrics(y, q, threshold=0.4, num_bootstrap=2)
    for name in names:
        assert together[name].value == pytest.approx(first[name] - second[name])


def test_the_interval_agrees_with_a_plain_bootstrap():
    y, p = outcomes_and_risks(11, n=250)
    rng = np.random.default_rng(5)
    draws = []
    for _ in range(1500):
        rows = rng.integers(0, 250, 250)
        draws.append(reference.roc_auc_score(y[rows], p[rows]))
    low, high = np.quantile(draws, (0.025, 0.975))
    ours = binary_metrics(y, p, threshold=0.5, num_bootstrap=1500)
    assert ours["auroc/low"] == pytest.approx(low, abs=0.008)
    assert ours["auroc/high"] == pytest.approx(high, abs=0.008)


def test_the_interval_is_repeatable_and_depends_on_the_seed():
    y, p = outcomes_and_risks(2)
    first = binary_metrics(y, p, threshold=0.5, num_bootstrap=50)
    assert first == binary_metrics(y, p, threshold=0.5, num_bootstrap=50)
    assert first != binary_metrics(y, p, threshold=0.5, num_bootstrap=50, seed=1)


@pytest.mark.parametrize("value", [0, 1])
def test_a_split_of_one_class_has_no_auroc_and_does_not_crash(value):
    y, p = np.full(20, value), np.linspace(0.1, 0.9, 20)
    ours = binary_metrics(y, p, threshold=0.5, num_bootstrap=20)
    assert np.isnan(ours["auroc"])
    assert "auroc" in undefined(ours)
    assert not any(name.endswith("/low") for name in undefined(ours))
    assert ours["brier"] >= 0


def test_an_empty_split_is_undefined_everywhere():
    ours = binary_metrics(np.zeros(0), np.zeros(0), threshold=0.5)
    assert ours["n"] == 0
    assert np.isnan(ours["brier"])


def test_a_model_that_flags_nobody_has_no_precision_and_a_minimum_of_zero():
    y, p = outcomes_and_risks(1)
    ours = binary_metrics(y, p, threshold=2.0, num_bootstrap=5)
    assert np.isnan(ours["ppv"])
    assert ours["min_se_ppv"] == 0


def test_the_difference_of_a_model_from_itself_is_exactly_zero():
    y, p = outcomes_and_risks(4)
    same = paired_differences(y, p, p, ("auroc",), num_bootstrap=30)["auroc"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_pairing_makes_the_interval_of_a_difference_narrow():
    y, p = outcomes_and_risks(4, n=600)
    worse = np.clip(p + np.random.default_rng(0).normal(0, 0.05, p.size), 0, 1)
    paired = paired_differences(y, p, worse, ("auroc",), num_bootstrap=400)["auroc"]
    alone = binary_metrics(y, p, threshold=0.5, num_bootstrap=400)
    expected = reference.roc_auc_score(y, p) - reference.roc_auc_score(y, worse)
    assert paired.value == pytest.approx(expected)
    assert paired.low <= expected <= paired.high
    assert paired.high - paired.low < 0.5 * (alone["auroc/high"] - alone["auroc/low"])


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        ([0, 1], [0.1], "2 labels but 1"),
        ([0, 2], [0.1, 0.2], "0 or 1"),
        ([0, 1], [0.1, np.nan], "finite"),
    ],
)
def test_bad_arrays_are_refused_with_the_reason(y, p, message):
    with pytest.raises(ValueError, match=message):
        binary_metrics(np.array(y), np.array(p), threshold=0.5)


def test_a_row_a_subject_gives_the_intervals_of_rows_to_the_last_bit():
    y, p = outcomes_and_risks(6)
    q = np.clip(p + np.random.default_rng(0).normal(0, 0.1, len(p)), 0, 1)
    subject = np.random.default_rng(1).permutation(10**6)[: len(p)]
    alone = {"threshold": 0.4, "num_bootstrap": 60}
    assert binary_metrics(y, p, subject=subject, **alone) == binary_metrics(y, p, **alone)
    names, few = ("auroc", "brier"), {"num_bootstrap": 60}
    of_subjects = paired_differences(y, p, q, names, subject=subject, **few)
    assert of_subjects == paired_differences(y, p, q, names, **few)


def test_a_row_given_five_times_is_no_more_certain():
    y, p = outcomes_and_risks(8)
    q = np.clip(p + np.random.default_rng(0).normal(0, 0.1, len(p)), 0, 1)
    once = binary_metrics(y, p, threshold=0.4, num_bootstrap=50)
    gap = paired_differences(y, p, q, ("auroc",), num_bootstrap=50)["auroc"]
    y, p, q, subject = (np.repeat(a, 5) for a in (y, p, q, np.arange(len(y))))
    again = binary_metrics(y, p, threshold=0.4, subject=subject, num_bootstrap=50)
    for name in ("auroc", "auprc", "brier", "ppv"):
        for end in ("", "/low", "/high"):
            assert again[name + end] == pytest.approx(once[name + end]), name
    same = paired_differences(y, p, q, ("auroc",), subject=subject, num_bootstrap=50)["auroc"]
    assert (same.low, same.high) == pytest.approx((gap.low, gap.high))
