import numpy as np
from made_up.eicu import stay


def day(times):
    return [str(time)[:10] for time in np.atleast_1d(times)]


def test_hospital_stays_follow_by_year_age_and_number_and_never_overlap(stays_of):
    found = stays_of(
        stay(1, "A", hospital_stay=9, age=50),
        stay(2, "A", hospital_stay=8, age=51, out=3 * 1440),
        stay(3, "A", hospital_stay=7, age=51, out=400 * 1440),
        stay(4, "A", hospital_stay=6, age=52, year=2015),
    )
    # By age 9 is before 7 and 8; those two by their number; the year comes first of all.
    assert [found.rows["patienthealthsystemstayid"][i] for i in found.order] == [9, 7, 8, 6]
    start, end = found.hospital_start[found.order], found.hospital_end[found.order]
    assert day(start) == ["2014-01-01", "2014-01-09", "2015-02-14", "2015-02-18"]
    assert (start[1:] > end[:-1]).all()


def test_unit_stays_of_a_hospital_stay_are_on_one_clock(stays_of):
    found = stays_of(
        stay(2, "A", hospital_stay=1, admit=-5000, end=100, visit=2),
        stay(1, "A", hospital_stay=1, admit=-60, end=4000),
        stay(3, "A", hospital_stay=1, admit=30, end=10, visit=3),
    )
    minutes = (found.unit_start - found.unit_start[0]) / np.timedelta64(1, "m")
    assert minutes.tolist() == [0, 4940, -90]
    assert len(set(found.hospital_start.tolist())) == 1
    assert found.order.tolist() == [2, 0, 1]


def test_events_stay_off_the_neighbours_stay_and_are_else_where_they_were(stays_of):
    found = stays_of(stay(1, "A"), stay(2, "A", year=2015))
    row = np.array([0, 0, 1, 1, 0])
    placed = found.place(row, np.array([-9e5, 9e5, -9e5, 9e5, np.nan]))
    assert placed[0] == found.unit_start[0] - np.timedelta64(900_000, "m")
    assert placed[1] == found.hospital_end[0]
    assert placed[2] == found.hospital_start[1]
    assert placed[3] == found.unit_start[1] + np.timedelta64(900_000, "m")
    assert np.isnat(placed[4])


def test_ages_above_89_are_90_and_clock_times_may_be_missing(stays_of):
    found = stays_of(stay(1, "A", age="> 89"), stay(2, "B", age="x"), stay(3, "C", age="0"))
    assert found.age[[0, 2]].tolist() == [90, 0]
    assert np.isnan(found.age[1])


def test_who_died_is_known_of_the_unit_or_of_the_hospital(stays_of):
    found = stays_of(
        stay(1, "A", status="Expired"),
        stay(2, "B", status="", unit_status="Expired"),
        stay(3, "C", status=""),
        stay(4, "D"),
    )
    died, known = found.died()
    assert died.tolist() == [True, True, False, False]
    assert known.tolist() == [True, True, False, True]
