from made_up.eicu import stay

from ehr_ray.sources.eicu.patients import hospital_codes, patient_events


def test_a_hospital_stay_is_told_once_and_statics_are_of_the_first_stay(stays_of):
    stays = stays_of(
        stay(2, "A", hospital_stay=1, admit=-5000, visit=2, age=70),
        stay(1, "A", hospital_stay=1, age=70),
        stay(3, "A", year=2015, age=71, hospital=60),
    )
    events = patient_events(stays, {58: ("HOSPITAL_REGION//West",)}).to_pylist()
    codes = sorted(row["code"] for row in events if row["time"] is None)
    assert codes == [
        *("AGE", "ETHNICITY//Asian", "GENDER//F", "HOSPITAL//58", "HOSPITAL//60"),
        "HOSPITAL_REGION//West",
    ]
    kinds = [row["code"].split("//")[0] for row in events]
    assert kinds.count("HOSPITAL_ADMISSION") == kinds.count("HOSPITAL_DISCHARGE") == 2
    assert kinds.count("UNIT_ADMISSION") == kinds.count("UNIT_DISCHARGE") == 3
    assert [row["numeric_value"] for row in events if row["code"] == "AGE"] == [70]


def test_a_stay_without_a_hospital_is_kept_without_its_code(stays_of):
    stays = stays_of(stay(1, "A", hospital=""), stay(2, "B", hospital=60))
    events = patient_events(stays, {60: ("HOSPITAL_REGION//West",)}).to_pylist()
    assert [r["code"] for r in events if r["code"].startswith("HOSPITAL//")] == ["HOSPITAL//60"]
    kinds = [row["code"].split("//")[0] for row in events]
    assert kinds.count("HOSPITAL_REGION") == 1
    assert kinds.count("UNIT_ADMISSION") == kinds.count("GENDER") == 2


def test_death_stands_where_it_was_and_once(stays_of):
    stays = stays_of(
        stay(1, "A", hospital_stay=1, status="Expired", out=2000),
        stay(2, "A", hospital_stay=1, admit=-100, status="Expired", out=1960, visit=2, end=90),
        stay(3, "B", status="Expired", unit_status="Expired", end=500, out=600),
    )
    deaths = [r for r in patient_events(stays, {}).to_pylist() if r["code"] == "MEDS_DEATH"]
    assert sorted(str(row["time"]) for row in deaths) == [
        "2014-01-02 05:20:00",
        "2014-01-03 06:20:00",
    ]


def test_no_end_is_made_up_for_a_stay_that_ends_before_it_begins(stays_of):
    stays = stays_of(
        stay(1, "A", end=-60, status="Expired", unit_status="Expired"),
        stay(2, "B", out=-9000),
        stay(3, "C", out=-9000, end=-60, status="Expired", unit_status="Expired"),
        stay(4, "D", out=-9000, status="Expired"),
    )
    assert stays.open_visits() == 4
    name = dict(zip(stays.subject.tolist(), "ABCD", strict=True))
    found = [
        (name[row["subject_id"]], row["code"].split("//")[0])
        for row in patient_events(stays, {}).to_pylist()
        if "_DISCHARGE//" in row["code"] or row["code"] == "MEDS_DEATH"
    ]
    assert sorted(found) == [
        *(("A", "HOSPITAL_DISCHARGE"), ("A", "MEDS_DEATH")),
        *(("B", "UNIT_DISCHARGE"), ("D", "UNIT_DISCHARGE")),
    ]


def test_what_is_not_known_of_a_hospital_is_left_out():
    assert hospital_codes("UNK", "t", "UNK") == ("HOSPITAL_TEACHING//t",)
