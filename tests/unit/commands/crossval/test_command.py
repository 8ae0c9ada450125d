"""Cross-validation of several families, in this process."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import f1_score, roc_auc_score

from ehr_ray.commands.crossval.command import claim, crossval
from ehr_ray.errors import ConfigError
from ehr_ray.evaluation.suite import SuiteResult
from ehr_ray.evaluation.tasks import baselines, downstream
from ehr_ray.evaluation.tasks.trees import TreeSettings
from ehr_ray.events.outcomes import labels_at
from ehr_ray.events.patients import cohort_shards, read_patients
from ehr_ray.experiment import load
from ehr_ray.families.hcat import evaluation as hcat
from ehr_ray.families.hcat.outcome_baselines import LOGISTIC
from ehr_ray.families.vitals_vae.evaluation import suites as vitals

TINY = Path(__file__).parents[4] / "configs" / "tiny"
DAY = 86_400_000_000
HORIZON = "model.survival.horizon_days=1.03"
QUICK = ("train.max_epochs=1", "cluster.num_workers=0", "crossval.folds=2", "crossval.repeats=1")


@pytest.fixture(scope="module", autouse=True)
def less_work():
    """How many trees a baseline has is no matter of these tests, nor are phenotypes.

    Patients are mapped and clustered some 30 times a fold for these: a minute of CPU time.
    """
    few = (TreeSettings(0.1, 4, 0.5, default_trees=25),)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downstream, "fit_gbm", partial(baselines.fit_gbm, grid=few, num_seeds=1))
        names = (LOGISTIC, "trees")
        patch.setattr(hcat, "fit_baselines", partial(hcat.fit_baselines, names=names))
        patch.setattr(vitals, "clusters", lambda _: SuiteResult())
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


@pytest.mark.parametrize("config", ["vitals_vae", "seqset_poe"])
def test_vital_signs_and_sequences_of_sets_are_judged_by_their_probe(config, make):
    experiment = make(config, "train.max_steps=3", "evaluation.baselines=false")
    crossval(experiment)
    scores = pd.read_csv(experiment.directory / "folds.csv")
    model = scores[scores["model"] == "model"]
    assert sorted(model["fold"]) == [0, 1]
    assert np.isfinite(model["auroc"]).all()


def test_a_model_trained_for_a_task_is_judged_by_its_own_output(make):
    experiment = make("event_encoder", "model.n_layers=1")
    crossval(experiment)
    scores = pd.read_csv(experiment.directory / "folds.csv")
    # The probe beside it shows that the model's own row is not one.
    assert {"model", "probe", "gbm"} <= set(scores["model"])


@pytest.fixture(scope="module")
def followed(synthetic_cohort, synthetic_vocabulary, tmp_path_factory):
    """The synthetic cohort; four in five have the next pH after a day as a label."""
    folder = tmp_path_factory.mktemp("cohorts") / "followed"
    shutil.copytree(synthetic_cohort, folder)
    outcome = load(TINY / "hcat.yaml", [HORIZON]).model.survival
    rows = []
    for split in ("train", "tuning", "held_out"):
        (known,) = hcat.followed_of(folder, split, synthetic_vocabulary, [outcome], 24.0)
        for shard in cohort_shards(folder, split):
            for patient in read_patients(shard, synthetic_vocabulary):
                days, state = known[patient.subject_id]
                label = labels_at(np.array([days]), np.array([state], np.int8), outcome)[0]
                rows.append((patient.subject_id, patient.origin + DAY, int(label)))
    subject, time, label = zip(*[r for i, r in enumerate(rows) if r[2] >= 0 and i % 5], strict=True)
    table = {
        "subject_id": subject,
        "prediction_time": pa.array(time, pa.timestamp("us")),
        "boolean_value": np.array(label) > 0,
    }
    pq.write_table(pa.table(table), folder / "labels" / "next_ph.parquet")
    return folder


def test_a_familys_own_tasks_baselines_and_measures_are_found(make, followed):
    more = (HORIZON, f"data.cohort={followed}", "crossval.chosen=[no_imputer]")
    experiment = make("hcat", *more)
    crossval(experiment)
    scores = pd.read_csv(experiment.directory / "folds.csv", keep_default_na=False, na_values=[""])
    task, whole = scores[scores["outcome"] == "next_ph"], scores[scores["outcome"].isna()]
    for name in ("model", "no_imputer", "gbm", LOGISTIC, "trees"):
        own = task[task["model"] == name]
        assert len(own) == 2, name
        assert np.isfinite(own["brier"]).all(), name
    for name in ("model", "no_imputer", LOGISTIC, "trees"):
        assert np.isfinite(task[task["model"] == name]["c_index"]).all(), name
    own = task[task["model"] == "model"]
    assert own["followed"].sum() > own["n"].sum()  # all patients, also those without a label
    assert np.isfinite(own["missing_4/auroc"]).all()
    assert np.isfinite(whole[whole["model"] == "model"]["imputation/clinical/r2"]).all()
    # Nothing of the folds is left but what is joined.
    left = {path.suffix for path in (experiment.directory / "jobs").iterdir()}
    assert left == {".json", ".parquet"}


def test_an_ensemble_is_named_so_with_its_parts_stacked_and_all_members_and_variants_whole(make):
    """Members and variants are ensembles too; of their parts the network's members are averaged."""
    more = (
        "crossval.members=2",
        "crossval.chosen=[one]",
        "crossval.variants={one: {train.seeds: 1}}",
    )
    experiment = make("mortality_ensemble", "data.cache=memory", *more)
    lines = crossval(experiment)
    text = (experiment.directory / "crossval.md").read_text()
    assert "| ensemble: jepa, trees, regression |" in text
    assert "| jepa alone |" in text
    assert "| Network, trees, regression, stacked |" in text
    assert any(line.startswith("- model - stacked: auroc") for line in lines)
    (line,) = [line for line in lines if line.startswith("Stacked on what each part said")]
    stack = line.rpartition("`evaluation.stack='")[2].removesuffix("'`")
    assert make("mortality_ensemble", f"evaluation.stack={stack}").evaluation.stack.network >= 0
    scores = pd.read_csv(experiment.directory / "folds.csv", keep_default_na=False)
    counts = scores.groupby("model")["fold"].apply(sorted)
    assert {name: rows for name, rows in counts.items() if rows != [0, 1]} == {}
    jobs = {
        p.stem: set(pd.read_parquet(p)["model"])
        for p in experiment.directory.rglob("*-m?*.parquet")
    }
    assert {"model", "network", "gbm_rich", "average_rich"} < jobs["model-r0-f0-m0"]
    assert jobs["model-r0-f0-m1-e"] == {"model", "network"}
    assert jobs["one-r0-f0-m0-e"] == {"one"}
    record = json.loads((experiment.directory / "crossval.json").read_text())
    assert set(record["stack"]["outcome"]) == {"network", "gbm_rich", "logistic_rich", "offset"}
