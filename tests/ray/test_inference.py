"""What evaluate and embed leave on disk, on the run's cohort and on another."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.embed import embed
from ehr_ray.commands.evaluate.command import evaluate
from ehr_ray.commands.ingest import ingest
from ehr_ray.commands.train.command import train
from ehr_ray.errors import InputError, ResourcesUnavailableError, RunError
from ehr_ray.events.labels import read_labels
from ehr_ray.events.patient_features import FeatureCodes
from ehr_ray.events.patients import cohort_shards, read_patients
from ehr_ray.events.subgroups import Subgroup
from ehr_ray.runtime.inference import parts as inference_parts
from ehr_ray.runtime.inference.parts import Part, predict_parts
from ehr_ray.runtime.inference.shards import Request, ShardPredictor
from ehr_ray.train import checkpoint
from ehr_ray.train.checkpoint import load

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def run(cluster, cohort, tmp_path_factory):
    from pathlib import Path

    from ehr_ray.experiment import load as load_config

    config = Path(__file__).parents[2] / "configs" / "tiny" / "set_vae.yaml"
    output = tmp_path_factory.mktemp("inference")
    changes = [f"data.cohort={cohort}", f"output={output}", "cluster.num_workers=0"]
    return train(load_config(config, [*changes, "evaluation.bootstrap=60"])).run


@pytest.fixture(scope="module")
def evaluated(run):
    return evaluate(run)


def test_evaluate_writes_the_contract_into_the_run(run, cohort, evaluated):
    metrics = json.loads((run / "metrics.json").read_text())
    for name in ("auroc", "auprc", "min_se_ppv", "brier", "ece"):
        for key in (f"held_out/{name}", f"tuning/{name}", f"baseline/gbm/held_out/{name}"):
            assert metrics[f"{key}/low"] <= metrics[key] <= metrics[f"{key}/high"]
    for baseline in ("logistic", "pca", "untrained", "trees_and_model"):
        assert f"baseline/{baseline}/held_out/auroc" in metrics
    assert metrics["held_out/reconstruction/all/mse"] > 0
    predictions = pd.read_parquet(run / "predictions" / "held_out.parquet")
    assert list(predictions) == [
        "subject_id",
        "prediction_time",
        "boolean_value",
        "predicted_boolean_value",
        "predicted_boolean_probability",
    ]
    labels = pd.read_parquet(cohort / "labels" / "outcome.parquet")
    joined = predictions.merge(labels, on=["subject_id", "prediction_time"], suffixes=("", "_true"))
    assert len(joined) == len(predictions)
    assert (joined["boolean_value"] == joined["boolean_value_true"]).all()
    html = (run / "report.html").read_text()
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert len(list((run / "figures").glob("*.png"))) >= 5
    assert any("AUROC" in line for line in evaluated)
    assert pq.read_table(run / "embeddings" / "held_out.parquet").column_names[-1] == "embedding"


def test_hours_subgroups_and_challenge_scores_are_among_the_metrics(run, evaluated):
    metrics = json.loads((run / "metrics.json").read_text())
    for prefix in ("", "baseline/gbm/", "baseline/logistic/"):
        for key in ("held_out/event2", "held_out/hours/6/auroc", "held_out/hours/24/auprc"):
            at = f"{prefix}{key}"
            assert metrics[f"{at}/low"] <= metrics[at] <= metrics[f"{at}/high"]
    # The labels are of hour 24: no later hour is predicted, and that one is the task itself.
    assert not any("/hours/48/" in key for key in metrics)
    assert metrics["held_out/hours/24/auroc"] == metrics["held_out/auroc"]
    patients = metrics["held_out/n"]
    for name in ("age", "sex"):
        sizes = [
            value
            for key, value in metrics.items()
            if key.startswith(f"held_out/subgroups/{name}/") and key.endswith("/n")
        ]
        assert sum(sizes) == patients
    assert not any("subgroups/ICU_type" in key for key in metrics)


def test_the_results_stand_in_a_table_and_the_baselines_predict_too(run, evaluated):
    text = (run / "results.md").read_text()
    for part in ("Verdict on AUROC", "## By hour", "## By subgroup", "The gradient-boosted trees"):
        assert part in text
    rows = pd.read_csv(run / "results.csv")
    metrics = json.loads((run / "metrics.json").read_text())
    chosen = rows.query("part == 'all' and model == 'gbm' and metric == 'auroc'")
    found = chosen.set_index("split").loc["held_out"]
    assert found["value"] == pytest.approx(metrics["baseline/gbm/held_out/auroc"], rel=1e-5)
    ours = pd.read_parquet(run / "predictions" / "held_out.parquet")
    for name in ("gbm", "logistic", "pca", "untrained", "trees_and_model"):
        theirs = pd.read_parquet(run / "predictions" / "baselines" / name / "held_out.parquet")
        assert list(theirs) == list(ours)
        assert (theirs["subject_id"] == ours["subject_id"]).all()
        assert (theirs["boolean_value"] == ours["boolean_value"]).all()


def test_evaluate_is_deterministic(run, evaluated, tmp_path):
    evaluate(run, output=tmp_path / "again")
    assert (run / "metrics.json").read_bytes() == (tmp_path / "again" / "metrics.json").read_bytes()


def test_another_cohort_is_scored_without_refitting(run, evaluated, tmp_path):
    other = tmp_path / "other"
    ingest(
        "synthetic", None, other, options={"patients": 40, "data_seed": 9}, splits="all:held_out"
    )
    evaluate(run, cohort=other)
    folder = run / "evaluations" / "other"
    metrics = json.loads((folder / "metrics.json").read_text())
    mine = json.loads((run / "metrics.json").read_text())
    assert metrics["held_out/n"] == 40
    assert metrics["probe/threshold"] == mine["probe/threshold"]
    assert metrics["baseline/gbm/threshold"] == mine["baseline/gbm/threshold"]
    assert metrics["held_out/hours/6/n"] == 40
    assert any("held_out/subgroups/age/" in key for key in metrics)
    assert "baseline/trees_and_model/held_out/auroc_gain" in metrics
    assert {p.name for p in folder.iterdir()} >= {"results.md", "results.csv", "report.html"}


def test_a_score_does_not_depend_on_the_company(run, evaluated, cohort, tmp_path):
    """The held-out patients, as another cohort of their own, get the same probabilities."""
    import shutil

    other = tmp_path / "same"
    shutil.copytree(cohort, other)
    evaluate(run, cohort=other, output=tmp_path / "out")
    left = pd.read_parquet(run / "predictions" / "held_out.parquet")
    right = pd.read_parquet(tmp_path / "out" / "predictions" / "held_out.parquet")
    pd.testing.assert_frame_equal(left, right, rtol=1e-6)
    mine = json.loads((run / "metrics.json").read_text())
    theirs = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for key in mine:
        if key.startswith(("held_out/hours/", "held_out/subgroups/", "held_out/event2")):
            assert theirs[key] == pytest.approx(mine[key], rel=1e-4), key


def test_events_after_the_prediction_time_do_not_reach_the_model(run, cohort):
    loaded = load(run)
    labels = pd.read_parquet(cohort / "labels" / "outcome.parquet").set_index("subject_id")
    patient = next(read_patients(cohort_shards(cohort, "train")[0], loaded.vocabulary))
    cut = int(labels.loc[patient.subject_id, "prediction_time"].value // 1000)
    assert (patient.until(cut).time <= cut).all()
    assert (patient.until(cut - 3_600_000_000).time <= cut - 3_600_000_000).all()


def changed_after(cohort, target, hours):
    """Copy a cohort with every value after an hour multiplied by ten."""
    import shutil

    shutil.copytree(cohort, target)
    for path in target.glob("data/**/*.parquet"):
        table = pd.read_parquet(path)
        start = table[table["code"] == "ADMISSION"].groupby("subject_id")["time"].min()
        late = table["time"] > table["subject_id"].map(start) + pd.Timedelta(hours=hours)
        table.loc[late, "numeric_value"] *= 10
        schema = pq.read_schema(path)
        pq.write_table(pa.Table.from_pandas(table, schema=schema, preserve_index=False), path)


def predicted(part):
    predict_parts([part], on_ray=False)
    return part.folders


def hour_rows(run, cohort, folder, hours=(6.0, 12.0, 24.0)):
    labels = read_labels(cohort, "outcome")
    request = Request(run / "checkpoint", features=FeatureCodes(tuple(range(8))), hours=hours)
    shards = cohort_shards(cohort, "held_out")
    parts = predicted(Part(shards, folder, request, labels.cuts()))
    return pd.concat([pd.read_parquet(part / "hours.parquet") for part in parts])


def test_an_early_hour_is_told_by_the_events_until_then(run, cohort, tmp_path):
    changed_after(cohort, tmp_path / "late", 6)
    plain = hour_rows(run, cohort, tmp_path / "a")
    late = hour_rows(run, tmp_path / "late", tmp_path / "b")
    for hour, same in ((6.0, True), (12.0, False)):
        ours, theirs = plain[plain["hour"] == hour], late[late["hour"] == hour]
        for name in ("embedding", "features"):
            left, right = np.stack(ours[name]), np.stack(theirs[name])
            assert np.array_equal(left, right, equal_nan=True) == same, (hour, name)


def test_an_early_hour_is_the_prediction_of_a_task_of_that_hour(run, cohort, tmp_path):
    """Not only earlier: exactly what `evaluate` would see had it asked at six hours."""
    early = tmp_path / "early"
    import shutil

    shutil.copytree(cohort, early)
    path = early / "labels" / "outcome.parquet"
    labels = pd.read_parquet(path)
    labels["prediction_time"] -= pd.Timedelta(hours=18)
    pq.write_table(pa.Table.from_pandas(labels, preserve_index=False), path)
    hours = hour_rows(run, cohort, tmp_path / "a")
    hours = hours[hours["hour"] == 6]
    request = Request(run / "checkpoint", features=FeatureCodes(tuple(range(8))))
    shards = cohort_shards(early, "held_out")
    cuts = read_labels(early, "outcome").cuts()
    parts = predicted(Part(shards, tmp_path / "b", request, cuts))
    samples = pd.concat([pd.read_parquet(part / "samples.parquet") for part in parts])
    for name in ("embedding", "features"):
        np.testing.assert_allclose(
            np.stack(hours[name]), np.stack(samples[name]), rtol=1e-5, atol=1e-6
        )


def test_of_many_patients_a_share_is_predicted_at_hours(run, cohort, tmp_path):
    cuts = read_labels(cohort, "outcome").cuts()
    request = Request(run / "checkpoint", hours=(6.0, 24.0), hours_share=0.5)
    predictor = ShardPredictor(request, cuts)
    shard = cohort_shards(cohort, "train")[0]
    count = predictor({"shard": str(shard), "target": str(tmp_path)})
    rows = pd.read_parquet(tmp_path / "hours.parquet")
    assert 0 < len(rows) < 2 * count
    early, last = (set(rows[rows["hour"] == hour]["sample"]) for hour in (6, 24))
    assert early == last


def test_the_first_prediction_time_of_a_subject_has_the_hours(run, cohort, tmp_path):
    cuts = read_labels(cohort, "outcome").cuts()
    twice = {subject: [*times, times[0] + 3_600_000_000] for subject, times in cuts.items()}
    request = Request(run / "checkpoint", hours=(6.0, 24.0, 25.0))
    shards = cohort_shards(cohort, "held_out")
    (part, *_) = predicted(Part(shards, tmp_path / "a", request, twice))
    rows = pd.read_parquet(part / "hours.parquet")
    samples = pd.read_parquet(part / "samples.parquet")
    assert len(samples) == 2 * samples["subject_id"].nunique()
    assert set(rows["hour"]) == {6.0, 24.0}
    assert (rows["sample"] % 2 == 0).all()
    assert len(rows) == len(samples)
    whole = np.stack(samples["embedding"][rows[rows["hour"] == 24]["sample"]])
    assert np.array_equal(np.stack(rows[rows["hour"] == 24]["embedding"]), whole)


@pytest.mark.parametrize(
    ("hours_fit", "own", "calls"), [(False, True, 2), (True, True, 1), (True, False, 2)]
)
def test_a_model_with_its_own_output_needs_no_embedding_at_an_hour(
    run, cohort, tmp_path, hours_fit, own, calls
):
    cuts = read_labels(cohort, "outcome").cuts()
    request = Request(
        run / "checkpoint",
        hours=(6.0, 24.0),
        hours_fit=hours_fit,
        features=FeatureCodes((0, 1)),
        own_output=own,
    )
    predictor = ShardPredictor(request, cuts)
    loaded = load(run)
    asked = []

    def predict(model, batch):
        asked.append(1)
        found = loaded.family.predict(model, batch)
        return {**found, "logit": found["embedding"][:, 0]}

    trained = dataclasses.replace(loaded.family, predict=predict)
    predictor.model.__dict__["loaded"] = dataclasses.replace(loaded, family=trained)
    shard = cohort_shards(cohort, "held_out")[0]
    predictor({"shard": str(shard), "target": str(tmp_path)})
    rows = pd.read_parquet(tmp_path / "hours.parquet")
    # An output for another task than the one asked for is no answer: then a probe is fitted.
    assert ("logit" in rows) == (own and not hours_fit)
    assert ("embedding" in rows) == (not own)
    assert {"sample", "hour", "features"} <= set(rows)
    # Hour 24 is the task's own: it is copied, and a part that is fitted on asks for nothing.
    assert len(asked) == calls


def test_splits_share_a_model_and_none_of_their_shards_is_predicted_twice(
    run, cohort, tmp_path, monkeypatch
):
    loads, begun = [], []
    real_load, real_call = checkpoint.load, ShardPredictor.__call__
    monkeypatch.setattr(checkpoint, "load", lambda path: loads.append(path) or real_load(path))

    def call(self, job):
        begun.append(job["shard"])
        if len(begun) == 3:
            raise RunError("lost")
        return real_call(self, job)

    monkeypatch.setattr(ShardPredictor, "__call__", call)
    request = Request(run / "checkpoint", untrained=True)
    parts = [
        Part(cohort_shards(cohort, split), tmp_path / split, request)
        for split in ("train", "held_out")
    ]
    with pytest.raises(RunError, match="lost"):
        predict_parts(parts, resume=True, on_ray=False)
    predict_parts(parts, resume=True, on_ray=False)
    assert len(loads) == 2  # one a call, in the place of one process
    shards = [str(shard) for part in parts for shard in part.shards]
    assert begun == [*shards[:3], *shards[2:]]
    (parts[1].folders[0] / "samples.parquet").unlink()  # not yet copied to the store, say
    (parts[1].folders[0] / "hours.parquet").touch()  # of a process that was killed
    predict_parts(parts, resume=True, on_ray=False)
    assert begun[-1] == str(parts[1].shards[0])
    assert not (parts[1].folders[0] / "hours.parquet").exists()
    for part in parts:
        assert all((folder / "samples.parquet").is_file() for folder in part.folders)


def test_without_a_name_of_all_that_decides_nothing_is_taken_over(run, cohort, tmp_path):
    shards = cohort_shards(cohort, "held_out")
    cuts = read_labels(cohort, "outcome").cuts()
    asked, other = (
        Part(shards, tmp_path / "same", Request(run / "checkpoint"), times)
        for times in (cuts, {who: [at[0] - 3_600_000_000] for who, at in cuts.items()})
    )
    found = []
    for part in (asked, other):
        predict_parts([part], on_ray=False)
        samples = [pd.read_parquet(folder / "samples.parquet") for folder in part.folders]
        found.append(pd.concat(samples)["prediction_time"])
    assert (found[0] != found[1]).all()


def test_a_part_that_another_process_removed_is_told(run, cohort, tmp_path, monkeypatch):
    part = Part(cohort_shards(cohort, "held_out"), tmp_path / "a", Request(run / "checkpoint"))
    real = inference_parts.run_shards

    def run_shards(*args, **options):
        real(*args, **options)
        shutil.rmtree(part.folders[0])

    monkeypatch.setattr(inference_parts, "run_shards", run_shards)
    with pytest.raises(RunError, match="00000: removed by another process; run the same"):
        predict_parts([part], on_ray=False)


def test_subgroups_are_told_by_codes_that_no_model_knows(run, cohort, tmp_path):
    request = Request(run / "checkpoint", subgroups={"unit": Subgroup(groups={"A": ("Unit=1",)})})
    shard = cohort_shards(cohort, "held_out")[0]
    table = pd.read_parquet(shard)
    first = int(table["subject_id"].iloc[0])
    row = {"subject_id": first, "time": pd.NaT, "code": "Unit", "numeric_value": 1.0}
    table = pd.concat([pd.DataFrame([row]), table])
    path = tmp_path / "0.parquet"
    pq.write_table(
        pa.Table.from_pandas(table, schema=pq.read_schema(shard), preserve_index=False), path
    )
    cuts = read_labels(cohort, "outcome").cuts()
    (part,) = predicted(Part([path], tmp_path / "a", request, cuts))
    samples = pd.read_parquet(part / "samples.parquet").set_index("subject_id")["subgroup/unit"]
    assert samples[first] == "A"
    assert samples.drop(first).isna().all()


def test_embed_gives_one_row_a_patient(run, cohort, cluster, tmp_path):
    rows = embed(run, cohort, tmp_path / "out" / "embeddings.parquet")
    table = pd.read_parquet(tmp_path / "out" / "embeddings.parquet")
    assert rows == len(table) == table["subject_id"].nunique() == 120
    assert np.isfinite(np.stack(table["embedding"])).all()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["embeddings.parquet"]


def test_a_task_without_labels_is_named_with_those_there_are(run, tmp_path):
    with pytest.raises(InputError, match="no labels for task 'death'; it has outcome"):
        evaluate(run, task="death", output=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_checkpoint_loads_on_cpu_without_ray(run):
    code = (
        "import sys; from ehr_ray.train.checkpoint import load; "
        f"load({str(run)!r}); assert 'ray' not in sys.modules and 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_cohort_of_unknown_codes_is_refused(run, cluster, tmp_path):
    (tmp_path / "t.csv").write_text(
        "subject_id,time,code,numeric_value\n1,2020-01-01,ZZ1,8\n2,2020-01-01,ZZ2,9\n"
    )
    ingest("table", tmp_path / "t.csv", tmp_path / "zz", splits="all:held_out")
    with pytest.raises(InputError, match=r"the model knows 0\.0% of 2 events; 2 codes are new"):
        embed(run, tmp_path / "zz", tmp_path / "zz.parquet")
    with pytest.raises(InputError, match=r"knows 0\.0% of 2 events"):
        evaluate(run, cohort=tmp_path / "zz", task="none")
    assert not (tmp_path / "zz.parquet").exists()


def test_a_place_that_takes_no_embeddings_is_told_before_ray_starts(run, cohort, monkeypatch):
    def started(*_, **__):
        raise AssertionError("Ray was asked for")

    monkeypatch.setattr("ehr_ray.commands.embed.session", started)
    with pytest.raises(
        ResourcesUnavailableError, match=r"/sys/all\.parquet: .*, then run the same command"
    ):
        embed(run, cohort, "/sys/all.parquet")
