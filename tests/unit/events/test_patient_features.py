import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.events.features import STATISTICS, TREND_STATISTICS
from ehr_ray.events.manifest import FOLDER, Manifest, describe_shard, write_manifest
from ehr_ray.events.patient_features import (
    CONTEXT,
    MAX_CODES,
    MAX_MEASURED,
    WINDOW_SHARES,
    FeatureCodes,
    FeatureReader,
    choose_codes,
    feature_codes,
)
from ehr_ray.events.patients import Patient
from ehr_ray.events.schema import EVENTS
from ehr_ray.events.vocabulary import Vocabulary

HOUR = 3_600_000_000
STATIC = np.iinfo(np.int64).min
CODES = ("AGE", "FiO2", "GENDER//M", "HR", "MEDS_BIRTH", "PaO2")


def reader(codes=CODES, simple=(2, 3), measured=(3,)):
    ones = np.ones(len(codes))
    vocabulary = Vocabulary(tuple(codes), ones.astype(np.int64), 0 * ones, ones)
    return FeatureReader(vocabulary, FeatureCodes(simple, measured))


def patient(events, admitted=(), origin=0):
    """Events are (hour or None, code, value), as `Patient` has them: static first, by time."""
    time = [STATIC if h is None else round(h * HOUR) for h, _, _ in events]
    return Patient(
        1,
        origin,
        np.array(time, np.int64),
        np.array([CODES.index(code) for _, code, _ in events], np.int32),
        np.array([value for _, _, value in events], np.float32),
        np.array([round(h * HOUR) for h in admitted], np.int64),
    )


def context(events, hour, **options):
    row = reader().simple(patient(events, **options), round(hour * HOUR))
    return dict(zip(CONTEXT, row[-len(CONTEXT) :].tolist(), strict=True))


def test_age_counts_from_birth_to_the_prediction():
    year = 365.25 * 24
    found = context([(-50 * year, "MEDS_BIRTH", np.nan)], hour=year / 2)
    assert found["age"] == pytest.approx(50.5)


def test_without_a_birth_the_age_is_the_value_told():
    assert context([(None, "AGE", 71.0)], hour=1)["age"] == 71
    assert np.isnan(context([(None, "GENDER//M", np.nan)], hour=1)["age"])
    assert np.isnan(context([(5, "AGE", 71.0)], hour=1)["age"])


def test_hours_and_admissions_before_the_prediction_count():
    found = context([], hour=30, admitted=(0, 24, 40))
    assert found["hours_since_origin"] == 30
    assert found["hours_since_admission"] == 6
    assert found["prior_admissions"] == 1
    found = context([], hour=30)
    assert found["hours_since_admission"] == 30
    assert found["prior_admissions"] == 0


def test_simple_features_are_those_of_the_chosen_codes_and_the_context():
    row = reader().simple(patient([(None, "GENDER//M", np.nan), (2, "HR", 80)]), 4 * HOUR)
    assert row.shape == (2 * len(STATISTICS) + len(CONTEXT),)
    table = row[: -len(CONTEXT)].reshape(2, -1)
    assert table[0, STATISTICS.index("static")] == 1
    assert table[1, STATISTICS.index("last")] == 80


def test_extra_features_are_windows_and_trends_of_measured_and_derived_codes():
    events = [(1, "HR", 80), (3, "FiO2", 0.5), (7, "HR", 92), (8, "PaO2", 100), (9, "HR", 500)]
    row = reader().extra(patient(events), 8 * HOUR)
    windows, trends = len(WINDOW_SHARES) - 1, len(TREND_STATISTICS)
    assert row.shape == (2 * (windows + trends) + len(STATISTICS),)
    np.testing.assert_array_equal(row[:windows], [np.nan, 80, np.nan, np.nan, 92])
    assert row[windows : windows + trends].tolist() == [2.0, 12.0, 60.0]
    assert row[-len(STATISTICS) :][STATISTICS.index("last")] == 200  # PaO2/FiO2


def test_what_comes_after_the_prediction_changes_nothing():
    early = [(1, "HR", 80), (2, "PaO2", 90), (3, "FiO2", 0.5)]
    late = [*early, (9, "HR", 40), (10, "PaO2", 55)]
    for part in ("simple", "extra"):
        first, second = (
            getattr(reader(), part)(patient(events), 8 * HOUR) for events in (early, late)
        )
        np.testing.assert_array_equal(first, second)


def test_codes_are_chosen_by_patients_and_static_ones_are_always_kept():
    size = MAX_CODES + 50
    patients = np.arange(size, 0, -1)
    static = np.zeros(size, int)
    static[-1] = 1  # one patient alone has it
    valued = np.zeros(size, bool)
    valued[::2] = True
    timed = patients - static
    found = choose_codes(patients, timed, static, valued)
    assert found.simple == (*range(MAX_CODES), size - 1)
    assert found.measured == tuple(range(0, 2 * MAX_MEASURED, 2))


def test_codes_nobody_has_get_no_features():
    none = np.zeros(4, int)
    assert choose_codes(none, none, none, np.ones(4, bool)) == FeatureCodes((), ())


def write_shard(path, events):
    subject, minute, code = zip(*events, strict=True)
    time = pa.array([None if m is None else m * 60_000_000 for m in minute], pa.int64())
    columns = [
        pa.array(subject, pa.int64()),
        time.cast(pa.timestamp("us")),
        pa.array(code, pa.string()),
        pa.array([1.0] * len(subject), pa.float32()),
    ]
    pq.write_table(pa.Table.from_arrays(columns, schema=EVENTS), path)
    return path


def chosen(shards, codes, allowed=None):
    size = len(codes)
    quantiles = np.ones((size, 7))
    vocabulary = Vocabulary(
        tuple(codes), np.ones(size, np.int64), np.zeros(size), np.ones(size), quantiles
    )
    folder = shards[0].parent / FOLDER
    write_manifest([describe_shard(path, path.name, "train") for path in shards], folder)
    write_manifest([describe_shard(shards[0], "other", "tuning")], folder / "other")
    files = (*folder.glob("*.parquet"), *folder.glob("other/*.parquet"))
    return feature_codes(Manifest(files), vocabulary, allowed)


def test_codes_with_many_events_of_one_patient_do_not_crowd_out_what_all_have(tmp_path):
    """One monitored patient has thousands of events of codes of his own; everybody has a sex."""
    own = [f"MONITOR//{i:03d}" for i in range(MAX_CODES)]
    loud = [(1, minute, code) for code in own for minute in range(20)]
    quiet = [(subject, 5, "SEX//F") for subject in range(1, 6)]
    parts = sorted([*loud, *(e for e in quiet if e[0] == 1)], key=lambda e: e[0])
    shards = [
        write_shard(tmp_path / "0.parquet", parts),
        write_shard(tmp_path / "1.parquet", [e for e in quiet if e[0] > 1]),
    ]
    codes = sorted([*own, "SEX//F"])
    found = chosen(shards, codes)
    assert codes.index("SEX//F") in found.simple
    assert codes.index("SEX//F") in found.measured
    assert len(found.simple) == MAX_CODES


def test_a_static_event_is_no_measurement(tmp_path):
    shard = write_shard(tmp_path / "0.parquet", [(1, None, "AGE"), (1, 3, "HR"), (2, None, "AGE")])
    found = chosen([shard], ["AGE", "HR"])
    assert found.simple == (0, 1)
    assert found.measured == (1,)


def test_codes_that_a_family_keeps_from_baselines_are_left_out(tmp_path):
    shard = write_shard(tmp_path / "0.parquet", [(1, 1, "A"), (1, 2, "B"), (1, 2, "UNKNOWN")])
    found = chosen([shard], ["A", "B"], allowed=np.array([False, True]))
    assert found.simple == (1,)
