import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr_ray.events.carry import carry_forward
from ehr_ray.events.patients import Patient

MINUTE = 60_000_000
STATIC = np.iinfo(np.int64).min
NUM_CODES = 5


def slow_carry(events, window, always):
    """The contract, one set and one code at a time; events are (minute, code, value, static).

    A set is a whole minute; those before minute 0 are left out once they have been lived through.
    """
    tokens, last = [], {}
    events = [(np.floor(minute), *rest) for minute, *rest in events]
    observed = {minute for minute, *_ in events}
    minutes = []
    for minute in sorted(observed | ({0.0} if min(observed, default=0) < 0 else set())):
        live = {}
        for event in events:
            at, code, value, _ = event
            if at != minute:
                continue
            if code not in live or not np.isnan(value) or np.isnan(live[code][2]):
                live[code] = event
        last.update(live)
        found = []
        for code in sorted(last):
            at, _, value, static = last[code]
            age = minute - at
            if code in live:
                found.append((len(minutes), code, value, 0.0, False))
            elif static or (not np.isnan(value) and (age <= window or code in always)):
                found.append((len(minutes), code, value, age, True))
        if minute >= 0 and (found or minute in observed):
            minutes.append(minute)
            tokens += found
    return tokens, minutes


def run(events, window, always=()):
    minute, code, value, static = zip(*events, strict=True) if events else ((), (), (), ())
    flags = np.zeros(NUM_CODES, bool)
    flags[list(always)] = True
    tokens = carry_forward(
        np.array(minute, np.float64),
        np.array(code, np.int32),
        np.array(value, np.float32),
        np.array(static, bool),
        window=window,
        always=flags,
    )
    rows = zip(
        tokens.set_index.tolist(),
        tokens.code.tolist(),
        tokens.value.tolist(),
        tokens.age.tolist(),
        tokens.is_carry.tolist(),
        strict=True,
    )
    return list(rows), tokens.minute.tolist()


def assert_same(ours, theirs):
    assert ours[1] == theirs[1]
    assert len(ours[0]) == len(theirs[0])
    for a, b in zip(ours[0], theirs[0], strict=True):
        np.testing.assert_equal(a, b)


@st.composite
def patients(draw):
    """Time in microseconds: whole minutes (so that ties occur), fractions, before the origin."""
    whole = st.integers(-3, 12).map(lambda m: m * MINUTE)
    time = st.one_of(st.just(STATIC), whole, whole, st.integers(-MINUTE, 9 * MINUTE))
    value = st.one_of(st.just(np.nan), st.integers(-3, 3).map(float))
    event = st.tuples(time, st.integers(0, NUM_CODES - 1), value)
    events = sorted(draw(st.lists(event, max_size=30)), key=lambda e: e[0])
    columns = zip(*events, strict=True) if events else ((), (), ())
    time, code, value = columns
    return Patient(
        1, 0, np.array(time, np.int64), np.array(code, np.int32), np.array(value, np.float32)
    )


@settings(deadline=None, max_examples=400)
@given(patients(), st.data())
def test_carry_forward_equals_a_slow_reference(patient, data):
    minutes = patient.minute.tolist()
    edges = sorted({abs(a - b) for a in minutes for b in minutes})
    choices = [st.integers(0, 9).map(float), st.floats(0, 10)]
    window = data.draw(st.one_of(*choices, *([st.sampled_from(edges)] * 2 if edges else [])))
    always = data.draw(st.sets(st.integers(0, NUM_CODES - 1), max_size=2))
    events = list(
        zip(
            minutes,
            patient.code.tolist(),
            patient.value.tolist(),
            patient.static.tolist(),
            strict=True,
        )
    )
    assert_same(run(events, window, always), slow_carry(events, window, always))


def codes_in(tokens, index):
    return [code for i, code, *_ in tokens if i == index]


def test_window_is_inclusive_and_a_value_older_is_not_carried():
    events = [(0.0, 0, 1.0, False), (10.0, 1, 2.0, False), (11.0, 2, 3.0, False)]
    tokens, minutes = run(events, window=10.0)
    assert minutes == [0.0, 10.0, 11.0]
    assert codes_in(tokens, 1) == [0, 1]
    assert codes_in(tokens, 2) == [1, 2]


def test_window_edge_is_exact_for_whole_minutes_and_any_window():
    rng = np.random.default_rng(0)
    for _ in range(300):
        seen, later = sorted(rng.integers(1, 60_000_000, 2).astype(float))
        for window in (later - seen, np.nextafter(later - seen, 0)):
            tokens, _ = run([(seen, 0, 1.0, False), (later, 1, 1.0, False)], window=window)
            assert (codes_in(tokens, 1) == [0, 1]) == (later - seen <= window)


def test_seconds_of_one_minute_are_one_set_and_the_last_value_wins():
    events = [(5.1, 0, 1.0, False), (5.9, 0, 2.0, False), (6.0, 1, 3.0, False)]
    tokens, minutes = run(events, window=10.0)
    assert minutes == [5.0, 6.0]
    assert tokens == [(0, 0, 2.0, 0.0, False), (1, 0, 2.0, 1.0, True), (1, 1, 3.0, 0.0, False)]


def test_what_is_older_than_the_window_at_minute_0_is_not_there_and_the_rest_says_its_age():
    day = 1440.0
    events = [(-400 * day, 0, 9.0, False), (-400 * day, 1, 15.0, False), (-300.0, 0, 2.0, False)]
    tokens, minutes = run([*events, (0.0, 2, 80.0, False), (60.0, 0, 1.0, False)], window=2 * day)
    assert minutes == [0.0, 60.0]
    assert tokens == [
        (0, 0, 2.0, 300.0, True),
        (0, 2, 80.0, 0.0, False),
        (1, 0, 1.0, 0.0, False),
        (1, 2, 80.0, 60.0, True),
    ]


def test_history_alone_makes_a_set_at_minute_0_and_none_where_the_window_ends_before():
    assert run([(-300.0, 0, 2.0, False)], window=300.0) == ([(0, 0, 2.0, 300.0, True)], [0.0])
    assert run([(-300.0, 0, 2.0, False)], window=299.0) == ([], [])
    late = run([(-300.0, 0, 2.0, False), (7.0, 1, 1.0, False)], window=299.0)
    assert late == ([(0, 1, 1.0, 0.0, False)], [7.0])


def test_a_static_event_is_live_at_minute_0_whatever_history_says_of_its_code():
    tokens, _ = run([(0.0, 0, 7.0, True), (-5.0, 0, 2.0, False), (9.0, 1, 1.0, False)], 100.0)
    assert tokens == [(0, 0, 7.0, 0.0, False), (1, 0, 7.0, 9.0, True), (1, 1, 1.0, 0.0, False)]


def test_carrying_does_not_refresh_the_last_observation():
    events = [(0.0, 0, 1.0, False), (6.0, 1, 1.0, False), (12.0, 1, 1.0, False)]
    tokens, _ = run(events, window=10.0)
    assert codes_in(tokens, 1) == [0, 1]
    assert codes_in(tokens, 2) == [1]


def test_always_carried_codes_and_static_events_never_expire():
    events = [(0.0, 2, 7.0, True), (0.0, 1, 3.0, False), (9e6, 0, 1.0, False)]
    tokens, _ = run(events, window=5.0, always=[1])
    assert tokens[-2:] == [(1, 1, 3.0, 9e6, True), (1, 2, 7.0, 9e6, True)]


def test_a_value_less_observation_is_live_only_and_ends_what_was_carried():
    events = [(0.0, 0, 1.0, False), (1.0, 0, np.nan, False), (2.0, 1, 1.0, False)]
    tokens, _ = run(events, window=100.0, always=[0])
    assert codes_in(tokens, 1) == [0]
    assert codes_in(tokens, 2) == [1]


def test_a_null_does_not_override_a_value_of_the_same_minute():
    tokens, _ = run([(0.0, 0, 1.0, False), (0.0, 0, 2.0, False), (0.0, 0, np.nan, False)], 5.0)
    assert tokens == [(0, 0, 2.0, 0.0, False)]


def test_a_value_less_static_event_is_carried():
    tokens, _ = run([(0.0, 0, np.nan, True), (50.0, 1, 1.0, False)], window=0.0)
    assert [(i, c, carried) for i, c, _, _, carried in tokens] == [
        (0, 0, False),
        (1, 0, True),
        (1, 1, False),
    ]


@pytest.mark.parametrize("window", [0.0, 2880.0, np.inf])
def test_a_patient_without_events_has_no_sets(window):
    assert run([], window) == ([], [])


@pytest.mark.parametrize("size", [300, 1 << 16, (1 << 16) + 10])
def test_long_stays_keep_their_sets_in_order(size):
    minute = np.arange(size, dtype=np.float64)
    code = np.zeros(size, np.int32)
    code[0] = 1
    tokens = carry_forward(
        minute, code, np.ones(size, np.float32), np.zeros(size, bool), window=float(size)
    )
    assert len(tokens.code) == 2 * size - 1
    assert (np.diff(tokens.set_index.astype(np.int64) * 2 + tokens.code) > 0).all()
    assert tokens.age.max() == size - 1
