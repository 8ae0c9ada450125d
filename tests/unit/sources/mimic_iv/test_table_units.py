import numpy as np
import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.mimic_iv.options import MimicIvOptions
from ehr_ray.sources.mimic_iv.table_units import day_end, load, read_patients, select

FILES = ("hosp/patients.csv", "hosp/admissions.csv")


def admission(subject, hadm, start, end, death="", died=0):
    return {
        "subject_id": subject,
        "hadm_id": hadm,
        "admittime": start,
        "dischtime": end,
        "deathtime": death,
        "hospital_expire_flag": died,
    }


def patient(subject, dod=""):
    return f"{subject},F,60,2150,2011 - 2013,{dod}"


@pytest.fixture
def registry(tmp_path, write_mimic):
    def run(patients, admissions, **options):
        write_mimic(tmp_path, {"hosp/patients": patients, "hosp/admissions": admissions})
        return load(str(tmp_path), *FILES, MimicIvOptions(**options))

    return run


@pytest.fixture
def many(registry):
    """200 patients, the i-th with i % 5 admissions of 5 * (i % 5) hours."""

    def run(**options):
        admissions = [
            admission(i, 1000 * i + k, f"215{k}-01-01", f"215{k}-01-01 {5 * (i % 5):02}:00:00")
            for i in range(1, 201)
            for k in range(i % 5)
        ]
        found = registry([patient(i) for i in range(1, 201)], admissions, **options)
        return found, set(found.subject[found.kept].tolist())

    return run


def test_admissions_are_found_by_subject_and_number(registry):
    found = registry(
        [patient(2), patient(1)],
        [
            admission(2, 5, "2150-01-01", "2150-01-02"),
            admission(1, 9, "2150-03-01", "2150-03-02"),
            admission(1, 7, "2150-02-01", "2150-02-02"),
        ],
    )
    assert found.subject.tolist() == [1, 2]
    assert found.admissions.hadm.tolist() == [7, 9, 5]
    row, known = found.admissions.find(np.array([1, 2, 2, 1]), np.array([9, 5, 7, 100]))
    assert known.tolist() == [True, True, False, False]
    assert row[:2].tolist() == [1, 2]


def test_who_is_known_and_kept(registry):
    found = registry([patient(1), patient(5)], [admission(5, 1, "2150-01-01", "2150-01-02")])
    known, kept = found.look_up(np.array([0, 1, 3, 5, 9]))
    assert known.tolist() == [False, True, False, True, False]
    assert kept.tolist() == [False, False, False, True, False]


def test_a_sample_is_the_same_every_time_nested_and_about_its_share(many):
    _, half = many(sample_frac=0.5)
    _, quarter = many(sample_frac=0.25)
    assert many(sample_frac=0.5)[1] == half
    assert quarter < half
    assert 50 < len(half) < 110


def test_a_sample_does_not_depend_on_who_else_is_there(registry):
    ids = list(range(1, 101))
    rows = {i: admission(i, i, "2150-01-01", "2150-01-02") for i in ids}
    every = registry([patient(i) for i in ids], list(rows.values()), sample_frac=0.3)
    odd = registry([patient(i) for i in ids[::2]], [rows[i] for i in ids[::2]], sample_frac=0.3)
    kept = set(every.subject[every.kept].tolist())
    assert set(odd.subject[odd.kept].tolist()) == {i for i in kept if i % 2 == 1}


def test_patients_never_admitted_are_left_out_unless_asked_for(many):
    assert len(many()[1]) == 160
    assert len(many(min_seq_length=0)[1]) == 200


def test_short_histories_are_left_out_by_admissions_or_hours(many):
    assert {i % 5 for i in many(min_seq_length=3)[1]} == {3, 4}
    assert {i % 5 for i in many(min_seq_length=15, seq_unit="hours")[1]} == {3, 4}
    assert {i % 5 for i in many(min_seq_length=16, seq_unit="hours")[1]} == {4}


def test_at_most_so_many_admissions_in_whole_subjects(many):
    _, fifty = many(max_admissions=50)
    _, hundred = many(max_admissions=100)
    assert fifty < hundred
    assert 46 < sum(i % 5 for i in fifty) <= 50
    assert 96 < sum(i % 5 for i in hundred) <= 100
    assert len(many(max_admissions=1000)[1]) == 160


def test_nobody_left_says_why(many):
    with pytest.raises(
        InputError, match=r"none of 200 patients .*--min-seq-length 7 .*longest is 4"
    ):
        many(min_seq_length=7)


def test_select_is_a_pure_function_of_the_registry(many):
    found, kept = many(sample_frac=0.5)
    again = select(found, MimicIvOptions(sample_frac=0.5))
    assert set(found.subject[again].tolist()) == kept


def test_death_in_hospital_is_to_the_minute_and_elsewhere_at_the_end_of_the_day(registry):
    found = registry(
        [patient(1, "2150-01-02"), patient(2, "2150-01-02"), patient(3), patient(4, "2150-01-02")],
        [
            admission(1, 1, "2150-01-01", "2150-01-02 16:00:00", "2150-01-02 15:30:00", 1),
            admission(2, 2, "2150-01-01", "2150-01-02 16:00:00"),
            admission(3, 3, "2150-01-01", "2150-01-02 16:00:00", died=1),
            admission(4, 4, "2150-01-01", "2150-01-09 16:00:00"),
        ],
    )
    assert [str(time) for time in found.death().astype("datetime64[s]")] == [
        "2150-01-02T15:30:00",
        "2150-01-02T23:59:59",
        "2150-01-02T16:00:00",
        "2150-01-09T23:59:59",  # dead before the discharge by the register alone: never too early
    ]
    assert found.admissions.died.tolist() == [True, False, True, False]


def test_the_end_of_a_day():
    days = np.array(["2150-01-02T05:00", "2150-02-28", "NaT"], "datetime64[us]")
    expected = np.array(["2150-01-02T23:59:59", "2150-02-28T23:59:59", "NaT"], "datetime64[us]")
    np.testing.assert_array_equal(day_end(days), expected)


def test_an_end_before_the_start_is_not_known(registry):
    found = registry([patient(1)], [admission(1, 1, "2150-01-02 10:00:00", "2150-01-02 09:00:00")])
    assert found.admissions.end == found.admissions.start


def test_bad_patients_are_quarantined(tmp_path, write_mimic):
    rows = [patient(1), "1,M,50,2150,x,", "2,F,old,2150,x,", "3,F,60,,x,", patient(4, "soon")]
    write_mimic(tmp_path, {"hosp/patients": rows})
    found, chunk = read_patients(str(tmp_path), FILES[0])
    assert found.subject.tolist() == [1]
    assert found.birth_year.tolist() == [2090]
    assert chunk.rows_read == 5
    assert sorted((row["line"], row["reason"]) for row in chunk.rejects.to_pylist()) == [
        (3, "subject_id again"),
        (4, "anchor_age 'old' is not a finite number"),
        (5, "anchor_year is blank"),
        (6, "dod 'soon' is not a time"),
    ]


def test_a_damaged_file_is_an_error_that_names_it(tmp_path, write_mimic):
    write_mimic(tmp_path, gz=True)
    path = tmp_path / "hosp/admissions.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"admissions\.csv\.gz: .*"):
        load(str(tmp_path), "hosp/patients.csv.gz", "hosp/admissions.csv.gz", MimicIvOptions())
