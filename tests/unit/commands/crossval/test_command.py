"""Cross-validation of several families, in this process."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import f1_score, roc_auc_score

from ehr_ray.commands.crossval.command import claim, crossval
from ehr_ray.errors import ConfigError
from ehr_ray.evaluation.tasks import baselines, downstream
from ehr_ray.evaluation.tasks.baselines import TreeSettings
from ehr_ray.experiment import load
from ehr_ray.families.hcat import evaluation as hcat
from ehr_ray.families.hcat.outcome_baselines import LOGISTIC

TINY = Path(__file__).parents[4] / "configs" / "tiny"
QUICK = ("train.max_epochs=1", "cluster.num_workers=0", "crossval.folds=2", "crossval.repeats=1")


@pytest.fixture(scope="module", autouse=True)
def fewer_trees():
    """How many trees a baseline has is no matter of these tests."""
    few = (TreeSettings(0.1, 25, 4, 5, 1.0, 0.5),)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downstream, "fit_gbm", partial(baselines.fit_gbm, grid=few, num_seeds=1))
        names = (LOGISTIC, "trees")
        patch.setattr(hcat, "fit_baselines", partial(hcat.fit_baselines, names=names))
        yield


@pytest.fixture(scope="module")
def make(synthetic_cohort, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")

    def build(config, *more):
        fixed = (f"data.cohort={synthetic_cohort}", f"output={output}", "tracking.experiment=null")
        return load(TINY / f"{config}.yaml", [*QUICK, *fixed, *more])

    return build


@pytest.fixture(scope="module")
def probed(make):
    """set_vae, judged by a probe; one variant, tracked."""
    uri = "tracking.experiment=folds"
    variant = "crossval.variants={wide: {model.latent: 12}}"
    experiment = make("set_vae", uri, variant, "crossval.chosen=[wide]")
    return experiment, crossval(experiment)


def test_a_representation_is_judged_by_its_probe_beside_baselines_and_variants(probed):
    experiment, lines = probed
    scores = pd.read_csv(experiment.directory / "folds.csv", keep_default_na=False)
    assert {"model", "wide", "gbm", "logistic", "pca", "untrained"} <= set(scores["model"])
    assert set(scores["outcome"]) == {"outcome"}
    assert scores.groupby("model").size().unique().tolist() == [2]
    assert any("best baseline" in line for line in lines)
    assert any(line.startswith("- model - wide: auroc") for line in lines)
    record = json.loads((experiment.directory / "crossval.json").read_text())
    assert record["variants"] == {"wide": {"model.latent": 12}}


def test_a_score_is_that_of_the_predictions_and_every_patient_is_tested_once(
    probed, synthetic_cohort
):
    experiment, _ = probed
    scores = pd.read_csv(experiment.directory / "folds.csv").query("model == 'model'")
    seen = []
    for row in scores.itertuples():
        path = experiment.directory / "predictions" / "outcome" / f"r0-f{row.fold}.parquet"
        told = pd.read_parquet(path)
        seen += told["subject_id"].tolist()
        called = f1_score(told["boolean_value"], told["predicted_boolean_value"].astype(bool))
        assert row.f1 == pytest.approx(called)
        assert row.auroc == pytest.approx(
            roc_auc_score(told["boolean_value"], told["predicted_boolean_probability"])
        )
    labels = pq.read_table(synthetic_cohort / "labels" / "outcome.parquet")
    assert sorted(seen) == sorted(labels["subject_id"].to_pylist())


def test_one_mlflow_run_holds_the_cross_validation(probed):
    from mlflow import MlflowClient

    experiment, _ = probed
    note = yaml.safe_load((experiment.directory / "mlflow.yaml").read_text())
    client = MlflowClient(note["uri"])
    run = client.get_run(note["run_id"])
    runs = client.search_runs([run.info.experiment_id])
    assert [one.info.run_id for one in runs] == [note["run_id"]]
    assert run.info.status == "FINISHED"
    assert run.data.params["crossval.folds"] == "2"
    mean = pd.read_csv(experiment.directory / "folds.csv").groupby("model")["auroc"].mean()
    assert run.data.metrics["outcome/wide/auroc/mean"] == pytest.approx(mean["wide"])
    assert {"crossval.md", "folds.csv"} <= {a.path for a in client.list_artifacts(note["run_id"])}


def test_the_same_command_runs_nothing_again_and_another_experiment_needs_another_name(
    probed, make
):
    experiment, lines = probed
    said = []
    assert crossval(experiment, say=said.append) == lines
    assert said == ["4 fold jobs, 4 of them done before"]
    with pytest.raises(ConfigError, match=r"holds another cross-validation \(seed: 0 -> 5\)"):
        crossval(make("set_vae", "seed=5"))


def test_repeats_and_variants_may_be_added_and_what_is_done_may_not_be_changed(make, tmp_path):
    given = "crossval.variants={wide: {model.latent: 12}}"
    claim(tmp_path, make("set_vae", given))
    more = "crossval.variants={wide: {model.latent: 12}, deep: {model.width: 64}}"
    claim(tmp_path, make("set_vae", more, "crossval.repeats=3", "crossval.chosen=[deep]"))
    for change in (
        "crossval.folds=3",
        "crossval.tuning_share=0.3",
        "crossval.variants={wide: {model.latent: 16}}",
        "crossval.variants={wide: {}}",
        "crossval.variants={wide: {model.latent: 12, data: {batch_size: 8}}}",
    ):
        with pytest.raises(ConfigError, match="holds another cross-validation"):
            claim(tmp_path, make("set_vae", more, change))


def test_a_model_trained_for_a_task_is_judged_by_its_own_output(make):
    experiment = make("event_encoder", "model.n_layers=1")
    crossval(experiment)
    scores = pd.read_csv(experiment.directory / "folds.csv")
    # The probe beside it shows that the model's own row is not one.
    assert {"model", "probe", "gbm"} <= set(scores["model"])


def test_a_familys_own_baselines_and_measures_are_found(make):
    horizons = ("model.survival.horizon_days=1.03", "model.recurrence.horizon_days=1.02")
    experiment = make("hcat", *horizons, "crossval.chosen=[no_imputer]")
    crossval(experiment)
    scores = pd.read_csv(experiment.directory / "folds.csv", keep_default_na=False, na_values=[""])
    whole = scores[scores["outcome"].isna()]
    assert {"model", "no_imputer", LOGISTIC, "trees"} <= set(whole["model"])
    assert np.isfinite(whole["next_ph/c_index"]).all()
    own = whole[whole["model"] == "model"]
    assert np.isfinite(own["next_ph/missing_4/auroc"]).all()
    assert np.isfinite(own["imputation/clinical/r2"]).all()
    assert not [p for p in (experiment.directory / "jobs").iterdir() if p.name.startswith(".")]
