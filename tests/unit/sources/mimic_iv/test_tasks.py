import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.mimic_iv.options import MimicIvOptions
from ehr_ray.sources.mimic_iv.table_units import load
from ehr_ray.sources.mimic_iv.tasks import labels


def stay(hadm, start, end, *, subject=1, death="", died=None):
    died = bool(death) if died is None else died
    return {
        "subject_id": subject,
        "hadm_id": hadm,
        "admittime": start,
        "dischtime": end,
        "deathtime": death,
        "hospital_expire_flag": int(died),
    }


@pytest.fixture
def made(tmp_path, write_mimic):
    """Label rows as (subject, prediction time, value) by task."""

    def run(*admissions, dod="", icu=(), **options):
        subjects = sorted({row["subject_id"] for row in admissions})
        tables = {
            "hosp/patients": [f"{i},F,60,2150,2011 - 2013,{dod}" for i in subjects],
            "hosp/admissions": admissions,
            "icu/icustays": icu,
        }
        write_mimic(tmp_path, tables)
        chosen = MimicIvOptions(**options)
        registry = load(str(tmp_path), "hosp/patients.csv", "hosp/admissions.csv", chosen)
        found = labels(registry, chosen, str(tmp_path), "icu/icustays.csv")
        return {
            task: [
                (r["subject_id"], str(r["prediction_time"]), r[table.column_names[-1]])
                for r in table.to_pylist()
            ]
            for task, table in found.items()
        }

    return run


def test_death_and_stay_are_predicted_48_hours_after_the_first_admission(made):
    found = made(
        stay(1, "2150-01-01 08:00:00", "2150-01-08 08:00:01"),
        stay(2, "2151-01-01 08:00:00", "2151-01-09", death="2151-01-09"),
        stay(3, "2150-05-01", "2150-05-08", subject=2),
        stay(4, "2150-05-01", "2150-05-04 12:00:00", subject=3, death="2150-05-04 11:00:00"),
        stay(5, "2150-05-01", "2150-05-04 12:00:00", subject=4, died=True),
    )
    assert found["mortality"] == [
        (1, "2150-01-03 08:00:00", False),
        (2, "2150-05-03 00:00:00", False),
        (3, "2150-05-03 00:00:00", True),
        (4, "2150-05-03 00:00:00", True),
    ]
    assert [value for *_, value in found["length_of_stay_7d"]] == [True, False, False, False]
    assert [row[:2] for row in found["length_of_stay_7d"]] == [r[:2] for r in found["mortality"]]


def test_the_length_of_stay_is_a_task_in_days_and_classes_where_it_is_asked_for(made):
    admissions = (
        stay(1, "2150-01-01", "2150-01-03 12:00:00"),
        stay(2, "2150-01-01", "2150-01-04", subject=2),
        stay(3, "2150-01-01", "2150-01-08", subject=3),
        stay(4, "2150-01-01", "2150-01-08 06:00:00", subject=4, died=True),
        stay(5, "2150-01-01", "2150-01-02", subject=5),
    )
    found = made(*admissions, tasks="length_of_stay")
    assert [value for *_, value in found["length_of_stay"]] == [2.5, 3.0, 7.0, 7.25]
    assert [value for *_, value in found["length_of_stay_class"]] == ["<3", "3-7", "3-7", ">7"]
    for task in ("length_of_stay", "length_of_stay_class"):
        assert [row[:2] for row in found[task]] == [row[:2] for row in found["mortality"]]
    assert not {"length_of_stay", "length_of_stay_class"} & set(made(*admissions))


@pytest.mark.parametrize("tasks", ["icd,other.csv", ",", ""])
def test_tasks_that_name_nothing_or_two_tables_are_refused(tasks):
    with pytest.raises(InputError, match="--tasks"):
        MimicIvOptions(tasks=tasks)


@pytest.mark.parametrize(
    "ended",
    [
        stay(1, "2150-01-01", "2150-01-02 10:00:00", death="2150-01-02 10:00:00"),
        stay(1, "2150-01-01", "2150-01-05", death="2150-01-02 10:00:00"),
        stay(1, "2150-01-01", "2150-01-03", death="2150-01-03"),
        stay(1, "2150-01-01", "2150-01-02 10:00:00"),
        stay(1, "2150-01-01", "2150-01-03"),
        stay(1, "2150-01-01", "2149-12-31"),
    ],
    ids=["died", "died, discharged later", "died then", "home", "home then", "mistyped"],
)
def test_who_is_dead_or_gone_by_then_has_no_label(made, ended):
    found = made(ended)
    assert found["mortality"] == found["length_of_stay_7d"] == []


def test_the_hours_are_an_option(made):
    first = stay(1, "2150-01-01", "2150-01-02 10:00:00", death="2150-01-02 10:00:00")
    assert made(first, label_hours=24.0)["mortality"] == [(1, "2150-01-02 00:00:00", True)]
    assert made(first, label_hours=0.5)["mortality"] == [(1, "2150-01-01 00:30:00", True)]


def test_the_start_may_be_the_first_icu_stay(made):
    found = made(
        stay(1, "2150-01-01", "2150-01-05"),
        stay(2, "2151-01-01", "2151-01-12", death="2151-01-12"),
        stay(3, "2150-01-01", "2150-01-09", subject=2),
        icu=[
            "1,2,22,SICU,SICU,2151-01-08 00:00:00,2151-01-09 00:00:00,1",
            "1,2,21,MICU,MICU,2151-01-06 00:00:00,2151-01-07 00:00:00,1",
            "1,99,20,MICU,MICU,2149-01-06 00:00:00,2149-01-07 00:00:00,1",
        ],
        label_start="icu",
    )
    assert found["mortality"] == [(1, "2151-01-08 00:00:00", True)]
    assert found["length_of_stay_7d"] == [(1, "2151-01-08 00:00:00", False)]


def test_without_icu_stays_nobody_starts_there(made):
    found = made(stay(1, "2150-01-01", "2150-01-09"), label_start="icu")
    assert found["mortality"] == []


def test_readmission_is_predicted_at_each_discharge(made):
    found = made(
        stay(1, "2150-01-01", "2150-01-05 12:00:00"),
        stay(2, "2150-02-04 12:00:00", "2150-02-06"),
        stay(3, "2150-03-09", "2150-03-10"),
        stay(4, "2150-03-11", "2150-03-12", subject=2),
    )
    assert found["readmission_30d"] == [
        (1, "2150-01-05 12:00:00", True),  # to the second 30 days
        (1, "2150-02-06 00:00:00", False),  # 31 days
        (1, "2150-03-10 00:00:00", False),  # another's admission is none
        (2, "2150-03-12 00:00:00", False),
    ]


def test_who_died_in_an_admission_has_no_readmission(made):
    found = made(
        stay(1, "2150-01-01", "2150-01-05"),
        stay(2, "2150-01-10", "2150-01-12", death="2150-01-12 03:00:00"),
        stay(3, "2150-01-01", "2150-01-05", subject=2, died=True),
    )
    assert found["readmission_30d"] == [(1, "2150-01-05 00:00:00", True)]


def test_death_at_home_on_the_day_of_discharge_comes_after_it(made):
    found = made(stay(1, "2150-01-01", "2150-01-05 12:00:00"), dod="2150-01-05")
    assert found["readmission_30d"] == [(1, "2150-01-05 12:00:00", False)]


def test_a_discharge_into_another_admission_is_none(made):
    found = made(
        stay(1, "2150-01-01", "2150-01-20"),
        stay(2, "2150-01-03", "2150-01-05"),
        stay(3, "2150-01-20", "2150-01-25"),
        stay(4, "2150-02-01", "2150-02-02"),
    )
    assert found["readmission_30d"] == [
        (1, "2150-01-25 00:00:00", True),
        (1, "2150-02-02 00:00:00", False),
    ]


def test_only_kept_subjects_have_labels(made):
    found = made(
        stay(1, "2150-01-01", "2150-01-05"),
        stay(2, "2150-01-10", "2150-01-15"),
        stay(3, "2150-01-01", "2150-01-05", subject=2),
        min_seq_length=2,
    )
    assert {row[0] for rows in found.values() for row in rows} == {1}


@pytest.mark.parametrize("death", ["2149-01-06 10:00:00", "2150-06-06", "1950-01-06"])
def test_a_mistyped_death_time_is_the_discharge_of_who_died(made, death):
    """Before the admission it took the patient, a positive, out of the labels."""
    found = made(stay(1, "2150-01-01", "2150-01-06", death=death))
    assert found["mortality"] == [(1, "2150-01-03 00:00:00", True)]
    assert found["readmission_30d"] == []


def test_a_death_time_far_from_an_admission_left_alive_is_none(made):
    found = made(stay(1, "2150-01-01", "2150-01-06", death="2151-01-06", died=False))
    assert found["mortality"] == [(1, "2150-01-03 00:00:00", False)]
    assert found["readmission_30d"] == [(1, "2150-01-06 00:00:00", False)]


def test_a_date_of_death_before_a_discharge_alive_takes_no_label_away(made):
    found = made(
        stay(1, "2150-01-01", "2150-01-06"), stay(2, "2150-01-20", "2150-01-22"), dod="2149-12-01"
    )
    assert found["mortality"] == [(1, "2150-01-03 00:00:00", False)]
    assert found["readmission_30d"] == [
        (1, "2150-01-06 00:00:00", True),
        (1, "2150-01-22 00:00:00", False),
    ]


@pytest.mark.parametrize("inner", ["2150-01-03", "2150-01-01"], ids=["later", "at the same time"])
def test_an_admission_inside_another_is_part_of_it(made, inner):
    """The record of a unit: who dies in it dies in the admission that holds it, which is longer."""
    found = made(
        stay(1, inner, "2150-01-09", death="2150-01-09"),
        stay(2, "2150-01-01", "2150-01-10", died=False),
    )
    assert found["mortality"] == [(1, "2150-01-03 00:00:00", True)]
    assert found["length_of_stay_7d"] == [(1, "2150-01-03 00:00:00", True)]


def test_the_icu_stay_of_an_admission_inside_another_is_about_the_outer_one(made):
    found = made(
        stay(1, "2150-01-02", "2150-01-07"),
        stay(2, "2150-01-01", "2150-01-20", death="2150-01-20"),
        stay(3, "2150-01-02", "2150-01-07", subject=2),
        icu=[
            "1,1,21,MICU,MICU,2150-01-03 00:00:00,2150-01-05 00:00:00,1",
            "2,3,22,MICU,MICU,2150-01-03 00:00:00,2150-01-05 00:00:00,1",
        ],
        label_start="icu",
    )
    assert found["mortality"] == [
        (1, "2150-01-05 00:00:00", True),
        (2, "2150-01-05 00:00:00", False),
    ]
