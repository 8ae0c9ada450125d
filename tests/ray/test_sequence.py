"""SeqSetVAE-PoE from a SetVAE run to a fine-tuned model and its alarms, by what is left on disk."""

import json

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from ehr_ray.commands.evaluate.command import evaluate
from ehr_ray.commands.ingest import ingest
from ehr_ray.commands.train.command import train
from ehr_ray.train import checkpoint

pytestmark = pytest.mark.ray
# What is looked at here is the model's own; test_inference.py has the baselines beside one.
WITHOUT_BASELINES = {"evaluation.baselines": "false", "evaluation.hours": "[]"}


def weights(run):
    return load_file(sorted((run / "state").glob("[0-9]*"))[-1] / "model.safetensors")


@pytest.fixture(scope="module")
def sets(cluster, make):
    return train(make("set_vae", name="sets", **{"cluster.num_workers": 0})).run


@pytest.fixture(scope="module")
def sequence(sets, make):
    changes = {"name": "sequence", "init_from": sets, "cluster.num_workers": 0}
    return train(make("seqset_poe", **changes, **WITHOUT_BASELINES)).run


@pytest.fixture(scope="module")
def tuned(sequence, make):
    changes = {"name": "tuned", "init_from": sequence, "cluster.num_workers": 0}
    return train(make("seqset_finetune", **changes, **WITHOUT_BASELINES)).run


def test_a_stopped_run_goes_on_to_the_weights_of_a_whole_one(sets, make):
    common = {"init_from": sets, "cluster.num_workers": 0, "train.report_steps": 2}
    whole = make("seqset_poe", name="whole", **common, **{"train.max_epochs": 2})
    part = make("seqset_poe", name="part", **common, **{"train.max_epochs": 2})

    class StopError(Exception):
        pass

    plain = checkpoint.save_state

    def stop(run, *state):
        plain(run, *state)
        if checkpoint.saved_progress(run).step >= 4:
            raise StopError

    train(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ehr_ray.train.report.save_state", stop)
        with pytest.raises(StopError):
            train(part)
    assert checkpoint.saved_progress(part.directory).step == 4
    train(part)
    a, b = weights(whole.directory), weights(part.directory)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_fine_tuning_starts_from_the_sequence_and_chooses_by_auroc(tuned):
    history = pd.read_parquet(tuned / "history.parquet")
    assert {"train/task", "val/task", "val/auroc", "val/auprc"} <= set(history)
    names = weights(tuned).keys()
    assert any(name.startswith("base.prior.") for name in names)
    assert any(name.startswith("base.sets.") for name in names)
    assert any(name.startswith("heads.1.") for name in names)


def test_alarms_and_the_task_are_measured_on_the_runs_cohort_and_on_another(
    sequence, tuned, tmp_path
):
    evaluate(sequence)
    own = json.loads((sequence / "metrics.json").read_text())
    for score in ("nelbo", "kl"):
        for kind in ("resampled", "shifted", "swapped"):
            at = f"held_out/anomaly/{score}/{kind}/auroc"
            assert own[f"{at}/low"] <= own[at] <= own[f"{at}/high"]
        assert 0 <= own[f"held_out/anomaly/{score}/alarm_rate_p95"] < 0.5
    alarms = pq.read_table(sequence / "anomalies" / "held_out.parquet")
    assert {"subject_id", "set", "nelbo", "kl", "alarm_nelbo_p99"} <= set(alarms.column_names)
    other = tmp_path / "other"
    ingest(
        "synthetic", None, other, options={"patients": 50, "data_seed": 9}, splits="all:held_out"
    )
    evaluate(tuned, cohort=other, output=tmp_path / "found")
    there = json.loads((tmp_path / "found" / "metrics.json").read_text())
    auroc = [key for key in there if key.startswith("held_out/") and key.endswith("auroc")]
    assert auroc
    assert all(0 <= there[key] <= 1 for key in auroc)
    limits = [key for key in own if key.startswith("anomaly/")]
    assert limits
    evaluate(sequence, cohort=other, output=tmp_path / "alarms")
    moved = json.loads((tmp_path / "alarms" / "metrics.json").read_text())
    for key in limits:  # thresholds stay those of the run's own tuning
        assert moved[key] == pytest.approx(own[key], rel=1e-4)
