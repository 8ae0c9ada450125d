from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ehr_ray.evaluation.table import Interval
from ehr_ray.evaluation.tasks.downstream import TaskScores
from ehr_ray.evaluation.tasks.subgroups import (
    TOO_FEW,
    Division,
    key_of,
    keys_of,
    most_rows,
    subgroup_result,
)

N = 400


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    risk = rng.uniform(0.02, 0.6, N)
    label = rng.random(N) < risk
    given = {"model": risk, "gbm": np.clip(risk + rng.normal(0, 0.15, N), 0.01, 0.99)}
    metrics = {"held_out/auroc": 0.8, "held_out/auroc/low": 0.7, "held_out/auroc/high": 0.9}
    subject = {"held_out": np.arange(N)}
    return TaskScores(metrics, {"held_out": given}, {}, {"held_out": label}, {}, subject, ())


def divided(names, groups=("female", "male")):
    return Division("sex", groups, names)


def measured(scores, *divisions):
    return subgroup_result(divisions, scores, "held_out", num_bootstrap=40)


def test_a_group_is_measured_on_its_own_rows(scores):
    names = ["female"] * 150 + ["male"] * 250
    metrics = measured(scores, divided(names)).metrics
    label, risk = scores.labels["held_out"][:150], scores.probabilities["held_out"]
    at = "held_out/subgroups/sex/female"
    assert metrics[f"{at}/n"] == 150
    assert metrics[f"{at}/positive"] == label.sum()
    assert metrics[f"{at}/auroc"] == pytest.approx(roc_auc_score(label, risk["model"][:150]))
    assert metrics[f"{at}/observed"] == pytest.approx(label.mean())
    assert metrics[f"{at}/predicted"] == pytest.approx(risk["model"][:150].mean())
    for name in ("auroc", "auprc", "observed"):
        assert (
            metrics[f"{at}/{name}/low"] <= metrics[f"{at}/{name}"] <= metrics[f"{at}/{name}/high"]
        )
    trees = f"baseline/gbm/{at}"
    assert metrics[f"{trees}/auroc"] == pytest.approx(roc_auc_score(label, risk["gbm"][:150]))
    assert metrics[f"{trees}/auroc_difference"] == pytest.approx(
        metrics[f"{at}/auroc"] - metrics[f"{trees}/auroc"]
    )


def test_a_small_group_is_said_to_be_too_few_and_has_no_numbers(scores):
    names = ["female"] * 12 + ["male"] * (N - 12)
    found = measured(scores, divided(names))
    at = "held_out/subgroups/sex/female"
    assert found.metrics[f"{at}/n"] == 12
    assert f"{at}/auroc" not in found.metrics
    assert f"{at}/observed" not in found.metrics
    ranking, rates = found.sections.values()
    row = next(row for row in ranking.rows if row[0] == "sex: female")
    assert row[3] == row[4] == row[6] == TOO_FEW
    assert next(row for row in rates.rows if row[0] == "sex: female")[2] == TOO_FEW


def test_a_large_group_without_deaths_has_a_rate_and_no_auroc(scores):
    names = np.where(scores.labels["held_out"], "male", "female").tolist()
    metrics = measured(scores, divided(names)).metrics
    at = "held_out/subgroups/sex/female"
    assert metrics[f"{at}/observed"] == 0
    assert metrics[f"{at}/predicted"] > 0
    assert f"{at}/auroc" not in metrics


def test_rows_of_no_known_group_are_shown_as_such_and_empty_groups_are_not(scores):
    found = measured(scores, divided(["female"] * 200 + [None] * 200))
    titles = [row[0] for row in next(iter(found.sections.values())).rows]
    assert titles == ["sex: female", "sex: not known"]


def test_a_cohort_that_knows_none_of_the_groups_gives_nothing(scores):
    found = measured(scores, divided([None] * N))
    assert found.metrics == {}
    assert found.sections == {}
    assert found.figures == {}
    assert measured(scores).metrics == {}


def test_a_group_whose_risk_is_off_is_named(scores):
    scores.probabilities["held_out"]["model"][:200] = 0.95
    _, rates = measured(scores, divided(["female"] * 200 + ["male"] * 200)).sections.values()
    told = {row[0]: row[-1] for row in rates.rows}
    assert "this model" in told["sex: female"]
    assert "this model" not in told["sex: male"]


def test_the_forest_shows_everybody_and_the_groups_that_can_be_ranked(scores):
    found = measured(scores, divided(["female"] * 12 + ["male"] * (N - 12)))
    (axis,) = found.figures["subgroups"].axes
    assert [t.get_text() for t in axis.get_yticklabels()] == ["everybody", "sex: male"]
    assert found.captions["subgroups"][0] == "Discrimination by subgroup"


def test_estimates_keep_their_intervals(scores):
    ranking, _ = measured(scores, divided(["female"] * 200 + ["male"] * 200)).sections.values()
    assert isinstance(ranking.rows[0][3], Interval)


@pytest.mark.parametrize(
    ("name", "key"),
    [("45 to under 65", "45_to_under_65"), ("<45 (a/b)", "45_a_b"), ("65.5", "65.5")],
)
def test_a_name_becomes_part_of_a_key(name, key):
    assert key_of(name) == key


def test_rows_given_three_times_are_no_more_certain(scores):
    names = ["female"] * 150 + ["male"] * 250
    once = measured(scores, divided(names)).metrics
    tripled = replace(
        scores,
        probabilities={
            "held_out": {m: np.repeat(p, 3) for m, p in scores.probabilities["held_out"].items()}
        },
        labels={"held_out": np.repeat(scores.labels["held_out"], 3)},
        subjects={"held_out": np.repeat(scores.subjects["held_out"], 3)},
    )
    again = measured(tripled, divided(list(np.repeat(names, 3)))).metrics
    at = "subgroups/sex/female"
    for key in (f"held_out/{at}/observed", f"baseline/gbm/held_out/{at}/auroc_difference"):
        for end in ("/low", "/high"):
            assert again[key + end] == pytest.approx(once[key + end])


def test_groups_with_the_most_rows_stay_in_their_order_and_the_others_are_told(scores):
    names = ["a"] * 30 + ["b"] * 100 + ["c"] * 40 + ["d"] * 200 + [None] * 30
    given = Division("hospital", ("a", "b", "c", "d", "nobody's"), names)
    assert most_rows(given, 4) == (given, "")
    kept, note = most_rows(given, 2)
    assert list(kept.groups) == ["b", "d"]
    assert note == (
        "subgroups by hospital: the 2 of 4 with the most rows are judged; 2 with 70 rows are left "
        "out"
    )
    found = measured(scores, kept).metrics
    at = "held_out/subgroups/hospital"
    sizes = [found.get(f"{at}/{name}/n") for name in ("a", "b", "c", "d", "not_known")]
    assert sizes == [None, 100, None, 200, 30]


def test_groups_whose_names_give_one_key_are_both_kept(scores):
    names = ["unit A"] * 150 + ["unit/A"] * 250
    division = Division("sex", ("unit A", "unit/A"), names)
    metrics = measured(scores, division, replace(division, name="sex*")).metrics
    of_group, of_name = keys_of(["unit A", "unit/A"]), keys_of(["sex", "sex*"])
    assert len({*of_group.values()}) == len({*of_name.values()}) == 2
    for name in of_name.values():
        at = f"held_out/subgroups/{name}"
        assert metrics[f"{at}/{of_group['unit A']}/n"] == 150
        assert metrics[f"{at}/{of_group['unit/A']}/n"] == 250
