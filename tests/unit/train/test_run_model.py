"""What `ehr_ray.load` gives says of a table what `embed` and `evaluate` write of a cohort."""

import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import ehr_ray
from ehr_ray.commands.embed import embed
from ehr_ray.errors import InputError
from ehr_ray.evaluation.tasks.linear import fit_ridge
from ehr_ray.experiment import portable
from ehr_ray.registry import FAMILIES, get_family
from ehr_ray.train.checkpoint import save_checkpoint
from ehr_ray.train.predictor import Predictor
from ehr_ray.train.task_probe import TaskProbe, save_task_probe


@pytest.fixture(scope="module")
def events(synthetic_cohort):
    """All events of the cohort, in no order."""
    shards = sorted((synthetic_cohort / "data").rglob("*.parquet"))
    rows = pd.concat([pd.read_parquet(path) for path in shards])
    return rows.sample(frac=1, random_state=0)


@pytest.fixture(scope="module")
def model(evaluated_run):
    return ehr_ray.load(evaluated_run)


def test_embeddings_are_those_that_embed_writes(
    model, evaluated_run, events, synthetic_cohort, tmp_path
):
    embed(evaluated_run, synthetic_cohort, tmp_path / "all.parquet", on_ray=False)
    written = pd.read_parquet(tmp_path / "all.parquet").sort_values("subject_id")
    found = model.embed(events)
    assert list(found) == ["subject_id", "embedding"]
    assert found["subject_id"].tolist() == written["subject_id"].tolist()
    ours, theirs = np.stack(found["embedding"]), np.stack(written["embedding"])
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert ours.dtype == np.float32


def test_probabilities_at_prediction_times_are_those_that_evaluate_writes(
    model, evaluated_run, events
):
    written = pd.read_parquet(evaluated_run / "predictions" / "held_out.parquet")
    times = written[["subject_id", "prediction_time"]][::-1]
    found = model.predict(events, prediction_times=times)
    assert list(found) == ["subject_id", "prediction_time", "probability"]
    assert found["subject_id"].tolist() == times["subject_id"].tolist()
    assert (found["prediction_time"].to_numpy() == times["prediction_time"].to_numpy()).all()
    theirs = written["predicted_boolean_probability"].to_numpy()[::-1]
    np.testing.assert_allclose(found["probability"], theirs, rtol=1e-5)


def test_rows_before_all_events_of_a_subject_are_warned_of(model, evaluated_run, events):
    written = pd.read_parquet(evaluated_run / "predictions" / "held_out.parquet")
    times = written[["subject_id", "prediction_time"]].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(events, prediction_times=times)
    times.loc[:1, "prediction_time"] -= pd.Timedelta(days=3000)
    with pytest.warns(UserWarning, match=rf"2 of {len(times)} rows have no timed event") as told:
        found = model.predict(events, prediction_times=times)
    assert [warning.filename for warning in told] == [__file__]
    assert found["probability"].notna().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_a_table_as_it_reads_a_cohort(
    family, events, tiny_experiment, synthetic_vocabulary, synthetic_patients, tmp_path
):
    experiment, record = tiny_experiment(family), get_family(family)
    torch.manual_seed(0)
    network = record.build(experiment.model, synthetic_vocabulary).eval()
    save_checkpoint(tmp_path, network, portable(experiment), synthetic_vocabulary)
    patients = sorted(synthetic_patients["tuning"], key=lambda patient: patient.subject_id)
    ids = [patient.subject_id for patient in patients]
    # In the order of the cohort, which says what came first in a minute.
    ordered = events[events["subject_id"].isin(ids)].sort_index()
    found = ehr_ray.load(tmp_path).embed(ordered)
    predictor = Predictor(record, experiment.model, synthetic_vocabulary, network)
    (expected,) = predictor.over_patients(patients)
    assert found["subject_id"].tolist() == ids
    np.testing.assert_allclose(
        np.stack(found["embedding"]), expected["embedding"].numpy(), rtol=1e-4, atol=1e-5
    )


def test_nothing_after_a_prediction_time_is_read(model, events):
    start = events[events["code"] == "ADMISSION"].groupby("subject_id")["time"].min()
    times = (start + pd.Timedelta(hours=6)).rename("prediction_time").reset_index()
    plain = model.predict(events, prediction_times=times)
    changed = events.copy()
    late = changed["time"] > changed["subject_id"].map(start) + pd.Timedelta(hours=6)
    changed.loc[late, "numeric_value"] *= 10
    assert late.any()
    pd.testing.assert_frame_equal(model.predict(changed, prediction_times=times), plain)
    assert not np.allclose(
        model.predict(changed)["probability"], model.predict(events)["probability"]
    )


def test_an_arrow_table_gives_an_arrow_table(model, events):
    table = pa.Table.from_pandas(events, preserve_index=False)
    found = model.predict(table)
    assert isinstance(found, pa.Table)
    assert found.schema.names == ["subject_id", "probability"]
    pd.testing.assert_frame_equal(found.to_pandas(), model.predict(events))
    assert model.embed(table.slice(0, 0)).num_rows == 0
    assert model.predict(table.slice(0, 0)).num_rows == 0


def test_times_with_a_zone_and_a_frame_without_values_are_read(model, events):
    zoned = events.assign(time=events["time"].dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"))
    pd.testing.assert_frame_equal(model.embed(zoned), model.embed(events))
    with pytest.warns(UserWarning, match="no event has a numeric_value"):
        bare = model.embed(events.drop(columns="numeric_value"))
    with pytest.warns(UserWarning, match="no event has a numeric_value"):
        model.predict(events.assign(numeric_value=np.inf))
    assert len(bare) == 60
    assert np.isfinite(np.stack(bare["embedding"])).all()


def test_codes_the_model_does_not_know_are_told_with_their_share(model, events):
    half = events["code"].where(np.arange(len(events)) % 2 == 0, "unknown//code")
    with pytest.warns(
        UserWarning, match=r"the model knows \d+\.\d% of [\d,]+ events; 1 codes are new"
    ):
        assert len(model.embed(events.assign(code=half), min_known_events=0.4)) == 60
    unknown = events.assign(code="unknown//" + events["code"])
    for read in (model.embed, model.predict):
        with pytest.raises(
            InputError, match=r"the model knows 0\.\d% of .* min_known_events below"
        ):
            read(unknown)


def test_a_share_of_known_events_that_is_none_is_refused(model, events):
    with pytest.raises(InputError, match="min_known_events=2: not a share between 0 and 1"):
        model.embed(events, min_known_events=2)


def test_rows_are_read_in_any_order_but_of_two_values_at_one_time_the_later_counts(model, events):
    late = events.dropna(subset=["time", "numeric_value"]).sort_values("time").iloc[[-1]]
    mine = events[events["subject_id"].isin(late["subject_id"])]
    twice = [late.assign(numeric_value=value) for value in (1e3, -1e3)]
    one, other, last = (
        np.stack(model.embed(pd.concat([mine, *added]))["embedding"])
        for added in (twice, twice[::-1], twice[:1])
    )
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(other, last)


def test_a_subject_without_events_has_no_prediction(model, events):
    times = pd.DataFrame({"subject_id": [-1], "prediction_time": pd.to_datetime(["2020-01-01"])})
    with pytest.raises(InputError, match="1 of 1 rows are of subjects without events"):
        model.predict(events, prediction_times=times)


def test_a_task_that_was_not_evaluated_is_named_with_those_there_are(model, events):
    with pytest.raises(InputError, match="no task 'death'; give task= one of outcome"):
        model.predict(events, task="death")


def test_a_run_without_a_task_or_probe_predicts_nothing(tiny_run, events):
    with pytest.raises(InputError, match=r"predicts no task: .* run `ehr-ray evaluate` on it"):
        ehr_ray.load(tiny_run).predict(events)


def test_the_only_probe_is_meant_without_a_name_and_answers_in_the_unit_of_its_labels(
    events, tiny_experiment, synthetic_vocabulary, tmp_path
):
    experiment = tiny_experiment("set_vae")
    torch.manual_seed(0)
    network = get_family("set_vae").build(experiment.model, synthetic_vocabulary).eval()
    save_checkpoint(tmp_path, network, portable(experiment), synthetic_vocabulary)
    model = ehr_ray.load(tmp_path)
    x = np.stack(model.embed(events)["embedding"])
    fitted = fit_ridge(x, 40 + 6 * x[:, 0], x, 40 + 6 * x[:, 0])
    probe = TaskProbe("stay", "embedding", "", fitted.model, "regression")
    save_task_probe(tmp_path, probe, model.weights)
    assert model.answers() == model.answers("stay") == ("value",)
    told = model.predict(events)
    assert list(told) == ["subject_id", "value"]
    np.testing.assert_allclose(told["value"], fitted.model.predict(x), rtol=1e-4)
    with pytest.raises(InputError, match="no task 'other'; give task= one of stay"):
        model.predict(events, task="other")
