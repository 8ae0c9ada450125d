"""The recipe for MEDS-DEV, by its commands as the benchmark fills them in, without Ray."""

import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ehr_ray.evaluation.report.write import PREDICTIONS
from ehr_ray.events.patients import cohort_shards
from ehr_ray.train import checkpoint

RECIPE = Path(__file__).parents[2] / "jobs" / "meds_dev"
COMMANDS = yaml.safe_load((RECIPE / "model.yaml").read_text())["commands"]


def give(kind, mode, **places):
    """Run a command of the recipe as MEDS-DEV formats it, in this process."""
    command = COMMANDS[kind][mode].format(model_dir=RECIPE, demo=True, **places)
    python, script, *arguments = shlex.split(command)
    assert python == "python"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(script, run_name="__main__")


@pytest.fixture(scope="module")
def given(synthetic_cohort, tmp_path_factory):
    """A dataset without labels of its own, and labels by shard: a second row a day before each."""
    folder = tmp_path_factory.mktemp("benchmark")
    dataset, labels = folder / "dataset", folder / "labels"
    dataset.mkdir()
    for name in ("data", "metadata"):
        (dataset / name).symlink_to(synthetic_cohort / name)
    table = pq.read_table(synthetic_cohort / "labels" / "outcome.parquet")
    time = table["prediction_time"].to_numpy()
    for part, times in enumerate((time, time - np.timedelta64(1, "D"))):
        at = table.column_names.index("prediction_time")
        path = labels / "mortality" / "in_icu" / f"shard{part}" / "rows.parquet"
        path.parent.mkdir(parents=True)
        kept = table.set_column(at, "prediction_time", pa.array(times, pa.timestamp("us")))
        pq.write_table(kept, path)
    return {"dataset_dir": dataset, "labels_dir": labels}


@pytest.fixture(scope="module")
def done(given, no_ray_starts, tmp_path_factory):
    """The folders of the three steps, in the order of the benchmark's `mode=full`."""
    outputs = [tmp_path_factory.mktemp(name) for name in ("unsupervised", "train", "predict")]
    first, second, third = map(str, outputs)
    with no_ray_starts():  # `demo` starts none
        give("unsupervised", "train", dataset_dir=given["dataset_dir"], output_dir=first)
        give("supervised", "train", **given, model_initialization_dir=first, output_dir=second)
        last = {"model_initialization_dir": second, "output_dir": third, "split": "held_out"}
        give("supervised", "predict", **given, **last)
    return outputs


def test_every_label_of_the_split_has_a_prediction_in_the_schema_of_the_benchmark(done, given):
    table = pq.read_table(done[2] / "predictions.parquet")
    assert table.schema.equals(PREDICTIONS)
    assert table["predicted_boolean_value"].null_count == 0
    asked = pa.concat_tables(pq.read_table(p) for p in given["labels_dir"].rglob("*.parquet"))
    events = [pq.read_table(p) for p in cohort_shards(given["dataset_dir"], "held_out")]
    subjects = set(pa.concat_tables(events)["subject_id"].to_pylist())
    names = ["subject_id", "prediction_time", "boolean_value"]
    wanted = {tuple(r.values()) for r in asked.select(names).to_pylist()}
    wanted = {row for row in wanted if row[0] in subjects}
    assert {tuple(r.values()) for r in table.select(names).to_pylist()} == wanted
    assert len(table) == len(wanted) > 0


def test_a_prediction_reads_what_was_known_at_its_time_alone(done):
    rows = pq.read_table(done[2] / "predictions.parquet").to_pylist()
    by_subject = {}
    for row in rows:
        found = by_subject.setdefault(row["subject_id"], {})
        found[row["prediction_time"]] = row["predicted_boolean_probability"]
    assert any(len(set(found.values())) == 2 for found in by_subject.values())


def test_the_model_of_the_task_starts_from_the_one_trained_without_labels(done):
    pretrained, finetuned = done[0] / "pretrain", done[1] / "finetune"
    assert checkpoint.load(finetuned).experiment.init_from == str(pretrained)
    assert checkpoint.load(pretrained).experiment.task is None


def test_a_folder_without_labels_is_told_in_one_line(done, given, tmp_path, capsys):
    empty = {**given, "labels_dir": tmp_path}
    with pytest.raises(SystemExit, match="2"):
        give(
            "supervised",
            "predict",
            **empty,
            model_initialization_dir=done[1],
            output_dir=tmp_path / "out",
            split="held_out",
        )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ehr_ray: --labels {tmp_path}: no Parquet file")


@pytest.mark.parametrize("word", ["yes", "1"])
def test_demo_is_true_or_false(word, capsys, monkeypatch):
    words = ["run.py", "pretrain", "--dataset", "a", "--output", "b", "--demo", word]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(RECIPE / "run.py"), run_name="__main__")
    assert caught.value.code == 2
    assert f"--demo: {word}: write True or False" in capsys.readouterr().err
