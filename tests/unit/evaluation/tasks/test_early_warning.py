from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ehr_ray.evaluation.report.tables import tidy_csv
from ehr_ray.evaluation.tasks import baselines, downstream, early_warning
from ehr_ray.evaluation.tasks.downstream import Split, fit_task
from ehr_ray.evaluation.tasks.early_warning import HourRows, early_warning_result, fit_hours
from ehr_ray.evaluation.tasks.trees import TreeSettings

SMALL = TreeSettings(0.1, 6, 0.5)


@pytest.fixture(autouse=True)
def small_trees(monkeypatch):
    def fit_small(*arrays, seed=0, **_):
        return baselines.fit_gbm(*arrays, seed=seed, grid=(SMALL,), num_seeds=1)

    monkeypatch.setattr(downstream, "fit_gbm", fit_small)
    monkeypatch.setattr(early_warning, "TREES_OF_AN_HOUR", SMALL)


def split(n, seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 6)).astype(np.float32)
    label = 2 * features[:, 0] + rng.normal(size=n) > 1
    return Split(
        np.arange(n),
        np.full(n, np.datetime64("2010-01-03", "us")),
        label,
        features @ MIX,
        None,
        features,
    )


MIX = np.random.default_rng(9).normal(size=(6, 4))


def hour(whole, noise, seed=5, rows=None):
    """The whole task's rows seen through noise: less is known early."""
    rows = np.arange(len(whole.label)) if rows is None else rows
    rng = np.random.default_rng(seed)
    features = whole.features[rows] + noise * rng.normal(size=whole.features[rows].shape)
    inputs = {"embedding": features @ MIX, "features": features.astype(np.float32)}
    if not noise:
        inputs["embedding"] = whole.embedding[rows]
    return HourRows(rows, whole.subject_id[rows], whole.label[rows], inputs)


@pytest.fixture(scope="module")
def splits():
    return {name: split(n, i) for i, (name, n) in enumerate(SIZES.items())}


SIZES = {"train": 400, "tuning": 150, "held_out": 200}


@pytest.fixture
def hours(splits):
    return {name: {6.0: hour(whole, 3.0), 48.0: hour(whole, 0.0)} for name, whole in splits.items()}


@pytest.fixture
def fitted(splits):
    return fit_task(splits["train"], splits["tuning"], baselines=("gbm", "logistic"))


def run(hours, fitted, splits, judged=None):
    found = fit_hours(hours["train"], hours["tuning"], fitted, splits)
    given = hours["held_out"] if judged is None else judged
    return early_warning_result(found, given, "held_out", num_bootstrap=40)


def test_every_hour_has_the_model_the_trees_and_logistic_regression(hours, fitted, splits):
    metrics = run(hours, fitted, splits).metrics
    for at in ("6", "48"):
        for prefix in ("", "baseline/gbm/", "baseline/logistic/"):
            for name in ("auroc", "auprc"):
                key = f"{prefix}held_out/hours/{at}/{name}"
                assert metrics[f"{key}/low"] <= metrics[key] <= metrics[f"{key}/high"]
        assert metrics[f"held_out/hours/{at}/n"] == 200
    assert metrics["held_out/hours/6/auroc"] < metrics["held_out/hours/48/auroc"]
    key = "held_out/hours/6/auroc"
    assert metrics[f"baseline/gbm/{key}_difference"] == pytest.approx(
        metrics[key] - metrics[f"baseline/gbm/{key}"]
    )


def test_the_hour_of_the_prediction_is_scored_by_what_the_whole_task_fitted(hours, fitted, splits):
    found = fit_hours(hours["train"], hours["tuning"], fitted, splits)
    early, last = found
    assert last.scorers["model"] is fitted.scorers["model"]
    assert last.scorers["logistic"] is fitted.scorers["logistic"]
    assert early.scorers["model"] is not fitted.scorers["model"]


def test_by_hour_an_ensemble_is_its_network_alone_and_is_named_so(hours, fitted, splits):
    """The network's rows are what they were, under its own name."""
    ensemble = replace(fitted, scorers={**fitted.scorers, "network": fitted.scorers["model"]})
    alone, found = run(hours, fitted, splits), run(hours, ensemble, splits)
    assert not any(key.startswith("held_out/hours") for key in found.metrics)
    for at in ("6", "48"):
        key = f"held_out/hours/{at}/auroc"
        assert found.metrics[f"baseline/network/{key}"] == alone.metrics[key]
        name = f"baseline/gbm/{key}_difference"
        assert found.metrics[name] == alone.metrics[name]
    table = found.sections["By hour"]
    assert table.columns[2] == "AUROC, its network alone"
    assert "the network alone" in table.caption
    assert "the network alone" not in alone.sections["By hour"].caption
    assert found.lines[0].startswith("early warning, AUROC of its network alone / trees: 6 h ")
    assert "held_out,hours/6,gbm,auroc" in tidy_csv(found.metrics)
    assert "network - gbm" in tidy_csv(found.metrics)
    assert "model - gbm" not in tidy_csv(found.metrics)


def test_an_hour_is_fitted_on_train_and_never_on_the_judged_rows(hours, fitted, splits):
    flipped = {h: replace(part, label=~part.label) for h, part in hours["held_out"].items()}
    first = run(hours, fitted, splits).metrics
    second = run(hours, fitted, splits, flipped).metrics
    for name in ("", "baseline/gbm/", "baseline/logistic/"):
        key = f"{name}held_out/hours/6/auroc"
        assert second[key] == pytest.approx(1 - first[key])


def test_hours_only_another_cohort_lacks_are_left_out(hours, fitted, splits):
    metrics = run(hours, fitted, splits, {6.0: hours["held_out"][6.0]}).metrics
    assert "held_out/hours/6/auroc" in metrics
    assert not any("/48/" in key for key in metrics)


def test_an_hour_with_one_class_only_is_left_out(hours, fitted, splits):
    part = hours["held_out"][6.0]
    dull = {6.0: replace(part, label=np.zeros(200, bool))}
    assert run(hours, fitted, splits, dull).metrics == {}
    train = replace(hours["train"][6.0], label=np.zeros(400, bool))
    found = fit_hours({6.0: train}, hours["tuning"], fitted, splits)
    assert found == []


def test_rows_that_left_before_the_hour_are_no_part_of_it(hours, fitted, splits):
    some = hour(splits["held_out"], 0.0, rows=np.arange(0, 200, 2))
    found = run(hours, fitted, splits, {48.0: some})
    assert found.metrics["held_out/hours/48/n"] == 100
    assert found.sections["By hour"].rows[0][1] == "100"


def test_a_model_trained_for_the_task_gives_its_own_output_calibrated_at_the_hour(hours, splits):
    own = {name: replace(s, logit=3.0 * s.features[:, 0] - 5.0) for name, s in splits.items()}
    fitted = fit_task(own["train"], own["tuning"], baselines=("gbm",))
    given = {}
    for name, parts in hours.items():
        given[name] = {}
        for at, part in parts.items():
            inputs = {"features": part.inputs["features"]}
            if name != "train":
                inputs["logit"] = 3.0 * part.inputs["features"][:, 0] - 5.0
            given[name][at] = replace(part, inputs=inputs)
    metrics = run(given, fitted, own).metrics
    part = given["held_out"][6.0]
    assert metrics["held_out/hours/6/auroc"] == pytest.approx(
        roc_auc_score(part.label, part.inputs["logit"])
    )


def test_without_features_the_model_stands_alone(hours, fitted, splits):
    bare = {
        name: {h: replace(p, inputs={"embedding": p.inputs["embedding"]}) for h, p in parts.items()}
        for name, parts in hours.items()
    }
    found = run(bare, fitted, splits)
    assert not any(key.startswith("baseline") for key in found.metrics)
    assert found.sections["By hour"].columns == (
        "Hour",
        "Patients",
        "AUROC, this model",
        "AUPRC, this model",
    )


def test_no_hours_give_nothing(fitted, splits):
    assert early_warning_result(fit_hours({}, {}, fitted, splits), {}, "held_out").metrics == {}


def test_the_figure_and_the_line_tell_of_every_hour(hours, fitted, splits):
    found = run(hours, fitted, splits)
    found.figures["early_warning"].canvas.draw()
    assert "6 h" in found.lines[0]
    assert "48 h" in found.lines[0]


def test_rows_given_three_times_are_no_more_certain(hours, fitted, splits):
    once = run(hours, fitted, splits).metrics
    judged = {
        h: HourRows(
            *(np.repeat(a, 3) for a in (rows.sample, rows.subject_id, rows.label)),
            {name: np.repeat(x, 3, axis=0) for name, x in rows.inputs.items()},
        )
        for h, rows in hours["held_out"].items()
    }
    again = run(hours, fitted, splits, judged).metrics
    for key in ("held_out/hours/6/auroc", "baseline/gbm/held_out/hours/6/auroc_difference"):
        for end in ("/low", "/high"):
            assert again[key + end] == pytest.approx(once[key + end])
