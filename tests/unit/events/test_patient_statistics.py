import numpy as np
import pytest

from ehr_ray.events.patient_statistics import StatisticsReader
from ehr_ray.events.patients import MICROSECONDS_PER_MINUTE, Patient
from ehr_ray.events.vocabulary import QUANTILES, Vocabulary

HOUR = 60 * MICROSECONDS_PER_MINUTE


def vocabulary_of(codes, count):
    """All codes have values."""
    size = len(codes)
    known = np.zeros((size, len(QUANTILES)))
    return Vocabulary(codes, np.array(count), np.zeros(size), np.ones(size), known)


VOCABULARY = vocabulary_of(("A", "B", "C"), [9, 1, 5])


def patient_of(*events):
    """Return a patient of (hour, code, value), admitted at hour 100 since 1970."""
    hour, code, value = (np.array(column) for column in zip(*events, strict=True))
    time = ((100 + hour) * HOUR).astype(np.int64)
    return Patient(1, 100 * HOUR, time, code.astype(np.int32), value.astype(np.float32))


EVENTS = ((1.0, 0, 5.0), (4.0, 2, 7.0), (8.0, 0, 9.0), (10.0, 1, 3.0), (20.0, 0, 100.0))


def columns(reader, row):
    """Return simple features [codes, 10], context [4] and windows [measured codes, W] of a row."""
    codes, measured = reader.features.codes.simple, reader.features.codes.measured
    at = 10 * len(codes)
    windows = len(measured) * len(reader.features.windows)
    course = row[at + 4 : at + 4 + windows]
    return row[:at].reshape(-1, 10), row[at : at + 4], course.reshape(len(measured), -1)


def test_a_row_holds_the_codes_of_most_patients_over_the_record_and_by_window():
    reader = StatisticsReader.of(VOCABULARY, 2, (2.0, 12.0))
    row = reader(patient_of(*EVENTS).until(110 * HOUR))
    assert row.shape == (reader.width,) == (2 * (10 + 3 + 2) + 4,)
    whole, context, windows = columns(reader, row)
    assert whole[:, 0].tolist() == [5.0, 7.0]  # A and C, in order of their ids
    assert whole[0, 1] == 9.0  # the event of hour 20 comes after the prediction
    assert context[1] == 10  # hours since the origin
    assert windows[0].tolist() == [5.0, 9.0]  # 12 to 2 hours before, the last 2 hours
    assert np.isnan(windows[1, 1])


def test_windows_are_of_codes_with_values_however_many_events_others_have():
    known = np.full((3, len(QUANTILES)), np.nan)
    known[2] = 0.0
    count = np.array([9, 8, 5])
    vocabulary = Vocabulary(("A", "B", "C"), count, np.zeros(3), np.ones(3), known)
    reader = StatisticsReader.of(vocabulary, 3, (6.0,))
    assert reader.features.codes.measured == (2,)
    assert reader.features.codes.simple == (0, 1, 2)


def test_windows_are_counted_back_from_the_prediction_time_not_from_the_last_event():
    reader = StatisticsReader.of(VOCABULARY, 3, (6.0,))
    early, late = (reader(patient_of(*EVENTS[:4]).until((100 + h) * HOUR)) for h in (12, 30))
    assert columns(reader, early)[2][:2].flatten().tolist() == [9.0, 3.0]
    assert np.isnan(columns(reader, late)[2]).all()


def test_variables_that_follow_from_others_have_columns_too():
    vocabulary = vocabulary_of(("HR", "SysABP"), [9, 5])
    reader = StatisticsReader.of(vocabulary, 2, (6.0,))
    row = reader(patient_of((1.0, 1, 100.0), (2.0, 0, 80.0)))
    assert row.shape == (reader.width,)
    assert np.isclose(row, 0.8).any()  # the shock index


def test_a_whole_patient_is_known_until_its_last_event():
    reader = StatisticsReader.of(VOCABULARY, 3, (6.0,))
    whole = patient_of(*EVENTS)
    np.testing.assert_array_equal(reader(whole), reader(whole.until(120 * HOUR)))


def test_a_patient_without_events_has_a_row():
    reader = StatisticsReader.of(VOCABULARY, 3, (6.0, 24.0))
    empty = Patient(1, 0, np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    assert reader(empty).shape == (reader.width,)


@pytest.mark.parametrize("hour", [3, 9, 30])
def test_nothing_after_the_prediction_time_changes_a_row(hour):
    reader = StatisticsReader.of(VOCABULARY, 3, (6.0, 24.0))
    events = [event for event in EVENTS if event[0] <= hour]
    cut = patient_of(*EVENTS).until((100 + hour) * HOUR)
    alone = patient_of(*events).until((100 + hour) * HOUR)
    np.testing.assert_array_equal(reader(cut), reader(alone))


def test_a_code_of_many_patients_comes_before_one_of_many_events():
    """Sex is one event of each patient, which a chart of thousands must not push out."""
    known = np.zeros((2, len(QUANTILES)))
    counts = np.array([900, 30])
    vocabulary = Vocabulary(
        ("CHART", "SEX"), counts, np.zeros(2), np.ones(2), known, subjects=np.array([10, 30])
    )
    reader = StatisticsReader.of(vocabulary, 1, (6.0,))
    assert reader.features.codes.simple == reader.features.codes.measured == (1,)


def test_columns_know_their_variable_and_what_they_are_when_it_is_not_measured():
    """Against what is read of patients who lack one code, or all that others are made of."""
    vocabulary = vocabulary_of(("HR", "SysABP", "WBC"), [9, 5, 4])
    reader = StatisticsReader.of(vocabulary, 3, (6.0, 12.0))
    assert len(reader.variables) == len(reader.unmeasured) == reader.width
    assert (reader.variables == -1).sum() == 4
    events = [(h, code, 50.0 + 9 * h + code) for h in (1.0, 3.0, 7.0) for code in (0, 1, 2)]
    whole = reader(patient_of(*events))
    derived = reader.variables >= 3
    for code in range(3):
        # `until`: the record is as long, whoever has the last event.
        left = patient_of(*[e for e in events if e[1] != code]).until(107 * HOUR)
        without, own = reader(left), reader.variables == code
        assert own.sum() == 10 + 3 + 2
        np.testing.assert_array_equal(without[own], reader.unmeasured[own])
        others = ~own & ~derived
        np.testing.assert_array_equal(without[others], whole[others])
    alone = reader(patient_of(*[e for e in events if e[1] == 2]))
    assert derived.any()
    np.testing.assert_array_equal(alone[derived], reader.unmeasured[derived])
