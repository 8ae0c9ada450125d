"""Training and evaluation, in this process, of labels that are numbers or classes."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ehr_ray
from ehr_ray.commands.evaluate.command import evaluate
from ehr_ray.commands.export.command import export
from ehr_ray.commands.train.command import train
from ehr_ray.errors import ConfigError, InputError
from ehr_ray.events.labels import read_labels
from ehr_ray.events.patients import splits_of

CHANGES = {
    "cluster.num_workers": 0,
    "tracking.experiment": None,
    "train.max_epochs": 1,
    "evaluation.bootstrap": 20,
    "evaluation.hours": [],
}
CLASSES = ["short", "long", "none"]


@pytest.fixture(scope="module")
def cohort(synthetic_cohort, synthetic_patients, tmp_path_factory):
    """The synthetic cohort with labels that a patient's number of events decides."""
    path = tmp_path_factory.mktemp("kinds") / "cohort"
    shutil.copytree(synthetic_cohort, path)
    outcome = read_labels(path, "outcome")
    patients = {p.subject_id: p for split in synthetic_patients.values() for p in split}
    size = np.array(
        [
            len(patients[int(subject)].until(int(time)).time)
            for subject, time in zip(outcome.subject_id, outcome.prediction_time, strict=True)
        ]
    )
    keys = {
        "subject_id": pa.array(outcome.subject_id),
        "prediction_time": pa.array(outcome.prediction_time).cast(pa.timestamp("us")),
    }
    days = (100 + 10 * (size - size.mean()) / size.std()).tolist()
    days[0] = None
    bounds = np.quantile(size, [0.4, 0.7])
    names = np.array(["none", "short", "long"])[np.searchsorted(bounds, size)].tolist()
    for task, column, values in (
        ("stay", "float_value", pa.array(days, pa.float32())),
        ("triage", "categorical_value", pa.array(names)),
    ):
        pq.write_table(pa.table({**keys, column: values}), path / "labels" / f"{task}.parquet")
    return path


@pytest.fixture(scope="module")
def trained(cohort, tiny_experiment, tmp_path_factory):
    """A run of a task section: trained(kind=..., ...)."""
    output = tmp_path_factory.mktemp("runs")

    def run(**task):
        name = "-".join([task["name"], task.get("kind", ""), *task.get("classes", ())])
        changes = {"data.cohort": str(cohort), "output": str(output), "name": name}
        changes["evaluation.baselines"] = task["name"] == "stay"
        return train(tiny_experiment("set_vae", {**CHANGES, **changes, "task": task})).run

    return run


@pytest.fixture(scope="module")
def regression(trained):
    return trained(name="stay", kind="regression", hidden=8, statistics={"windows": [48]})


@pytest.fixture(scope="module")
def classes(trained):
    return trained(name="triage", kind="classes", classes=CLASSES, class_weight="balanced")


@pytest.fixture(scope="module")
def told_of_numbers(regression):
    """The lines that an evaluation says; its files lie in the run."""
    return evaluate(regression, on_ray=False)


@pytest.fixture(scope="module")
def told_of_classes(classes):
    return evaluate(classes, on_ray=False, pages=False)


def test_a_regression_is_evaluated_in_the_unit_of_its_labels(regression, told_of_numbers):
    folder, lines = regression, told_of_numbers
    metrics = json.loads((folder / "metrics.json").read_text())
    told = pq.read_table(folder / "predictions" / "held_out.parquet").to_pandas()
    error = np.abs(told["predicted_float_value"] - told["float_value"]).mean()
    assert metrics["held_out/mae"] == pytest.approx(error)
    assert error < 30  # labels have mean 100: an answer in standard deviations would be off by it
    mean = pq.read_table(folder / "predictions" / "baselines" / "mean" / "held_out.parquet")
    assert mean["predicted_float_value"].to_pylist() == pytest.approx([100] * len(told), abs=5)
    for name in ("probe", "gbm", "gbm_rich", "ridge", "ridge_rich", "untrained", "mean"):
        key = f"baseline/{name}/held_out/mae"
        assert metrics[f"{key}_difference"] == pytest.approx(error - metrics[key], abs=1e-6)
    assert {f"held_out/{name}" for name in ("rmse", "r2", "spearman", "n")} < set(metrics)
    first = next(line for line in lines if line.startswith("the model "))
    lost = [k for k, v in metrics.items() if k.endswith("held_out/mae_difference/low") and v > 0]
    assert first.startswith("the model loses to") == bool(lost)
    page = (folder / "report.html").read_text()
    assert "Ridge regression on rich features" in page
    assert "MAE" in (folder / "results.md").read_text()
    assert "AUPRC" not in (folder / "results.md").read_text()


@pytest.mark.usefixtures("told_of_classes")
def test_classes_are_evaluated_by_name(classes, cohort):
    metrics = json.loads((classes / "metrics.json").read_text())
    told = pq.read_table(classes / "predictions" / "held_out.parquet").to_pandas()
    given = told[[f"probability/{name}" for name in CLASSES]].to_numpy()
    np.testing.assert_allclose(given.sum(1), 1)
    assert told["predicted_categorical_value"].tolist() == [CLASSES[k] for k in given.argmax(1)]
    right = (told["predicted_categorical_value"] == told["categorical_value"]).mean()
    assert metrics["held_out/accuracy"] == pytest.approx(right)
    labels = read_labels(cohort, "triage")
    named = dict(zip(labels.subject_id.tolist(), labels.value.tolist(), strict=True))
    for subject, name in zip(told["subject_id"], told["categorical_value"], strict=True):
        assert labels.classes[named[subject]] == name


def test_a_run_of_another_task_is_probed_and_nothing_binary_is_asked(regression, tmp_path, cohort):
    run = tmp_path / "run"
    shutil.copytree(regression, run)
    evaluate(run, task="triage", on_ray=False, pages=False)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["held_out/log_loss"] > 0
    assert "probe/chosen/c" in metrics
    for name in ("gbm", "gbm_rich", "logistic", "logistic_rich", "untrained", "majority"):
        assert f"baseline/{name}/held_out/log_loss_difference" in metrics
    told = pq.read_table(run / "predictions" / "held_out.parquet")
    names = [name for name in told.column_names if name.startswith("probability/")]
    events = pa.concat_tables([pq.read_table(p) for p in splits_of(cohort)["held_out"]])
    keys = told.select(["subject_id", "prediction_time"])
    model = ehr_ray.load(run)
    found = model.predict(events, task="triage", prediction_times=keys)
    assert model.answers("triage") == tuple(names)
    for name in names:
        np.testing.assert_allclose(found[name], told[name], rtol=1e-4, atol=1e-5)
    assert model.answers() == ("value",)
    export(run, tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "the probability of each class of triage (long, none, short), by a probe" in card
    with pytest.raises(InputError, match=r"--explain 2: reads binary labels, .* regression"):
        evaluate(regression, explained=2, output=tmp_path, on_ray=False)


def test_labels_of_another_kind_or_class_end_a_training_with_what_to_write(trained):
    with pytest.raises(InputError, match=r"kind regression, not binary; train with task\.kind=reg"):
        trained(name="stay")
    with pytest.raises(InputError, match=r"'task\.classes=\[\"long\", \"none\", \"short\"\]'"):
        trained(name="triage")
    with pytest.raises(InputError, match=r"label 'none' is none of task\.classes"):
        trained(name="triage", kind="classes", classes=CLASSES[:2])


@pytest.mark.usefixtures("told_of_numbers", "told_of_classes")
def test_a_loaded_model_predicts_what_evaluate_wrote(regression, classes, tmp_path, cohort):
    events = pa.concat_tables([pq.read_table(p) for p in splits_of(cohort)["held_out"]])
    with pytest.raises(InputError, match="no task 'other'; give task= one of stay"):
        ehr_ray.load(regression).predict(events, task="other")
    for run, task in ((regression, "stay"), (classes, "triage")):
        export(run, tmp_path / f"{task}_exported")
        told = pq.read_table(run / "predictions" / "held_out.parquet")
        keys = told.select(["subject_id", "prediction_time"])
        found = ehr_ray.load(tmp_path / f"{task}_exported").predict(events, prediction_times=keys)
        pairs = {"value": "predicted_float_value"}
        if task == "triage":
            pairs = {name: name for name in told.column_names if name.startswith("probability/")}
        card = (tmp_path / f"{task}_exported" / "README.md").read_text()
        assert f"subject_id, {', '.join(pairs)}" in card
        assert "probability of" not in card if task == "stay" else "each class of triage" in card
        assert found.column_names == ["subject_id", "prediction_time", *pairs]
        for ours, theirs in pairs.items():
            np.testing.assert_allclose(found[ours], told[theirs], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"kind": "regression", "loss": "focal"}, "loss focal does not fit kind regression"),
        ({"kind": "regression", "class_weight": "balanced"}, "class_weight balanced does not fit"),
        ({"kind": "regression", "select": "auroc"}, "select auroc does not fit kind regression"),
        ({"select": "mae"}, "select mae does not fit kind binary; use auroc"),
        ({"kind": "classes"}, "give task.classes"),
        ({"classes": ["a", "b"]}, "are of task.kind=classes, not binary"),
    ],
)
def test_what_does_not_fit_the_kind_is_refused_by_name(tiny_experiment, task, said):
    with pytest.raises(ConfigError, match=said):
        tiny_experiment("set_vae", {"task": {"name": "x", **task}})
