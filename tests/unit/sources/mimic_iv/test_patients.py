import pytest

from ehr_ray.sources.mimic_iv.options import MimicIvOptions
from ehr_ray.sources.mimic_iv.patients import people
from ehr_ray.sources.mimic_iv.table_units import load


@pytest.fixture
def events(tmp_path, write_mimic):
    def run(patients, admissions, **options):
        write_mimic(tmp_path, {"hosp/patients": patients, "hosp/admissions": admissions})
        files = ("hosp/patients.csv", "hosp/admissions.csv")
        table = people(load(str(tmp_path), *files, MimicIvOptions(**options)))
        return sorted(
            (r["subject_id"], r["code"], str(r["time"]), r["numeric_value"])
            for r in table.to_pylist()
        )

    return run


def stay(subject, hadm, start, end):
    return f"subject_id={subject},hadm_id={hadm},admittime={start},dischtime={end}"


def test_age_is_that_of_the_first_admission_and_static(events):
    rows = events(
        ["7,F,60,2150,2011 - 2013,", "8,,40,2120,2011 - 2013,2125-03-04"],
        [
            stay(7, 2, "2155-05-01", "2155-05-02"),
            stay(7, 1, "2153-12-31 23:00:00", "2154-01-02"),
            stay(8, 3, "2119-01-01", "2119-01-02"),
        ],
    )
    assert rows == [
        (7, "AGE", "None", 63.0),
        (7, "GENDER//F", "None", None),
        (7, "MEDS_BIRTH", "2090-01-01 00:00:00", None),
        (8, "AGE", "None", 39.0),
        (8, "GENDER//UNK", "None", None),
        (8, "MEDS_BIRTH", "2080-01-01 00:00:00", None),
        (8, "MEDS_DEATH", "2125-03-04 23:59:59", None),
    ]


def test_who_is_not_kept_leaves_nothing_and_who_was_never_admitted_has_no_age(events):
    patients = ["7,F,60,2150,2011 - 2013,", "9,M,30,2150,2011 - 2013,"]
    admissions = [stay(7, 1, "2150-01-01", "2150-01-02")]
    assert {row[0] for row in events(patients, admissions)} == {7}
    rows = events(patients, admissions, min_seq_length=0)
    assert [row[1] for row in rows if row[0] == 9] == ["GENDER//M", "MEDS_BIRTH"]
