from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from ehr_ray.evaluation.suite import SplitPredictions, SuiteInput
from ehr_ray.families.jepa.evaluation import AHEAD, HEADING, drift_errors, suite, value_errors


def lists(values):
    return pa.array(list(values.astype(np.float32)), pa.list_(pa.float32()))


def part(learned, patients=100, width=8, shared=0.0, **columns):
    """Targets are a patient's own vector; `learned` is the share of it that is predicted."""
    rng = np.random.default_rng(0)
    sample = np.arange(patients)
    own = rng.normal(size=(patients, width)) + shared
    targets = {
        "sample": sample,
        "position": rng.integers(0, 3, patients),
        "target": lists(own),
        "predicted": lists(shared + learned * (own - shared)),
        "shuffled": lists(shared + learned * np.roll(own - shared, 1, 0)),
    }
    value = rng.normal(size=patients)
    cells = {
        "sample": sample,
        "code": sample % 4,
        "value": value,
        "estimate": 0.9 * value,
        "last": value + 1,
    }
    samples = pa.table({"subject_id": sample, **columns})
    return SplitPredictions(samples, {"targets": pa.table(targets), "cells": pa.table(cells)})


@pytest.fixture
def run(tmp_path):
    def measure(judged, scaling="robust", latent_loss="smooth_l1"):
        return suite(
            SuiteInput(
                split="held_out",
                judged=judged,
                fit={},
                model=SimpleNamespace(latent_loss=latent_loss, rows="hours"),
                vocabulary=SimpleNamespace(scaling=scaling),
                target=tmp_path,
            )
        )

    return measure


def test_the_table_and_the_line_state_the_scale(run):
    for scaling, centre in {"robust": "train median", "standard": "train mean"}.items():
        found = run(part(learned=0.9), scaling)
        assert found.sections[HEADING].rows[-2][0].endswith(centre)
        assert f"of the {centre}" in found.lines[1]
        assert centre in found.sections[HEADING].caption


def test_a_model_that_learned_is_said_to_have(run):
    found = run(part(learned=0.9))
    assert found.metrics["held_out/prediction/skill"] > 0.9
    assert found.metrics["held_out/prediction/collapsed"] == 0
    assert found.metrics["held_out/prediction/learned"] == 1
    assert found.lines[0].startswith("prediction: learned: skill +0.9")
    assert found.sections[HEADING].rows[0][0].startswith("skill")


def test_states_that_were_contrasted_are_measured_so_and_the_drift_is_said_to_be_none(run):
    judged = part(learned=0.9)
    contrasted = run(judged, latent_loss="infonce")
    assert contrasted.metrics["held_out/prediction/learned"] == 1
    assert "nats" in contrasted.sections[HEADING].caption
    assert [line for line in contrasted.lines if "is not measured with model.latent_loss" in line]
    assert "nats" not in run(judged).sections[HEADING].caption


def test_a_collapsed_run_says_so_in_one_line(run):
    found = run(part(learned=0.0, shared=20.0))
    assert found.metrics["held_out/prediction/collapsed"] == 1
    assert [line for line in found.lines if "collapsed" in line] == [found.lines[0]]
    assert "collapsed" in found.sections[HEADING].caption
    assert run(part(learned=0.0)).lines[0].startswith("prediction: not learned: skill")


def test_hidden_values_stand_beside_guesses_that_need_no_model(run):
    judged = part(learned=0.5)
    errors = value_errors(judged.tables["cells"])
    assert errors["value_estimate"] == pytest.approx(0.01 * errors["value_median"])
    assert errors["value_last"] == pytest.approx(1)
    assert "of the last value before" in run(judged).lines[1]
    assert value_errors(judged.tables["cells"].slice(0, 0)) == {}


def test_a_model_trained_for_a_task_and_one_without_targets_are_left_alone(run):
    for output in ("logit", "target_value", "class_logits"):
        assert run(part(learned=0.5, **{output: np.zeros(100)})).lines == ()
    assert run(SplitPredictions(pa.table({"subject_id": [1]}), {})).lines == ()
    assert "nothing is predicted" in run(part(learned=0.5, patients=0)).lines[0]


def test_predictions_ahead_are_held_against_the_state_that_was_seen_last(run):
    """Half the error at 6 hours, twice as much at 48; a run without such entries has no table."""
    lead = np.repeat([6, 48], 50)
    last = np.linspace(1, 2, 100)
    entries = pa.table(
        {
            "sample": np.tile(np.arange(50), 2),
            "lead": lead,
            "predicted": np.where(lead == 6, last / 2, last * 2),
            "last": last,
        }
    )
    judged = part(learned=0.9)
    assert AHEAD not in run(judged).sections
    judged.tables["drift"] = entries
    found = run(judged)
    table = found.sections[AHEAD]
    assert [row[:2] for row in table.rows] == [("6 h", "50"), ("48 h", "50")]
    assert found.metrics["held_out/prediction/drift/6h/over_last"] == pytest.approx(0.5)
    assert found.metrics["held_out/prediction/drift/48h/over_last/low"] == pytest.approx(2.0)
    assert found.metrics["held_out/prediction/drift/6h/last"] == pytest.approx(last[:50].mean())
    metrics, _ = drift_errors(entries, entries["sample"].to_numpy(), 0, 0)
    assert np.isnan(metrics["drift/6h/last/high"])


def test_a_patient_of_several_prediction_times_is_drawn_with_all_of_them():
    error = np.repeat(np.linspace(1, 3, 20), 5)
    entries = pa.table({"lead": np.full(100, 6), "predicted": error, "last": np.ones(100)})
    width = {}
    for name, subject in (("own", np.arange(100)), ("shared", np.repeat(np.arange(20), 5))):
        metrics, table = drift_errors(entries, subject, 0, 200)
        width[name] = metrics["drift/6h/over_last/high"] - metrics["drift/6h/over_last/low"]
        assert table.rows[0][1] == str(len(np.unique(subject)))
    assert width["shared"] > 1.5 * width["own"]
