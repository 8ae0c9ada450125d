import time

import numpy as np
import pytest

from ehr_ray.events.features import (
    STATISTICS,
    WINDOW_STATISTICS,
    code_lookup,
    select_codes,
    simple_features,
    trend_features,
    window_features,
)

END = 100.0


def slow_features(minute, code, value, static, num_codes, end):
    """One loop over codes and events, written from the definition."""
    out = []
    for c in range(num_codes):
        rows = [i for i in range(len(code)) if code[i] == c]
        timed = [i for i in rows if not static[i] and minute[i] <= end]
        valued = sorted((i for i in timed if not np.isnan(value[i])), key=lambda i: minute[i])
        x = [float(value[i]) for i in valued]
        late = [float(value[i]) for i in valued if minute[i] >= 0.75 * end]
        fixed = [float(value[i]) for i in rows if static[i]]
        if x:
            out += [x[0], x[-1], np.mean(x), min(x), max(x), np.std(x), len(timed)]
            out += [minute[valued[-1]], np.mean(late) if late else np.nan]
        else:
            out += [np.nan] * 6 + [len(timed)] + [np.nan] * 2
        out.append(np.nan if not fixed else (1.0 if np.isnan(fixed[-1]) else fixed[-1]))
    return np.array(out, dtype=np.float32)


def random_patient(rng, num_events=60, num_codes=7):
    minute = rng.integers(0, 130, num_events).astype(float)
    code = rng.integers(-1, num_codes, num_events).astype(np.int32)
    value = rng.normal(50, 20, num_events).astype(np.float32)
    value[rng.random(num_events) < 0.2] = np.nan
    static = rng.random(num_events) < 0.1
    minute[static] = 0
    return minute, code, value, static


@pytest.mark.parametrize("seed", range(25))
def test_features_equal_a_slow_reference_on_random_patients(seed):
    rng = np.random.default_rng(seed)
    patient = random_patient(rng, num_events=int(rng.integers(0, 80)))
    ours = simple_features(*patient, num_codes=7, end_minute=END)
    np.testing.assert_allclose(ours, slow_features(*patient, 7, END), rtol=1e-5, atol=1e-5)


def slow_windows(minute, code, value, static, num_codes, end, edges):
    """One loop over codes, windows and events, written from the definition."""
    out = []
    for c in range(num_codes):
        for w in range(len(edges) - 1):
            last = w == len(edges) - 2
            rows = [
                i
                for i in range(len(code))
                if code[i] == c and not static[i] and minute[i] <= end
                if edges[w] <= minute[i] < edges[w + 1] or (last and minute[i] == edges[-1])
            ]
            x = [float(value[i]) for i in rows if not np.isnan(value[i])]
            out += [np.mean(x), min(x), max(x)] if x else [np.nan] * 3
            out.append(len(rows))
    return np.array(out, dtype=np.float32)


@pytest.mark.parametrize("seed", range(25))
def test_window_features_equal_a_slow_reference_on_random_patients(seed):
    rng = np.random.default_rng(seed)
    patient = random_patient(rng, num_events=int(rng.integers(0, 120)))
    edges = (0.0, 13.0, 40.0, 100.0, 120.0)
    ours = window_features(*patient, num_codes=7, end_minute=110.0, windows=edges)
    assert ours.shape == (7 * 4 * len(WINDOW_STATISTICS),)
    np.testing.assert_allclose(ours, slow_windows(*patient, 7, 110.0, edges), rtol=1e-5)


def test_a_window_holds_its_start_and_the_last_one_its_end_too():
    minute = np.array([-1.0, 0.0, 50.0, 100.0, 100.5])
    arrays = (minute, np.zeros(5, np.int32), np.arange(5, dtype=np.float32), np.zeros(5, bool))
    row = window_features(*arrays, num_codes=1, end_minute=200.0, windows=(0, 50, 100))
    mean, count = row.reshape(2, -1)[:, 0], row.reshape(2, -1)[:, 3]
    assert count.tolist() == [1, 2]
    assert mean.tolist() == [1.0, 2.5]


@pytest.mark.parametrize("seed", range(10))
def test_trends_equal_a_slow_reference_on_random_patients(seed):
    rng = np.random.default_rng(seed)
    minute, code, value, static = random_patient(rng, num_events=int(rng.integers(0, 60)))
    ours = trend_features(minute, code, value, static, num_codes=7, end_minute=END).reshape(7, 3)
    for c in range(7):
        rows = (code == c) & ~static & (minute <= END) & ~np.isnan(value)
        order = np.argsort(minute[rows], kind="stable")
        t, x = minute[rows][order] / 60, value[rows][order].astype(float)
        slope = np.polyfit(t, x, 1)[0] if len(np.unique(t)) > 1 else np.nan
        change = x[-1] - x[0] if len(x) > 1 else np.nan
        since = END - 60 * t[-1] if len(x) else np.nan
        np.testing.assert_allclose(ours[c], [slope, change, since], rtol=1e-4, atol=1e-4)


def one(statistic, minute, value, static=False, end=END):
    minute, value = np.atleast_1d(np.asarray(minute, float)), np.atleast_1d(np.float32(value))
    arrays = (minute, np.zeros(len(minute), np.int32), value, np.full(len(minute), static))
    row = simple_features(*arrays, num_codes=1, end_minute=end)
    return row[STATISTICS.index(statistic)]


def test_an_empty_patient_has_zero_counts_and_nothing_else():
    empty = np.zeros(0)
    row = simple_features(
        empty, empty.astype(np.int32), empty, empty.astype(bool), num_codes=3, end_minute=END
    ).reshape(3, -1)
    count = STATISTICS.index("count")
    assert (row[:, count] == 0).all()
    assert np.isnan(np.delete(row, count, axis=1)).all()


def test_an_event_after_the_prediction_time_is_never_seen():
    assert one("last", [10, 100, 100.5], [1, 2, 3]) == 2
    assert one("count", [10, 100, 100.5], [1, 2, 3]) == 2


def test_of_two_values_at_one_minute_the_last_in_order_is_last():
    assert one("last", [5, 5, 5], [80, 90, 70]) == 70
    assert one("first", [5, 5, 5], [80, 90, 70]) == 80


def test_events_need_not_be_sorted_by_time():
    assert one("last", [30, 10, 20], [3, 1, 2]) == 3
    assert one("time_of_last", [30, 10, 20], [3, 1, 2]) == 30


def test_a_code_without_values_has_only_a_count():
    assert one("count", [1, 2], [np.nan, np.nan]) == 2
    assert np.isnan(one("time_of_last", [1, 2], [np.nan, np.nan]))


def test_the_last_quarter_is_missing_when_nothing_was_measured_in_it():
    assert one("mean_last_quarter", [10, 75, 80], [1, 4, 6]) == 5
    assert np.isnan(one("mean_last_quarter", [10], [1]))


def test_a_static_event_fills_only_its_own_column():
    assert one("static", 0, 65, static=True) == 65
    assert one("static", 0, np.nan, static=True) == 1
    assert one("count", 0, 65, static=True) == 0
    assert np.isnan(one("mean", 0, 65, static=True))


def test_columns_are_those_of_one_code_after_the_other():
    patient = (np.array([1.0]), np.array([1], np.int32), np.array([7.0]), np.array([False]))
    row = simple_features(*patient, num_codes=2, end_minute=END)
    assert len(row) == 2 * len(STATISTICS)
    last = STATISTICS.index("last")
    assert row[len(STATISTICS) + last] == 7
    assert np.isnan(row[last])


def test_the_codes_most_patients_have_are_selected():
    counts = np.array([5, 0, 9, 5, 1])
    assert select_codes(counts, max_codes=2).tolist() == [0, 2]
    assert select_codes(counts).tolist() == [0, 2, 3, 4]
    assert select_codes(counts, min_patients=5).tolist() == [0, 2, 3]
    assert code_lookup(np.array([0, 2]), 5).tolist() == [0, -1, 1, -1, -1]


def test_a_patient_of_an_icu_stay_takes_well_under_a_millisecond():
    rng = np.random.default_rng(0)
    patient = random_patient(rng, num_events=430, num_codes=42)
    simple_features(*patient, num_codes=42, end_minute=END)
    best = np.inf
    for _ in range(20):
        start = time.perf_counter()
        simple_features(*patient, num_codes=42, end_minute=END)
        best = min(best, time.perf_counter() - start)
    assert best < 1e-3
