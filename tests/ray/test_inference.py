"""What evaluate and embed leave on disk, on the run's cohort and on another."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.patients import cohort_shards, read_patients
from ehr_ray.runtime.evaluation import evaluate
from ehr_ray.runtime.inference import embed
from ehr_ray.runtime.ingest import ingest
from ehr_ray.runtime.trainer import train
from ehr_ray.train.checkpoint import load

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def run(cluster, cohort, tmp_path_factory):
    from pathlib import Path

    from ehr_ray.config import load as load_config

    config = Path(__file__).parents[2] / "configs" / "tiny" / "set_vae.yaml"
    output = tmp_path_factory.mktemp("inference")
    changes = [f"data.cohort={cohort}", f"output={output}", "cluster.num_workers=0"]
    return train(load_config(config, changes)).run


@pytest.fixture(scope="module")
def evaluated(run):
    return evaluate(run)


def test_evaluate_writes_the_contract_into_the_run(run, cohort, evaluated):
    metrics = json.loads((run / "metrics.json").read_text())
    for name in ("auroc", "auprc", "min_se_ppv", "brier", "ece"):
        for key in (f"held_out/{name}", f"tuning/{name}", f"baseline/gbm/held_out/{name}"):
            assert metrics[f"{key}/low"] <= metrics[key] <= metrics[f"{key}/high"]
    for baseline in ("logistic", "pca", "untrained"):
        assert f"baseline/{baseline}/held_out/auroc" in metrics
    assert metrics["held_out/reconstruction/all/mse"] > 0
    predictions = pd.read_parquet(run / "predictions" / "held_out.parquet")
    assert list(predictions) == [
        "subject_id",
        "prediction_time",
        "boolean_value",
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


def test_a_score_does_not_depend_on_the_company(run, evaluated, cohort, tmp_path):
    """The held-out patients, as another cohort of their own, get the same probabilities."""
    import shutil

    other = tmp_path / "same"
    shutil.copytree(cohort, other)
    evaluate(run, cohort=other, output=tmp_path / "out")
    left = pd.read_parquet(run / "predictions" / "held_out.parquet")
    right = pd.read_parquet(tmp_path / "out" / "predictions" / "held_out.parquet")
    pd.testing.assert_frame_equal(left, right, rtol=1e-6)


def test_events_after_the_prediction_time_do_not_reach_the_model(run, cohort):
    loaded = load(run)
    labels = pd.read_parquet(cohort / "labels" / "outcome.parquet").set_index("subject_id")
    patient = next(read_patients(cohort_shards(cohort, "train")[0], loaded.vocabulary))
    cut = int(labels.loc[patient.subject_id, "prediction_time"].value // 1000)
    assert (patient.until(cut).time <= cut).all()
    assert (patient.until(cut - 3_600_000_000).time <= cut - 3_600_000_000).all()


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
    with pytest.raises(InputError, match="knows none of its 2 codes"):
        embed(run, tmp_path / "zz", tmp_path / "zz.parquet")
    with pytest.raises(InputError, match="knows none"):
        evaluate(run, cohort=tmp_path / "zz")
    assert not (tmp_path / "zz.parquet").exists()
