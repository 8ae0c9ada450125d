import numpy as np
import pytest

from ehr_ray.events.patients import Patient
from ehr_ray.events.visits import GAP, STATISTICS, STAY, choose_features, rows_of
from ehr_ray.events.vocabulary import Vocabulary

MINUTE, DAY = 60_000_000, 24 * 60
CODES = ("AGE", "DIAGNOSIS//1", "HOSPITAL_DISCHARGE//DIED", "HR", "LAB", "MEDS_DEATH", "URINE")
AGE, DIAGNOSIS, DISCHARGE, HR, LAB, DEATH, URINE = range(7)
STATIC = np.iinfo(np.int64).min


@pytest.fixture(scope="module")
def vocabulary():
    middle = np.array([60.0, np.nan, np.nan, 80.0, 5.0, np.nan, 100.0])
    width = np.array([20.0, np.nan, np.nan, 10.0, 0.0, np.nan, 50.0]) * 1.349
    quantiles = np.stack([middle, middle, middle - width / 2, middle] + [middle] * 3, 1)
    quantiles[:, 4] = middle + width / 2
    std = np.array([15.0, 1.0, 1.0, 12.0, 2.0, 1.0, 40.0])
    count = np.array([9, 5, 4, 90, 30, 3, 20])
    return Vocabulary(CODES, count, np.nan_to_num(middle), std, quantiles)


@pytest.fixture(scope="module")
def chosen(vocabulary):
    def choose(kind="hours", **changes):
        options = {
            "max_values": 10,
            "max_flags": 10,
            "outcomes": ("*death*", "*discharge*"),
            "flows": ("urine",),
            "discharges": ("hospital_discharge*",),
        }
        return choose_features(vocabulary, kind, **{**options, **changes})

    return choose


def patient(events, admitted=(0,)):
    """Events are (minute or None, code, value or None)."""
    minute, code, value = zip(*events, strict=True) if events else ((), (), ())
    time = np.array([STATIC if m is None else m * MINUTE for m in minute], np.int64)
    value = np.array([np.nan if v is None else v for v in value], np.float32)
    starts = np.array(admitted, np.int64) * MINUTE
    return Patient(1, 0, time, np.array(code, np.int32), value, starts)


def cells(rows, features):
    """The last word on each cell: {(row, feature name): {statistic: value}}."""
    names = STATISTICS[features.kind]
    return {
        (int(row), features.names[feature]): dict(zip(names, value.tolist(), strict=True))
        for row, feature, value in zip(rows.row, rows.feature, rows.value, strict=True)
    }


def squashed(value, center, spread):
    return pytest.approx(np.arcsinh((value - center) / spread), rel=1e-5)


def test_outcomes_are_never_features_and_the_frequent_codes_are(chosen):
    found = chosen()
    assert found.names == ("AGE", "DIAGNOSIS//1", "HR", "LAB", "URINE")
    assert found.place.tolist() == [0, 1, -1, 2, 3, -1, 4]
    assert found.code.tolist() == [AGE, DIAGNOSIS, HR, LAB, URINE]
    assert found.flag.tolist() == [False, True, False, False, False]
    assert found.flow.tolist() == [False] * 4 + [True]
    assert chosen(max_values=2, max_flags=0).names == ("HR", "LAB")
    assert chosen("visits").names[-2:] == (STAY, GAP)
    assert chosen() is found


def test_scales_are_robust_and_of_train(chosen):
    found = chosen()
    assert found.center.tolist() == [60, 0, 80, 5, 100]
    # A range of 0 (LAB) leaves the standard deviation; a flag is left as it is.
    np.testing.assert_allclose(found.spread, [20, 1, 10, 2, 50])


def test_an_hour_has_the_mean_the_last_value_and_the_count(chosen):
    events = [(None, AGE, 80), (0, HR, 90), (59, HR, 110), (60, HR, 70), (150, DIAGNOSIS, None)]
    rows = rows_of(patient(events), chosen())
    assert rows.minute.tolist() == [0, 60, 120]
    found = cells(rows, chosen())
    assert found.keys() == {(0, "HR"), (1, "HR"), (2, "DIAGNOSIS//1")}
    assert found[0, "HR"]["mean"] == squashed(100, 80, 10)
    assert found[0, "HR"]["last"] == squashed(110, 80, 10)
    assert found[0, "HR"]["count"] == pytest.approx(np.log(3))
    assert found[1, "HR"]["mean"] == found[1, "HR"]["last"] == squashed(70, 80, 10)
    assert found[2, "DIAGNOSIS//1"]["mean"] == squashed(1, 0, 1)
    assert rows.static_feature.tolist() == [0]
    assert rows.static_value.tolist() == [squashed(80, 60, 20)]


def test_flows_are_added_up(chosen):
    found = cells(
        rows_of(patient([(3, URINE, 40), (9, URINE, 60), (20, URINE, 200)]), chosen()), chosen()
    )
    assert found[0, "URINE"]["mean"] == squashed(300, 100, 50)
    assert found[0, "URINE"]["last"] == squashed(200, 100, 50)


def test_outcomes_and_values_that_are_missing_make_no_cell_and_no_row(chosen):
    events = [(0, HR, None), (10, DEATH, None), (70, DISCHARGE, None)]
    rows = rows_of(patient(events), chosen())
    assert len(rows.minute) == len(rows.row) == 0
    assert rows.value.shape == (0, 3)
    assert len(rows_of(patient([]), chosen()).minute) == 0


def test_a_level_is_kept_and_an_impossible_value_keeps_its_place(chosen):
    """No scaling by the patient: twice the creatinine is another row, and 735 is above 7.35."""
    low, high, wrong = (
        cells(rows_of(patient([(0, LAB, v), (60, LAB, v)]), chosen()), chosen())[1, "LAB"]["mean"]
        for v in (5.0, 9.0, 4000.0)
    )
    assert low == 0 < high < wrong < 10


def test_a_visit_has_moments_a_gap_and_a_length_known_at_discharge(chosen):
    events = [
        (0, HR, 80),
        (10, HR, 100),
        (2 * DAY, DIAGNOSIS, None),
        (2 * DAY, DISCHARGE, None),
        (9 * DAY + 5, HR, 90),
    ]
    whole = patient(events, admitted=(0, 9 * DAY))
    rows = rows_of(whole, chosen("visits"))
    assert rows.minute.tolist() == [0, 9 * DAY]
    found = cells(rows, chosen("visits"))
    hr = found[0, "HR"]
    assert hr["mean"] == squashed(90, 80, 10)
    assert hr["std"] == squashed(90, 80, 10)  # of 80 and 100 it is 10
    assert (hr["min"], hr["max"]) == (0, squashed(100, 80, 10))
    assert found[0, "DIAGNOSIS//1"]["mean"] == squashed(1, 0, 1)
    assert found[0, STAY]["mean"] == squashed(np.log1p(2), 0, 1)
    assert found[1, GAP]["mean"] == squashed(np.log1p(7), 0, 1)
    assert (0, GAP) not in found
    assert (1, STAY) not in found
    before = cells(rows_of(whole.until((2 * DAY - 1) * MINUTE), chosen("visits")), chosen("visits"))
    assert before.keys() == {(0, "HR")}


def test_a_patient_without_admissions_has_one_visit(chosen):
    rows = rows_of(patient([(5, HR, 80), (9 * DAY, HR, 90)], admitted=()), chosen("visits"))
    assert rows.minute.tolist() == [0]
    assert rows.row.tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["hours", "visits"])
def test_rows_known_at_a_time_are_a_prefix_of_all_rows_bit_for_bit(chosen, kind):
    rng = np.random.default_rng(0)
    minute = np.sort(rng.integers(0, 600, 200))
    code = rng.choice([HR, LAB, URINE, DIAGNOSIS, DISCHARGE], 200)
    events = list(zip(minute.tolist(), code.tolist(), rng.normal(80, 9, 200).tolist(), strict=True))
    whole = patient(events, admitted=(0, 200, 431))
    known = rows_of(whole, chosen(kind))
    for cut in (0, 17, 59, 200, 431, 599):
        early = rows_of(whole.until(cut * MINUTE), chosen(kind))
        for name, value in vars(early).items():
            np.testing.assert_array_equal(value, getattr(known, name)[: len(value)])


@pytest.mark.parametrize("kind", ["hours", "visits"])
def test_what_happened_before_the_origin_is_in_no_row(chosen, kind):
    events = [(None, AGE, 61.0), (30, HR, 90.0)]
    early = patient([events[0], (-9 * DAY, HR, 70.0), events[1]])
    found, expected = (rows_of(one, chosen(kind)) for one in (early, patient(events)))
    for name in ("minute", "row", "feature", "value"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_the_minutes_of_rows_are_exact_over_a_life(chosen):
    last = 60 * (100 * 8766 + 1)
    rows = rows_of(patient([(0, HR, 70.0), (last - 60, HR, 70.0), (last, HR, 90.0)]), chosen())
    assert rows.minute.tolist() == [0, last - 60, last]
