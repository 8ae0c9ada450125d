import numpy as np
import pytest
from made_up.omop import visit

from ehr_ray.sources.omop.persons import open_visits, person_events, visit_events


def test_a_death_with_a_date_alone_stands_at_the_end_of_the_visit_on_that_day(persons_of):
    found = persons_of(
        {
            "person": [f"person_id={i}" for i in (1, 2, 3, 4)],
            "visit_occurrence": [
                visit(1, 11, "2020-01-01 08:00:00", "2020-01-03 09:00:00"),
                visit(2, 21, "2020-01-01 08:00:00", "2020-01-02 09:00:00"),
            ],
            "death": [
                "person_id=1,death_date=2020-01-03",
                "person_id=2,death_date=2020-01-03,death_datetime=2020-01-03 00:00:00",
                "person_id=3,death_date=2020-01-03,death_datetime=2020-01-03 04:30:00",
            ],
        }
    )
    assert [str(time) for time in found.death] == [
        "2020-01-03T09:00:00.000000",
        "2020-01-03T23:59:59.000000",
        "2020-01-03T04:30:00.000000",
        "NaT",
    ]
    assert found.admissions.died.tolist() == [True, False]


def test_a_discharge_as_dead_is_a_death_in_hospital_without_a_row_in_death(persons_of):
    found = persons_of(
        {
            "visit_occurrence": [
                visit(1, 11, "2020-01-01", "2020-01-03", discharged_to_concept_id=4216643),
                visit(2, 21, "2020-01-01", "2020-01-03", concept=9202),
            ],
            "death": [],
        }
    )
    assert found.admissions.died.tolist() == [True]
    assert found.admissions.death[0] == found.end[0]
    assert np.isnat(found.death).all()


@pytest.mark.parametrize("end", ["", "2019-12-31 09:00:00", "2019-12-31"])
def test_no_end_is_made_up_for_a_visit_that_has_none(persons_of, end):
    found = persons_of(
        {
            "visit_occurrence": [
                visit(1, 11, "2020-01-01 08:00:00", end),
                visit(1, 13, "2020-02-01", end, concept=9202),
                visit(99, 12, "2020-01-01", "2020-01-02"),
            ]
        }
    )
    rows = [(r["subject_id"], str(r["time"]), r["code"]) for r in visit_events(found).to_pylist()]
    assert rows == [
        (1, "2020-01-01 08:00:00", "HOSPITAL_ADMISSION//9201"),
        (1, "2020-02-01 00:00:00", "VISIT_START//9202"),
    ]
    assert open_visits(found) == 2
    assert found.admissions.ended.tolist() == [False, True]
    _, there = found.visit_of(np.array([1, 1]), np.array([11, 12]))
    assert there.tolist() == [True, False]


def test_births_are_told_as_far_as_they_are_known(persons_of):
    found = persons_of(
        {
            "person": [
                "person_id=1,year_of_birth=1960,month_of_birth=2,day_of_birth=30",
                "person_id=2,year_of_birth=1960,month_of_birth=2",
                "person_id=3,year_of_birth=1960,birth_datetime=1961-05-06 07:08:00",
                "person_id=4",
            ]
        }
    )
    born = [r for r in person_events(found).to_pylist() if r["code"] == "MEDS_BIRTH"]
    assert [str(row["time"])[:10] for row in born] == ["1960-03-01", "1960-02-01", "1961-05-06"]
