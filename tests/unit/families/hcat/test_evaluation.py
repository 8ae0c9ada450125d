import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ehr_ray.evaluation.suite import SplitPredictions, SuiteInput
from ehr_ray.events.outcomes import Outcome
from ehr_ray.families.hcat.config import HCATConfig
from ehr_ray.families.hcat.evaluation import followed_of, imputation_quality, suite

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


def test_the_suite_scores_outcomes_of_the_judged_with_their_censoring(
    synthetic_cohort, synthetic_vocabulary, synthetic_patients, tmp_path
):
    config = HCATConfig(landmark_hours=24, survival=ACIDOSIS)
    args = (synthetic_cohort, "tuning", synthetic_vocabulary, ACIDOSIS, 24.0)
    known = followed_of(*args)
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
