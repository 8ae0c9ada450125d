import pytest

from ehr_ray.sources.mimic_iv.events import block_events
from ehr_ray.sources.mimic_iv.options import MimicIvOptions
from ehr_ray.sources.mimic_iv.table_units import load
from ehr_ray.sources.mimic_iv.tables import BY_NAME, timed
from ehr_ray.sources.parsing.blocks import read_blocks


@pytest.fixture
def events(tmp_path, write_mimic):
    """The events of some rows of a table, and what was refused of them."""

    def run(name, *rows, lab_time="chart"):
        write_mimic(tmp_path, {name: rows})
        form = timed(BY_NAME[name], lab_time)
        files = ("hosp/patients.csv", "hosp/admissions.csv")
        registry = load(str(tmp_path), *files, MimicIvOptions())
        found, refused = [], []
        for block in read_blocks(str(tmp_path), name + ".csv", form, registry):
            table = block_events(block, form, registry)
            found += [(str(r["time"]), r["code"], r["numeric_value"]) for r in table.to_pylist()]
            refused += [(r["line"], r["reason"]) for r in block.rejects.table().to_pylist()]
        return found, refused

    return run


def test_a_diagnosis_is_known_after_discharge_and_not_at_it(events):
    found, refused = events("hosp/diagnoses_icd", "1,11,1,4019,9", "2,21,1, 0389 ,9")
    assert found == [
        ("2151-01-05 12:00:01", "DIAGNOSIS//ICD//9//4019", None),
        ("2121-01-20 16:00:01", "DIAGNOSIS//ICD//9//0389", None),
    ]
    assert refused == []


def test_a_diagnosis_of_an_unknown_admission_or_anothers_is_refused(events):
    found, refused = events(
        "hosp/diagnoses_icd", "1,11,1,4019,9", "1,21,1,4019,9", "2,99,1,4019,9", "2,,1,4019,9"
    )
    assert len(found) == 1
    assert sorted(refused) == [
        (3, "hadm_id 21 of subject_id 1 is not in hosp/admissions"),
        (4, "hadm_id 99 of subject_id 2 is not in hosp/admissions"),
        (5, "hadm_id is blank"),
    ]


def test_a_procedure_stands_at_the_end_of_its_day_or_after_discharge_on_it(events):
    found, refused = events(
        "hosp/procedures_icd",
        "1,11,1,2151-01-02,3961,9",
        "1,11,2,2151-01-05,3961,9",
        "1,77,2,2151-01-05,3961,9",
    )
    assert [time for time, _, _ in found] == [
        "2151-01-02 23:59:59",
        "2151-01-05 12:00:01",
        "2151-01-05 23:59:59",
    ]
    assert refused == []


def test_an_infusion_starts_with_its_rate_and_ends_with_its_amount(events):
    found, _ = events(
        "icu/inputevents",
        "subject_id=2,starttime=2121-01-11 06:00:00,endtime=2121-01-11 08:00:00,itemid=221906,"
        "amount=2.5,amountuom=mg,rate=0.25,rateuom=mcg/kg/min",
    )
    assert found == [
        ("2121-01-11 06:00:00", "INFUSION_START//221906//mcg/kg/min", 0.25),
        ("2121-01-11 08:00:00", "INFUSION_END//221906//mg", 2.5),
    ]


def test_an_end_mistyped_before_its_start_moves_to_it_and_a_blank_one_is_none(events):
    found, _ = events(
        "hosp/prescriptions",
        "subject_id=1,starttime=2151-01-02 12:00:00,stoptime=2151-01-01 12:00:00,drug=A",
        "subject_id=1,starttime=2151-01-02 12:00:00,drug=B",
        "subject_id=1,stoptime=2151-01-03 12:00:00",
    )
    assert found == [
        ("2151-01-02 12:00:00", "MEDICATION//START//A", None),
        ("2151-01-02 12:00:00", "MEDICATION//START//B", None),
        ("2151-01-02 12:00:00", "MEDICATION//STOP//A", None),
        ("2151-01-03 12:00:00", "MEDICATION//STOP//UNK", None),
    ]


def test_units_are_part_of_the_code_and_item_ids_may_be_floats(events):
    found, _ = events(
        "hosp/labevents",
        "subject_id=1,charttime=2151-01-02 06:00:00,itemid=50912,valuenum=1.5,valueuom=mg/dL",
        "subject_id=1,charttime=2151-01-02 06:00:00,itemid=50912.0,valuenum=1.5,valueuom= ",
        "subject_id=1,charttime=2151-01-02 06:00:00,itemid=50880",
    )
    assert [row[1:] for row in found] == [
        ("LAB//50912//mg/dL", 1.5),
        ("LAB//50912//UNK", 1.5),
        ("LAB//50880//UNK", None),
    ]


LABS = (
    "subject_id=1,charttime=2151-01-02 06:00:00,storetime=2151-01-02 07:30:00,itemid=1,valuenum=5",
    "subject_id=1,charttime=2151-01-02 06:00:00,itemid=2,valuenum=5",
    "subject_id=1,charttime=2151-01-02 06:00:00,storetime=2151-01-01 00:00:00,itemid=3,valuenum=5",
)


def test_a_laboratory_test_counts_from_its_specimen_or_from_its_result(events):
    drawn, _ = events("hosp/labevents", *LABS)
    known, _ = events("hosp/labevents", *LABS, lab_time="store")
    assert [time[11:] for time, *_ in drawn] == ["06:00:00"] * 3
    assert [time[11:] for time, *_ in known] == ["07:30:00", "06:00:00", "06:00:00"]


@pytest.mark.parametrize("name", ["hosp/labevents", "icu/chartevents"])
def test_an_inequality_in_the_words_of_a_blank_number_is_its_value(events, name):
    row = "subject_id=2,charttime=2121-01-11 04:00:00,itemid={},value={},valuenum={},valueuom=mg"
    cells = [(1, ">100", ""), (2, " < 0.01", ""), (3, "GREATER THAN 500", ""), (4, ">100", "99")]
    found, refused = events(name, *(row.format(*cell) for cell in cells))
    assert [value for *_, value in found] == pytest.approx([100, 0.01, 500, 99])
    assert refused == []


def test_words_that_are_no_inequality_stay_words(events):
    row = "subject_id=2,charttime=2121-01-11 04:00:00,itemid={},value={}"
    words = ["> baseline", "___", "0-2", "12"]
    rows = [row.format(i, text) for i, text in enumerate(words)]
    assert [value for *_, value in events("hosp/labevents", *rows)[0]] == [None] * 4
    assert events("icu/chartevents", *rows) == ([], [])


def test_a_discharge_mistyped_before_its_admission_moves_to_the_death_in_it(events):
    """At the admission it would tell, in the first minute, where it was to: DIED."""
    stay = (
        "subject_id={},hadm_id={},admittime=2150-05-01 08:00:00,dischtime=2149-05-09,"
        "deathtime={},discharge_location={},hospital_expire_flag={}"
    )
    found, _ = events(
        "hosp/admissions",
        stay.format(1, 1, "2150-05-09 10:00:00", "DIED", 1),
        stay.format(2, 2, "", "HOME", 0),
    )
    assert [row[:2] for row in found if row[1].startswith("HOSPITAL_DISCHARGE")] == [
        ("2150-05-09 10:00:00", "HOSPITAL_DISCHARGE//DIED"),
    ]


def test_a_diagnosis_of_an_admission_without_a_known_end_is_left_out(tmp_path, write_mimic):
    stay = "subject_id=1,hadm_id=1,admittime=2150-05-01 08:00:00,dischtime=2149-05-09"
    row = "subject_id=1,hadm_id=1,seq_num=1,icd_code=I10,icd_version=10"
    write_mimic(tmp_path, {"hosp/admissions": [stay], "hosp/diagnoses_icd": [row]})
    files = ("hosp/patients.csv", "hosp/admissions.csv")
    registry = load(str(tmp_path), *files, MimicIvOptions())
    for name, events, change in (
        ("hosp/admissions", ["HOSPITAL_ADMISSION"], "visit without an end"),
        ("hosp/diagnoses_icd", [], "diagnosis of a visit without an end"),
    ):
        (block,) = [b for b in read_blocks(str(tmp_path), f"{name}.csv", BY_NAME[name]) if len(b)]
        table = block_events(block, BY_NAME[name], registry)
        assert [code.split("//")[0] for code in table["code"].to_pylist()] == events
        changes = block.rejects.tables()["changes"].to_pylist()
        assert {"code": None, "change": change, "count": 1} in changes


def test_a_chart_entry_without_a_number_is_left_out(events):
    found, refused = events(
        "icu/chartevents",
        "subject_id=2,charttime=2121-01-11 04:00:00,itemid=220048,value=SR (Sinus Rhythm)",
        "subject_id=2,charttime=2121-01-11 04:00:00,itemid=220045,valuenum=88,valueuom=bpm",
    )
    assert found == [("2121-01-11 04:00:00", "LAB//220045//bpm", 88.0)]
    assert refused == []
