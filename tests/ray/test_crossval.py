"""Cross-validation as a user meets it: parallel tasks, one table, and nothing done twice."""

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.crossval.command import Plan, crossval
from ehr_ray.errors import ConfigError
from ehr_ray.experiment import load

pytestmark = pytest.mark.ray
CONFIG = Path(__file__).parents[2] / "configs" / "tiny" / "hcat.yaml"
PLAN = Plan(folds=2, repeats=1, variants=("no_imputer",))


@pytest.fixture(scope="module")
def experiment(cohort, tmp_path_factory):
    output = tmp_path_factory.mktemp("crossval")
    # Of the next hour, which some patients' next measurement falls into, and others' does not.
    horizons = ["model.survival.horizon_days=1.03", "model.recurrence.horizon_days=1.02"]
    fixed = [f"data.cohort={cohort}", f"output={output}", "train.max_epochs=1"]
    return load(CONFIG, [*fixed, *horizons])


@pytest.fixture(scope="module")
def lines(experiment, cluster):
    return crossval(experiment, PLAN)


def test_every_fold_is_judged_beside_baselines_and_ablations(lines, experiment):
    scores = pd.read_csv(experiment.directory / "folds.csv")
    models = {"model", "no_imputer", "logistic_clinical_pathological", "forest", "trees"}
    assert models <= set(scores["model"])
    assert {"model@1 missing", "model@4 missing"} <= set(scores["model"])
    assert set(scores["outcome"]) == {"next_ph", "next_temperature"}
    assert scores.groupby(["model", "outcome"]).size().unique().tolist() == [2]
    assert scores["auroc"].between(0, 1).all()
    assert any("best baseline" in line for line in lines)
    record = json.loads((experiment.directory / "crossval.json").read_text())
    assert "no event within 1.03 days" in record["positive"]["next_ph"]


def test_every_patient_is_tested_once(lines, experiment, cohort):
    rows = pd.concat(
        pd.read_parquet(p) for p in sorted((experiment.directory / "jobs").glob("model-*.parquet"))
    )
    test = rows[(rows["part"] == "test") & (rows["model"] == "model")]
    there = pq.read_table(cohort / "metadata" / "subject_splits.parquet")["subject_id"].to_pylist()
    for _, part in test.groupby("outcome"):
        assert sorted(part["subject_id"]) == sorted(there)


def test_the_same_command_runs_nothing_again(lines, experiment):
    said = []
    again = crossval(experiment, PLAN, say=said.append)
    assert again == lines
    assert "6 fold jobs, 6 of them done before" in said


def test_other_settings_need_another_name_and_other_families_are_refused(lines, experiment, cohort):
    changed = load(CONFIG, [f"data.cohort={cohort}", f"output={experiment.output}", "seed=5"])
    with pytest.raises(ConfigError, match="holds another cross-validation"):
        crossval(changed, PLAN)
    with pytest.raises(ConfigError, match="choose from no_imputer"):
        crossval(experiment, Plan(variants=("none",)))
    other = load(CONFIG.with_name("set_vae.yaml"), [f"data.cohort={cohort}"])
    with pytest.raises(ConfigError, match="answers no task by itself"):
        crossval(other, PLAN)
