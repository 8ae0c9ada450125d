import numpy as np
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.patients import Patient
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.events.zero_shot import ZeroShot

HOUR = 3_600_000_000
CODES = ("HR", "LAB//X", "LAB//X//mg", "LAB//XY", "MEDS_DEATH")
VOCABULARY = Vocabulary(CODES, np.ones(5, np.int64), np.zeros(5), np.ones(5))


def named(asked):
    codes = asked.codes(VOCABULARY), asked.ends(VOCABULARY)
    return [[CODES[i] for i in np.flatnonzero(found)] for found in codes]


def test_a_code_stands_for_itself_and_for_those_that_go_on_after_a_slash():
    asked, ends = named(ZeroShot(code="LAB//X", hours=1))
    assert asked == ["LAB//X", "LAB//X//mg"]
    assert ends == [*asked, "MEDS_DEATH"]
    with pytest.raises(InputError, match="--zero-shot LAB//Z: no code that the run knows"):
        ZeroShot(code="LAB//Z", hours=1).codes(VOCABULARY)


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([(5, "LAB//X")], True),
        ([(6, "LAB//X//mg")], True),
        ([(4, "LAB//X"), (6, "HR")], False),  # known then
        ([(6.01, "LAB//X")], False),
        ([(5, "LAB//XY"), (9, "HR")], False),
        ([(5, "HR")], None),
        ([(5, "MEDS_DEATH")], False),
        ([(5, "LAB//X"), (5, "MEDS_DEATH")], True),
        ([(3, "HR")], None),
        ([], None),
    ],
)
def test_a_record_answers_where_it_goes_on_to_the_horizon_or_to_a_death(events, said):
    time = np.array([round(hour * HOUR) for hour, _ in events], np.int64)
    code = np.array([CODES.index(name) for _, name in events], np.int32)
    patient = Patient(1, 0, time, code, np.full(len(events), np.nan, np.float32))
    asked = ZeroShot(code="LAB//X", hours=2)
    found = asked.answer(patient, 4 * HOUR, asked.codes(VOCABULARY), asked.ends(VOCABULARY))
    assert found is said


def test_an_admission_after_the_horizon_is_an_answer_too():
    none = np.zeros(0, np.int64)
    patient = Patient(1, 0, none, none.astype(np.int32), none, np.array([0, 30 * HOUR]))
    asked = ZeroShot(code="HR", hours=2)
    codes = asked.codes(VOCABULARY), asked.ends(VOCABULARY)
    assert asked.answer(patient, 4 * HOUR, *codes) is False
    assert asked.answer(patient, 29 * HOUR, *codes) is None


def test_prediction_times_are_those_given_or_an_hour_after_the_origin():
    none = np.zeros(0, np.int64)
    patient = Patient(7, 5 * HOUR, none, none.astype(np.int32), none)
    assert ZeroShot(code="HR", hours=1).times(patient, {7: [9, 3], 8: [1]}) == [3, 9]
    assert ZeroShot(code="HR", hours=1).times(patient, {}) == []
    assert ZeroShot(code="HR", hours=1, from_hour=2.5).times(patient, None) == [7.5 * HOUR]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"hours": 0}, "--horizon 0"),
        ({"hours": float("nan")}, "--horizon nan"),
        ({"from_hour": -1}, "--from-hour -1"),
        ({"draws": 0}, "--draws 0"),
        ({"events": 0}, "--max-events 0"),
    ],
)
def test_numbers_that_ask_nothing_are_refused(given, said):
    with pytest.raises(InputError, match=said):
        ZeroShot(**{"code": "HR", "hours": 1, **given})
