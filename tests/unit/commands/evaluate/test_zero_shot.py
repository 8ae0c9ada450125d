"""Futures drawn in this process; a shard is drawn for on Ray by the same function."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.evaluate.command import evaluate
from ehr_ray.commands.evaluate.report_content import Subject
from ehr_ray.commands.evaluate.zero_shot import check_zero_shot
from ehr_ray.commands.train.command import train
from ehr_ray.errors import InputError
from ehr_ray.events.patients import cohort_shards
from ehr_ray.events.zero_shot import ZeroShot
from ehr_ray.registry import get_family
from ehr_ray.runtime.inference.shards import Request, ShardPredictor
from ehr_ray.runtime.inference.trajectories import ShardTrajectories, trajectories
from ehr_ray.train import checkpoint

ASKED = ZeroShot(code="Lactate", hours=1.5, from_hour=12, draws=6)
CHANGES = {
    "cluster.num_workers": 0,
    "tracking.experiment": None,
    "train.max_steps": 1,
    "evaluation.baselines": False,
    "evaluation.bootstrap": 10,
    "evaluation.hours": [],
}
TIMED = {"model.values": "merged", "model.gaps": "merged", "model.next_time_weight": 0.1}


@pytest.fixture(scope="module")
def decoder(tiny_experiment, tmp_path_factory):
    output = str(tmp_path_factory.mktemp("runs"))
    changes = {**CHANGES, "output": output, **TIMED}
    return train(tiny_experiment("event_transformer", changes)).run


@pytest.fixture(scope="module")
def told(decoder, tmp_path_factory, no_ray_starts):
    folder = tmp_path_factory.mktemp("told")
    with no_ray_starts():
        return folder, evaluate(decoder, output=folder, task="none", asked=ASKED, on_ray=False)


def probabilities(folder):
    return pq.read_table(folder / "zero_shot" / "held_out.parquet").to_pandas()


def test_each_prediction_has_the_share_of_its_futures_and_what_happened(
    told, decoder, synthetic_patients, synthetic_vocabulary
):
    folder, lines = told
    table = probabilities(folder).set_index("subject_id")
    (code,) = np.flatnonzero(np.array(synthetic_vocabulary.codes) == "Lactate")
    answers = {}
    for patient in synthetic_patients["held_out"]:
        at = 12 * 60
        later = (patient.minute > at) & (patient.minute <= at + 90)
        happened = bool((patient.code[later] == code).any())
        if happened or patient.minute.max() >= at + 90:
            answers[patient.subject_id] = happened
    assert table["happened"].to_dict() == answers
    assert (table["probability"] * 6 == (table["probability"] * 6).round()).all()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["held_out/zero_shot/n"] == len(answers)
    assert metrics["held_out/zero_shot/draws"] == 6
    assert "baseline/probe/held_out/zero_shot/brier" in metrics
    assert "baseline/gbm/held_out/zero_shot/brier" not in metrics
    assert any(line.startswith("zero-shot, Lactate within 1.5 h") for line in lines)
    assert "Zero-shot: Lactate within 1.5 hours" in (folder / "report.html").read_text()
    assert not list((decoder / ".parts").glob("mapped-*"))


def with_other_futures(cohort, folder):
    """The cohort, where all events of held_out after the prediction have another code."""
    other = folder / cohort.name
    shutil.copytree(cohort, other)
    for shard in cohort_shards(other, "held_out"):
        table = pq.read_table(shard).to_pandas()
        first = table.groupby("subject_id")["time"].transform("min")
        table.loc[table["time"] > first + np.timedelta64(12, "h"), "code"] = "Lactate"
        schema = pq.read_schema(shard)
        pq.write_table(pa.Table.from_pandas(table, schema=schema, preserve_index=False), shard)
    return other


def test_nothing_after_the_prediction_reaches_what_is_drawn_and_the_same_is_drawn_again(
    told, decoder, synthetic_cohort, tmp_path
):
    other = with_other_futures(synthetic_cohort, tmp_path)
    output = tmp_path / "out"
    evaluate(decoder, cohort=other, output=output, task="none", asked=ASKED, on_ray=False)
    before, after = probabilities(told[0]), probabilities(output)
    assert after["happened"].all()
    both = before.merge(after, on="subject_id")
    assert len(both) == len(before) > 2
    assert both["probability_x"].tolist() == both["probability_y"].tolist()
    assert both["probability_x"].nunique() > 1


def test_a_process_of_another_machine_draws_the_same(told, decoder, synthetic_cohort, tmp_path):
    """What is sent is the question: the model and its clock are made where it is drawn."""
    table = probabilities(told[0])
    times = table["prediction_time"].astype("int64") // (
        1000 if table["prediction_time"].dtype == "datetime64[ns]" else 1
    )
    cuts = {s: [int(t)] for s, t in zip(table["subject_id"], times, strict=True)}
    tuning = [str(path) for path in cohort_shards(synthetic_cohort, "tuning")]
    shards = ShardPredictor(Request(str(decoder / "checkpoint")))
    function = ShardTrajectories(shards, ASKED, cuts, tuning, 0)
    assert function.draw
    sent = pickle.loads(pickle.dumps(function))
    assert "draw" not in vars(sent)
    held_out = cohort_shards(synthetic_cohort, "held_out")
    found, seconds = trajectories(held_out, tmp_path, sent, on_ray=False, say=lambda _: None)
    assert found["occurred"].to_numpy() / 6 == pytest.approx(table["probability"].to_numpy())
    assert seconds > 0


def test_prediction_times_may_be_those_of_the_task(decoder, synthetic_cohort, tmp_path):
    asked = ZeroShot(code="Lactate", hours=1.5, draws=2)
    evaluate(decoder, output=tmp_path, task="outcome", asked=asked, on_ray=False, pages=False)
    labels = pq.read_table(synthetic_cohort / "labels" / "outcome.parquet").to_pandas()
    known = set(zip(labels["subject_id"], labels["prediction_time"], strict=True))
    table = probabilities(tmp_path)
    assert len(table)
    assert set(zip(table["subject_id"], table["prediction_time"], strict=True)) <= known


@pytest.mark.parametrize(
    ("asked", "task", "said"),
    [
        (ZeroShot(code="NOTHING", hours=1), "outcome", "--zero-shot NOTHING: no code that the run"),
        (ZeroShot(code="Lactate", hours=1), "none", "--zero-shot Lactate: give --from-hour HOURS"),
    ],
)
def test_a_question_that_the_run_cannot_answer_is_refused(decoder, tmp_path, asked, task, said):
    with pytest.raises(InputError, match=said):
        evaluate(decoder, task=task, output=tmp_path, asked=asked, on_ray=False)


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("set_vae", {}, "family set_vae draws no futures .*; give a run of event_transformer"),
        ("event_transformer", {"model.gaps": "none"}, "model.gaps=none without .* tells no time"),
        ("event_transformer", {"model.arch": "encoder"}, "model.arch=encoder tells no next event"),
        ("event_transformer", {"task": {"name": "outcome"}}, "run was trained for a task"),
    ],
)
def test_a_family_or_a_model_that_draws_nothing_is_named(
    decoder, tiny_experiment, synthetic_cohort, family, changes, said
):
    experiment = tiny_experiment(family, changes)
    loaded = replace(checkpoint.load(decoder), experiment=experiment, family=get_family(family))
    subject = Subject(Path("run"), loaded, synthetic_cohort, True, "held_out", None, Path("out"))
    with pytest.raises(InputError, match=said):
        check_zero_shot(ASKED, subject)
