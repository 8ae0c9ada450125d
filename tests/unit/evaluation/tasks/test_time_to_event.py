import dataclasses
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from ehr_ray.evaluation.suite import SplitPredictions, SuiteInput
from ehr_ray.evaluation.tasks import time_to_event
from ehr_ray.evaluation.tasks.time_to_event import HEADING, suite
from ehr_ray.events.follow_up import FollowUp
from ehr_ray.events.patients import read_patients
from ehr_ray.events.vocabulary import QUANTILES, Vocabulary
from ehr_ray.families.jepa.config import JEPAConfig
from ehr_ray.families.jepa.data import collate, transform
from ehr_ray.families.jepa.model import JEPA
from ehr_ray.families.jepa.predict import hazards
from ehr_ray.storage import files

MICROSECONDS = 3_600_000_000
DAY = 24 * MICROSECONDS
PATIENTS = 120
HEAD = SimpleNamespace(time_to_event_codes=("RASH", "HR"), time_to_event_bins=(6.0, 24.0))
BASELINES = {"trees": "baseline/hazard_trees/held_out", "cox": "baseline/cox/held_out"}


@pytest.fixture(scope="module")
def vocabulary():
    codes = ("HR", "Lactate", "RASH")
    quantiles = np.stack([100 * np.array(QUANTILES), 10 * np.array(QUANTILES), np.full(7, np.nan)])
    return Vocabulary(codes, np.ones(3, np.int64), np.array([50.0, 5, 0]), np.ones(3), quantiles)


def events_of(subject, rng):
    """Two days of HR every hour; a rash soon after the first, of patients whose Lactate is high."""
    high = subject % 2
    rash = 24.5 + rng.exponential(3 if high else 40)
    found = [(hour, "HR", 80.0) for hour in range(49)] + [(0.5, "Lactate", 9.0 if high else 1.0)]
    return sorted([*found, *([(rash, "RASH", None)] if rash < 48 else [])])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    for first, split in enumerate(("train", "tuning", "held_out")):
        columns = {"subject_id": [], "time": [], "code": [], "numeric_value": []}
        for subject in range(1000 * first, 1000 * first + PATIENTS):
            for hour, code, value in events_of(subject, rng):
                row = (subject, round(hour * MICROSECONDS), code, value)
                for name, one in zip(columns, row, strict=True):
                    columns[name].append(one)
        columns["time"] = pa.array(columns["time"], pa.timestamp("us"))
        (folder / "data" / split).mkdir(parents=True)
        table = pa.table(
            columns | {"numeric_value": pa.array(columns["numeric_value"], pa.float32())}
        )
        files.write_parquet(table, folder / "data" / split / "0.parquet")
    return folder


def predictions(split, time, label=None, knows=True):
    """As inference gives them: hazards of the rash that know of the lactate, or do not."""
    first = 1000 * ("train", "tuning", "held_out").index(split)
    subject = np.arange(first, first + PATIENTS)
    rate = np.where(subject % 2, 1 / 3, 1 / 40) if knows else np.full(PATIENTS, 0.1)
    hazard = np.stack([np.repeat(rate[:, None], 3, 1), np.ones((PATIENTS, 3))], 2)
    table = {
        "sample": np.repeat(np.arange(PATIENTS), 2),
        "day": np.tile([0, 1], PATIENTS),
        "minute": np.tile([time / 6e7, 1440.0], PATIENTS),
        "hazard": pa.array([row.ravel() for row in hazard.repeat(2, 0)], pa.list_(pa.float32())),
    }
    times = pa.array(np.full(PATIENTS, time), pa.timestamp("us"))
    samples = pa.table({"subject_id": subject, "prediction_time": times})
    return SplitPredictions(samples, {"hazards": pa.table(table)}, label)


@pytest.fixture
def judge(cohort, vocabulary, tmp_path):
    def run(time=48 * MICROSECONDS, label=None, knows=True, **changes):
        fit = {split: predictions(split, time) for split in ("train", "tuning")}
        given = SuiteInput(
            split="held_out",
            judged=predictions("held_out", time, label, knows),
            fit=fit,
            model=HEAD,
            vocabulary=vocabulary,
            target=tmp_path,
            cohort=cohort,
            home=cohort,
            num_bootstrap=100,
        )
        return suite(dataclasses.replace(given, **changes))

    return run


def test_a_model_that_knows_is_right_and_so_are_the_baselines(judge):
    found = judge()
    metrics = found.metrics
    assert metrics["held_out/time_to_event/rows"] == PATIENTS
    for prefix in ("held_out", *BASELINES.values()):
        for measure in ("auroc_6h", "auroc_12h", "c_index"):
            key = f"{prefix}/time_to_event/RASH/{measure}"
            assert 0.6 < metrics[f"{key}/low"] < metrics[key] < metrics[f"{key}/high"]
    assert not any("/HR/" in key for key in metrics)  # it comes in the next hour, always
    assert {row[0] for row in found.sections[HEADING].rows} == {"RASH"}
    assert "end of the first 24 hours" in found.lines[0]


def test_a_model_that_knows_nothing_is_at_a_half_and_below_the_baselines(judge):
    metrics = judge(knows=False).metrics
    assert metrics["held_out/time_to_event/RASH/c_index"] == 0.5
    for name, prefix in BASELINES.items():
        key = f"held_out/time_to_event/RASH/c_index_less_{name}"
        assert metrics[f"{key}/high"] < 0
        assert metrics[key] == 0.5 - metrics[f"{prefix}/time_to_event/RASH/c_index"]


def test_prediction_times_are_judged_where_there_are_labels_and_something_follows(judge):
    label = np.arange(PATIENTS) % 2 == 0
    assert "the prediction times" in judge(time=DAY, label=label).lines[0]
    assert "first 24 hours" in judge(label=label).lines[0]  # nothing follows after two days


def test_without_baselines_or_enough_rows_or_a_head_there_is_less(judge):
    assert judge(baselines=False).sections[HEADING].columns == ("code", "measure", "this model")
    few = predictions("held_out", DAY)
    few = dataclasses.replace(
        few, samples=few.samples, tables={"hazards": few.tables["hazards"][:30]}
    )
    nothing = judge(judged=few)
    assert not nothing.metrics
    assert "nothing is judged" in nothing.lines[0]
    assert "model." not in nothing.lines[0]
    assert judge(judged=dataclasses.replace(few, tables={})).lines == ()


def test_a_limit_that_may_have_cut_the_first_day_off_is_named_where_nothing_is_judged(judge):
    cut = predictions("held_out", 48 * MICROSECONDS)
    table = cut.tables["hazards"].to_pandas()
    table = pa.Table.from_pandas(table[(table["day"] == 0) | (table["sample"] < 4)])
    cut = dataclasses.replace(cut, tables={"hazards": table})
    (line,) = judge(judged=cut, model=SimpleNamespace(**vars(HEAD), max_length=512)).lines
    assert f"nothing is judged; {PATIENTS - 4} of {PATIENTS} records" in line
    assert "cut by model.max_length=512" in line
    assert "model." not in judge(judged=cut).lines[0]


def test_baselines_learn_from_all_of_train_however_few_rows_are_judged(judge, monkeypatch):
    monkeypatch.setattr(time_to_event, "MOST_ROWS", PATIENTS // 2)
    found = judge()
    assert found.metrics["held_out/time_to_event/rows"] == PATIENTS // 2
    assert f"Fitted on {PATIENTS} rows of train" in found.sections[HEADING].caption
    monkeypatch.setattr(time_to_event, "FIT_ROWS", PATIENTS - 1)
    assert f"Fitted on {PATIENTS - 1} rows of train" in judge().sections[HEADING].caption


def test_a_rare_code_is_not_judged_because_records_end_before_the_horizon():
    """Of 20 in 1,000 with it and 20 who are followed that far, half of those known have it."""
    often = np.arange(1000) % 3 == 0
    hours = np.column_stack([np.where(often, 2.0, 5.0), np.full(1000, 5.0)])
    hours[:20, 1], hours[20:40] = 2.0, 12.0
    event = np.column_stack([often, np.arange(1000) < 20])
    event[20:40] = False
    rows = FollowUp((), np.zeros(1000), hours, event, np.zeros((1000, 0), np.float32))
    places = [question.place for question in time_to_event.choose_questions(rows, rows)]
    assert places[0] == 0
    assert 1 in places


def test_the_hazards_of_a_jepa_are_judged_in_the_same_way(judge, cohort, vocabulary):
    """Of one that is not trained: lactate alone tells patients apart, in whichever direction."""
    sizes = {"width": 16, "depth": 1, "heads": 2, "predictor_width": 8, "predictor_depth": 1}
    config = JEPAConfig(**sizes, time_to_event_weight=1.0, **vars(HEAD))
    torch.manual_seed(0)
    shard = cohort / "data" / "held_out" / "0.parquet"
    rows = [transform(patient, config, vocabulary) for patient in read_patients(shard, vocabulary)]
    found = hazards(JEPA(config, vocabulary).eval(), collate(rows, config))
    columns = {name: found[name].numpy() for name in ("patient", "day", "minute")}
    columns["hazard"] = pa.array(found["hazard"].tolist(), pa.list_(pa.float32()))
    table = pa.table(columns).rename_columns(["sample", "day", "minute", "hazard"])
    judged = dataclasses.replace(predictions("held_out", DAY), tables={"hazards": table})
    metrics = judge(judged=judged, model=config).metrics
    assert metrics["held_out/time_to_event/rows"] == PATIENTS
    assert abs(metrics["held_out/time_to_event/RASH/c_index"] - 0.5) > 0.15
