import numpy as np
import pytest

from ehr_ray.sources.parsing.admissions import Admissions, readmission_labels, stay_labels

NAT = np.datetime64("NaT", "us")


def admissions(*rows):
    """Admissions of (subject, id, first day, last day, whether the patient died on it)."""
    subject, hadm, start, end, died = map(np.array, zip(*rows, strict=True))
    epoch = np.datetime64("2020-01-01", "us")
    days = [epoch + (column * 86_400e6).astype("timedelta64[us]") for column in (start, end)]
    return Admissions.of(subject, hadm, *days, died, np.where(died, days[1], NAT))


def told(table):
    rows = table.to_pylist()
    return [(r["subject_id"], str(r["prediction_time"])[5:10], r["boolean_value"]) for r in rows]


@pytest.fixture
def found():
    return admissions(
        (1, 12, 20.0, 30.0, False),
        (1, 11, 0.0, 8.0, False),
        (2, 21, 0.0, 3.0, True),
        (3, 31, 5.0, 4.0, False),
        (4, 41, 0.0, 9.0, False),
        (4, 42, 1.0, 2.0, False),
    )


def test_admissions_are_in_order_and_found_by_their_id(found):
    assert found.hadm.tolist() == [11, 12, 21, 31, 41, 42]
    assert found.end[3] == found.start[3]
    row, known = found.find(np.array([1, 1, 2]), np.array([12, 21, 99]))
    assert (row[0], known.tolist()) == (1, [True, False, False])
    assert found.first().tolist() == [0, 2, 3, 4]


def test_death_and_long_stays_are_asked_of_those_still_there(found):
    row = found.first()
    labels = stay_labels(found, row, found.start[row], 48)
    assert told(labels["mortality"]) == [
        (1, "01-03", False),
        (2, "01-03", True),
        (4, "01-03", False),
    ]
    assert told(labels["length_of_stay_7d"]) == [
        *((1, "01-03", True), (2, "01-03", False), (4, "01-03", True)),
    ]
    assert told(stay_labels(found, row, found.start[row], 80)["mortality"])[1][0] == 4


def test_readmission_is_asked_at_discharges_alive_and_out_of_hospital(found):
    never = np.full(6, NAT)
    every = np.ones(6, bool)
    assert told(readmission_labels(found, every, never)) == [
        *((1, "01-09", True), (1, "01-31", False), (4, "01-10", False)),
    ]
    dead = never.copy()
    dead[1] = found.end[1]
    assert len(told(readmission_labels(found, every, dead))) == 2
    assert told(readmission_labels(found, every & (found.subject == 4), never)) == [
        (4, "01-10", False)
    ]


def test_of_an_admission_without_a_known_end_nothing_is_asked_but_it_is_a_return():
    start, end = np.array([[0, 10, 20, 0], [5, 11, 2**62, 2**62]])
    epoch = np.datetime64("2020-01-01", "us")
    ends = np.where(end > 99, NAT, epoch + end % 99 * np.timedelta64(1, "D"))
    never, died = np.full(4, NAT), np.zeros(4, bool)
    days = epoch + start * np.timedelta64(1, "D")
    found = Admissions.of(np.array([1, 1, 1, 2]), np.arange(4), days, ends, died, never)
    assert found.ended.tolist() == [True, True, False, False]
    told_ = told(readmission_labels(found, ~died, never))
    assert told_ == [(1, "01-06", True), (1, "01-12", True)]
    row = found.first()
    for table in stay_labels(found, row, found.start[row], 48).values():
        assert [subject for subject, *_ in told(table)] == [1]
