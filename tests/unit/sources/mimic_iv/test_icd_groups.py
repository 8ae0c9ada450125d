import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.label_tasks import canonical_task
from ehr_ray.sources.mimic_iv.icd_groups import SHIPPED, groups_file, read_groups
from ehr_ray.sources.mimic_iv.options import MimicIvOptions
from ehr_ray.sources.mimic_iv.reader import read, units


def admission(subject, hadm, start, end):
    row = {"subject_id": subject, "hadm_id": hadm, "admittime": start, "dischtime": end}
    return {**row, "hospital_expire_flag": 0}


@pytest.fixture
def made(tmp_path, write_mimic):
    """Label rows as (subject, prediction time, value) by task: made(codes, admissions, tasks)."""

    def run(diagnoses, *admissions, tasks=SHIPPED):
        subjects = sorted({row["subject_id"] for row in admissions})
        tables = {
            "hosp/patients": [f"{i},F,60,2150,2011 - 2013," for i in subjects],
            "hosp/admissions": admissions,
            "hosp/diagnoses_icd": diagnoses,
        }
        write_mimic(tmp_path, tables)
        options = MimicIvOptions(tasks=None if tasks is None else str(tasks))
        (chunk,) = read(units(tmp_path, options)[-1], options)
        return {
            task: [
                (r["subject_id"], str(r["prediction_time"]), r["boolean_value"])
                for r in table.to_pylist()
            ]
            for task, table in chunk.labels.items()
        }

    return run


STAYS = (
    admission(1, 11, "2150-01-01", "2150-01-08"),
    admission(1, 12, "2151-01-01", "2151-01-09"),
    admission(2, 21, "2150-05-01", "2150-05-09"),
    admission(2, 22, "2150-05-03", "2150-05-04"),
    admission(3, 31, "2150-05-01", "2150-05-09"),
    admission(4, 41, "2150-05-01", "2150-05-02"),
)


def test_groups_are_labels_of_the_admission_by_version_and_beginning_of_its_codes(made):
    codes = [
        "1,11,1,4280,9",  # heart failure
        "1,12,1,A419,10",  # sepsis, in an admission that nothing is asked of
        "2,21,1,I10,10",
        "2,22,1,I5021 ,10",  # heart failure, in an admission inside the other
        "2,21,2,41001,10",  # a code of ICD-9's heart attacks, which ICD-10 has not
        "4,41,1,4280,9",  # discharged before the time of prediction
    ]
    found = made(codes, *STAYS)
    assert found["heart_failure"] == [
        (1, "2150-01-03 00:00:00", True),
        (2, "2150-05-03 00:00:00", True),
    ]
    assert found["sepsis"] == [
        (1, "2150-01-03 00:00:00", False),
        (2, "2150-05-03 00:00:00", False),  # subject 3 was billed nothing
    ]
    assert not any(value for *_, value in found["myocardial_infarction"])
    assert len(found["mortality"]) == 3
    assert set(made(codes, *STAYS, tasks=None)) == {
        "mortality",
        "length_of_stay_7d",
        "readmission_30d",
    }


def test_a_table_of_ones_own_has_its_own_tasks(made, tmp_path):
    table = tmp_path / "own.csv"
    table.write_text(
        "task,version,prefix,note\nasthma,10,J45,\nasthma,9,493,old\nshock,10,r57.0,\n"
    )
    found = made(["1,11,1,49390,9", "2,21,1,R570,10", "3,31,1,J189,10"], *STAYS, tasks=table)
    assert [value for *_, value in found["asthma"]] == [True, False, False]
    assert [value for *_, value in found["shock"]] == [False, True, False]
    assert "sepsis" not in found


def test_the_groups_that_are_shipped_can_be_read_and_are_no_other_task():
    groups = read_groups(groups_file(SHIPPED))
    assert {"sepsis", "heart_failure", "diabetes"} <= set(groups)
    assert [canonical_task(task) for task in groups] == [*groups]
    for prefixes in groups.values():
        assert {prefix.partition("//")[0] for prefix in prefixes} == {"9", "10"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task,version\nx,10\n", "no column prefix"),
        ("task,version,prefix\nx,11,A\n", "line 2: needs a task, version 9 or 10"),
        ("task,version,prefix\nx,10,\n", "line 2: needs a task"),
        ("task,version,prefix\nmortality,10,A\n", "line 2: mortality has labels of its own"),
        ("task,version,prefix\n", "no rows"),
    ],
)
def test_a_table_that_is_none_is_refused(text, message, tmp_path):
    (tmp_path / "own.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_groups(tmp_path / "own.csv")


def test_without_the_table_or_the_diagnoses_it_is_refused_before_anything_is_read(
    write_mimic, tmp_path
):
    with pytest.raises(InputError, match=r"none\.csv: unreadable"):
        read_groups(tmp_path / "none.csv")
    write_mimic(tmp_path, {"hosp/patients": [], "hosp/admissions": []})
    (tmp_path / "hosp" / "diagnoses_icd.csv").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"--tasks icd: no hosp/diagnoses_icd\.csv in"):
        units(tmp_path, MimicIvOptions(tasks=SHIPPED))
