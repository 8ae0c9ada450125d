import dataclasses
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ehr_ray.evaluation.suite import SplitPredictions, SuiteInput
from ehr_ray.events.options import Outcome
from ehr_ray.families.hcat import outcome_baselines
from ehr_ray.families.hcat.config import HCATConfig
from ehr_ray.families.hcat.evaluation import followed_of, imputation_quality, suite
from ehr_ray.families.hcat.outcome_baselines import LOGISTIC, fit_baselines, read_columns, stacked

SOON = Outcome(name="acidosis", event=("pH",), end=("HR",), horizon_days=1.03)
ACIDOSIS = Outcome(name="acidosis", event=("pH",), end=("HR",), horizon_days=1.2)


def test_imputation_is_judged_against_the_mean_and_against_what_it_expected():
    rng = np.random.default_rng(0)
    expected = rng.uniform(0.1, 1, 400)
    tokens = pd.DataFrame(
        {
            "modality": np.repeat([0, 4], 200),
            "error": expected * rng.uniform(0.9, 1.1, 400),
            "spread": np.repeat([2.0, 0.55], 200),
            "logvar": np.log(expected),
        }
    )
    found = imputation_quality(tokens)
    assert list(found) == ["clinical", "spatial"]
    assert found["clinical"]["r2"] == pytest.approx(1 - 0.55 / 2, abs=0.05)
    assert found["spatial"]["r2"] == pytest.approx(0, abs=0.1)
    assert found["clinical"]["calibration"] == pytest.approx(1, abs=0.02)
    assert found["clinical"]["rank"] > 0.95
    assert imputation_quality(tokens[:5]) == {}


@pytest.fixture
def given(synthetic_cohort, synthetic_vocabulary, synthetic_patients, tmp_path):
    """What the suite gets of a model that knows nothing, for a task that is its first outcome."""

    def samples(split):
        ids = [p.subject_id for p in synthetic_patients[split]][::-1]
        zeros = np.zeros(len(ids))
        return pa.table({"subject_id": ids, "acidosis_logit": zeros})

    fit = {split: SplitPredictions(samples(split), {}) for split in ("train", "tuning")}
    return SuiteInput(
        split="held_out",
        judged=SplitPredictions(samples("held_out"), {}),
        fit=fit,
        model=HCATConfig(
            landmark_hours=24,
            survival=SOON,
            codes={"clinical": ("Age", "Weight"), "pathological": ("Creatinine", "BUN")},
        ),
        vocabulary=synthetic_vocabulary,
        target=tmp_path,
        cohort=synthetic_cohort,
        home=synthetic_cohort,
        task="acidosis",
    )


def test_baselines_of_an_outcome_are_fitted_on_train_and_tuning_and_told_by_row(given):
    found = suite(given)
    assert LOGISTIC in found.predictions
    train, tuning, judged = (
        read_columns(given.home, split, given.model, given.vocabulary)
        for split in ("train", "tuning", "held_out")
    )
    fit = stacked([train, tuning])
    known = fit.label[:, 0] >= 0
    predict, unseen = fit_baselines(
        fit.columns.of(known), fit.label[known, 0], seed=0, names=(LOGISTIC,)
    )[LOGISTIC]
    told = found.predictions[LOGISTIC]
    # Rows of the samples are in another order than those of the cohort.
    np.testing.assert_allclose(told["held_out"], predict(judged.columns)[::-1])
    held = dict(zip(fit.subject_id[known].tolist(), unseen.tolist(), strict=True))
    rows = given.fit["tuning"].samples["subject_id"].to_pylist()
    there = [i for i, subject in enumerate(rows) if subject in held]
    np.testing.assert_allclose(told["tuning"][there], [held[rows[i]] for i in there])
    assert f"baseline/{LOGISTIC}/held_out/acidosis/c_index" in found.metrics


def test_of_a_large_split_the_baselines_are_fitted_on_the_sample(given):
    halved = SplitPredictions(given.fit["train"].samples[::2], {})
    some = suite(dataclasses.replace(given, fit={**given.fit, "train": halved}, sampled={"train"}))
    subjects = {*halved.samples["subject_id"].to_pylist()}
    train, tuning, judged = (
        read_columns(given.home, split, given.model, given.vocabulary, wanted)
        for split, wanted in (("train", subjects), ("tuning", None), ("held_out", None))
    )
    assert {*train.subject_id.tolist()} == subjects
    fit = stacked([train, tuning])
    known = fit.label[:, 0] >= 0
    fitted = fit_baselines(fit.columns.of(known), fit.label[known, 0], seed=0, names=(LOGISTIC,))
    said = fitted[LOGISTIC][0](judged.columns)[::-1]
    np.testing.assert_allclose(some.predictions[LOGISTIC]["held_out"], said)
    assert not np.allclose(suite(given).predictions[LOGISTIC]["held_out"], said)


def test_a_cohort_without_tuning_has_baselines_of_train(given, tmp_path):
    home = tmp_path / "cohort"
    shutil.copytree(given.home, home, ignore=shutil.ignore_patterns("tuning"))
    fit = {"train": given.fit["train"]}
    found = suite(dataclasses.replace(given, home=home, cohort=home, fit=fit))
    assert found.predictions[LOGISTIC].keys() == {"held_out"}


def test_columns_do_not_depend_on_who_is_read_with_whom(given, monkeypatch):
    arguments = (given.home, "train", given.model, given.vocabulary)
    whole = read_columns(*arguments)
    monkeypatch.setattr(outcome_baselines, "GROUP_PATIENTS", 7)
    parts = read_columns(*arguments)
    np.testing.assert_array_equal(parts.subject_id, whole.subject_id)
    np.testing.assert_array_equal(parts.label, whole.label)
    for name in ("core", "tables", "tiles"):
        np.testing.assert_array_equal(getattr(parts.columns, name), getattr(whole.columns, name))


def test_baselines_are_left_out_where_they_are_not_asked_for_or_the_cohort_is_gone(given):
    for change in ({"baselines": False}, {"home": None}):
        found = suite(dataclasses.replace(given, **change))
        assert found.predictions == {}
        assert not any(key.startswith("baseline/") for key in found.metrics)


def test_the_suite_scores_outcomes_of_the_judged_with_their_censoring(
    synthetic_cohort, synthetic_vocabulary, synthetic_patients, tmp_path
):
    config = HCATConfig(landmark_hours=24, survival=ACIDOSIS)
    args = (synthetic_cohort, "tuning", synthetic_vocabulary, [ACIDOSIS, SOON], 24.0)
    known, sooner = followed_of(*args)
    assert [sooner] == followed_of(*args[:3], [SOON], 24.0)
    assert set(known) == {p.subject_id for p in synthetic_patients["tuning"]}
    ids = sorted(known)
    soon = [-known[s][0] if known[s][1] == 1 else -9.0 for s in ids]
    samples = pa.table({"subject_id": ids, "acidosis_logit": np.array(soon)})
    given = SuiteInput(
        split="tuning",
        judged=SplitPredictions(samples, {}),
        fit={},
        model=config,
        vocabulary=synthetic_vocabulary,
        target=tmp_path,
        cohort=synthetic_cohort,
    )
    found = suite(given)
    assert found.metrics["tuning/acidosis/c_index"] > 0.95
    assert list(found.sections) == ["Outcomes with censoring"]
