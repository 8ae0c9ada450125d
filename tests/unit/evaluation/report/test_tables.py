import csv
import io

import pytest

from ehr_ray.evaluation.report.tables import (
    COLUMNS,
    results_table,
    tidy_csv,
    verdict_of,
    where_the_trees_win,
)
from ehr_ray.evaluation.table import Interval


def estimate(key, value, low=None, high=None):
    low, high = (value - 0.05, value + 0.05) if low is None else (low, high)
    return {key: value, f"{key}/low": low, f"{key}/high": high}


@pytest.fixture
def metrics():
    out = {}
    for prefix, auroc in (("", 0.80), ("baseline/gbm/", 0.85), ("baseline/trees_and_model/", 0.86)):
        for name, value in (("auroc", auroc), ("auprc", 0.4), ("event2", 20.0), ("brier", 0.1)):
            out |= estimate(f"{prefix}held_out/{name}", value)
        out[f"{prefix}held_out/n"] = 500.0
    at = "baseline/gbm/held_out"
    out |= estimate(f"{at}/auroc_difference", -0.05, -0.08, -0.02)
    out |= estimate(f"{at}/auprc_difference", 0.0, -0.1, 0.1)
    out |= estimate(f"{at}/event2_difference", 8.0, 3.0, 12.0)
    out |= estimate(f"{at}/brier_difference", -0.02, -0.03, -0.01)
    out |= estimate("baseline/trees_and_model/held_out/auroc_gain", 0.01, 0.002, 0.02)
    out |= estimate("held_out/hours/6/auroc", 0.7)
    out |= estimate("baseline/gbm/held_out/hours/6/auroc", 0.6)
    out |= estimate("baseline/gbm/held_out/hours/6/auroc_difference", 0.1, 0.05, 0.15)
    out |= estimate("held_out/subgroups/age/under_45/observed", 0.1)
    return out | {"held_out/latent/kl": 3.0, "probe/threshold": 0.3, "held_out/ece": float("nan")}


def test_each_row_has_a_plain_verdict_with_its_paired_interval(metrics):
    table = results_table(metrics, "held_out")
    rows = {row[0]: row for row in table.rows}
    assert list(rows) == [
        "This model, linear probe",
        "LightGBM on simple features",
        "The trees and this model, averaged",
    ]
    trees = rows["LightGBM on simple features"]
    assert trees[-2:] == ("loses -0.050 [-0.080, -0.020]", "ties +0.000 [-0.100, +0.100]")
    assert rows["This model, linear probe"][-2:] == ("", "")
    assert rows["The trees and this model, averaged"][-2] == "adds +0.010 [+0.002, +0.020]"
    assert trees[1] == Interval(0.85, pytest.approx(0.80), pytest.approx(0.90))


def test_where_lower_is_better_a_higher_value_loses(metrics):
    assert verdict_of(metrics, "gbm", "held_out", "event2").startswith("loses +8.0 [+3.0, +12.0]")
    assert verdict_of(metrics, "gbm", "held_out", "brier").startswith("beats -0.020")
    assert verdict_of(metrics, "gbm", "held_out", "ece") == ""


def test_one_sentence_says_where_the_trees_win(metrics):
    won, mine, tied, _ = where_the_trees_win(metrics, "held_out").split(". ", 3)
    assert "AUROC (-0.050" in won
    assert "Event 2" in won
    assert "Brier" in mine
    assert "AUPRC" in tied
    assert where_the_trees_win({}, "held_out") == ""


def test_nothing_compared_is_no_table():
    assert results_table({"held_out/embedding/std": 1.0}, "held_out") is None


def test_the_csv_has_every_task_metric_as_a_row_and_nothing_else(metrics):
    rows = list(csv.DictReader(io.StringIO(tidy_csv(metrics))))
    assert tuple(rows[0]) == COLUMNS
    found = {(r["part"], r["model"], r["metric"]): r for r in rows}
    assert len(found) == len(rows)
    trees = found["all", "gbm", "auroc"]
    assert trees["value"] == "0.85"
    assert trees["low"] == "0.8"
    assert trees["difference_of"] == "model - gbm"
    assert trees["difference"] == "-0.05"
    assert trees["verdict"] == "loses"
    early = found["hours/6", "gbm", "auroc"]
    assert early["verdict"] == "beats"
    assert early["difference_low"] == "0.05"
    assert found["subgroups/age/under_45", "model", "observed"]["value"] == "0.1"
    assert found["all", "trees_and_model", "auroc"]["difference_of"] == "trees_and_model - gbm"
    assert found["all", "trees_and_model", "auroc"]["verdict"] == "adds"
    assert found["all", "model", "auroc"]["verdict"] == ""
    named = {metric for _, _, metric in found}
    assert named == {"n", "auroc", "auprc", "event2", "brier", "observed"}
