import pytest

from ehr_ray.evaluation.table import Interval
from ehr_ray.evaluation.tasks.verdicts import gain, judgement, metric_prefix, outcome, verdicts


def test_verdicts_name_the_strongest_baseline_first_and_admit_a_tie():
    metrics = {}
    rows = {"gbm": (0.87, -0.031, -0.052, -0.010), "logistic": (0.85, 0.0, -0.02, 0.02)}
    rows["untrained"] = (0.70, 0.14, 0.10, 0.18)
    for name, (auroc, value, low, high) in rows.items():
        key = f"baseline/{name}/held_out/auroc"
        metrics |= {key: auroc, f"{key}_difference": value}
        metrics |= {f"{key}_difference/low": low, f"{key}_difference/high": high}
    assert verdicts(metrics, "held_out") == (
        "loses to gradient-boosted trees by 0.031 [0.010, 0.052] AUROC",
        "cannot be told apart from logistic regression: difference +0.000 [-0.020, +0.020] AUROC",
        "beats the untrained encoder by 0.140 [0.100, 0.180] AUROC",
    )


def test_what_is_lost_is_said_first_on_either_metric():
    metrics = {
        "baseline/gbm/held_out/auroc": 0.9,
        "baseline/gbm/held_out/auroc_difference": -0.02,
        "baseline/gbm/held_out/auroc_difference/low": -0.04,
        "baseline/gbm/held_out/auroc_difference/high": 0.01,
        "baseline/gbm/held_out/auprc": 0.6,
        "baseline/gbm/held_out/auprc_difference": -0.1,
        "baseline/gbm/held_out/auprc_difference/low": -0.17,
        "baseline/gbm/held_out/auprc_difference/high": -0.03,
    }
    first, second = judgement(metrics, "held_out")
    assert first == "loses to gradient-boosted trees by 0.100 [0.030, 0.170] AUPRC"
    assert second.startswith("cannot be told apart from gradient-boosted trees")


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ((0.004, 0.001, 0.008), "adds 0.004 [0.001, 0.008] AUROC to the trees"),
        ((0.004, -0.001, 0.008), "adds no AUROC that shows to the trees"),
        ((-0.004, -0.008, -0.001), "takes 0.004 [0.001, 0.008] AUROC from the trees"),
    ],
)
def test_what_the_model_adds_to_the_trees_is_said(bounds, said):
    key = "baseline/trees_and_model/held_out/auroc_gain"
    metrics = dict(zip((key, f"{key}/low", f"{key}/high"), bounds, strict=True))
    (sentence,) = gain(metrics, "held_out")
    assert sentence.startswith(said)
    assert gain({}, "held_out") == ()


@pytest.mark.parametrize(
    ("difference", "more", "word"),
    [
        ((0.1, 0.05, 0.2), True, "beats"),
        ((0.1, 0.05, 0.2), False, "loses"),
        ((-0.1, -0.2, -0.05), True, "loses"),
        ((-0.1, -0.2, -0.05), False, "beats"),
        ((0.1, -0.05, 0.2), True, "ties"),
        ((0.0, 0.0, 0.0), True, "ties"),
        ((0.1, float("nan"), float("nan")), True, ""),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(difference, more, word):
    assert outcome(Interval(*difference), more_is_better=more) == word


def test_the_model_has_no_prefix_and_a_baseline_its_own():
    assert metric_prefix("model", "held_out") == "held_out"
    assert metric_prefix("gbm", "tuning") == "baseline/gbm/tuning"
