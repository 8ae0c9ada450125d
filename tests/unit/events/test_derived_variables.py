import numpy as np
import pytest

from ehr_ray.events.derived_variables import KINDS, derivable, derived_events, derived_variables

NAN = np.nan


def made(events, codes, variable):
    """Return (minute, value) of a variable; events are (minute or None, code, value)."""
    names, rules = derivable(codes)
    minute = np.array([0 if m is None else m for m, _, _ in events], float)
    code = np.array([codes.index(c) for _, c, _ in events])
    value = np.array([v for _, _, v in events], np.float32)
    static = np.array([m is None for m, _, _ in events])
    at, which, x = derived_events(minute, code, value, static, rules)
    mine = which == names.index(variable)
    return list(zip(at[mine].tolist(), np.round(x[mine], 4).tolist(), strict=True))


def test_a_ratio_takes_the_last_known_value_below_the_line():
    codes = ["FiO2", "PaO2"]
    events = [(5, "PaO2", 90), (10, "FiO2", 0.5), (20, "PaO2", 100), (20, "FiO2", 0.4)]
    events += [(30, "PaO2", 60), (40, "FiO2", NAN), (50, "PaO2", NAN)]
    # At one minute both are known; before the first FiO2 there is no ratio.
    assert made(events, codes, "PaO2/FiO2") == [(20, 250.0), (30, 150.0)]


def test_a_static_weight_is_known_from_the_start():
    events = [(None, "Weight", 80.0), (60, "Urine", 40.0)]
    assert made(events, ["Urine", "Weight"], "urine per kg") == [(60, 0.5)]


def test_nothing_is_divided_by_zero():
    events = [(1, "SysABP", 0.0), (2, "HR", 90), (3, "SysABP", 100), (4, "HR", 90)]
    assert made(events, ["HR", "SysABP"], "shock index") == [(4, 0.9)]


def test_a_sum_waits_for_all_of_its_parts():
    codes = ["LAB//220739//UNK", "LAB//223900//UNK", "LAB//223901//UNK"]
    events = [(1, codes[0], 4), (1, codes[1], 5), (2, codes[2], 6), (9, codes[0], 1)]
    assert made(events, codes, "GCS") == [(2, 15.0), (9, 12.0)]
    assert "GCS" not in derivable(codes[:2])[0]


def test_values_of_one_thing_under_two_codes_are_one_series():
    events = [(1, "NISysABP", 110), (2, "SysABP", 95), (3, "SysABP", NAN)]
    assert made(events, ["NISysABP", "SysABP"], "systolic pressure") == [(1, 110), (2, 95)]


def test_presence_needs_no_value():
    events = [(7, "PROCEDURE//START//225792", NAN), (8, "OTHER", 3)]
    codes = ["OTHER", "PROCEDURE//START//225792"]
    assert made(events, codes, "ventilated") == [(7, 1.0)]


def test_a_code_stands_for_what_follows_its_slashes_and_nothing_else():
    names, _ = derivable(["LAB//220045//bpm", "LAB//220050//mmHg"])
    assert "shock index" in names
    names, _ = derivable(["LAB//2200451//bpm", "LAB//220050//mmHg"])
    assert "shock index" not in names


def test_unknown_codes_make_nothing():
    assert derivable(["A", "B"]) == ([], [])
    none = np.zeros(0)
    at, which, x = derived_events(none, none.astype(int), none, none.astype(bool), [])
    assert len(at) == len(which) == len(x) == 0


@pytest.mark.parametrize("row", derived_variables(), ids=lambda row: f"{row[0]} {row[1]}")
def test_every_row_of_the_table_can_be_made_of_its_own_codes(row):
    variable, kind, of, by = row
    assert kind in KINDS
    assert bool(by) == (kind == "ratio")
    codes = sorted({*of, *by})
    events = [(1, code, 2.0) for code in by] + [(1, code, 2.0) for code in of]
    found = made(events, codes, variable)
    expected = {"ratio": 1.0, "sum": 2.0 * len(of), "merge": 2.0, "presence": 1.0}[kind]
    assert {value for _, value in found} == {expected}
