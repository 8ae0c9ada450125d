import pytest

from ehr_ray.sources.mimic_iv.events import block_events
from ehr_ray.sources.mimic_iv.options import MimicIvOptions
from ehr_ray.sources.mimic_iv.rows import read_blocks
from ehr_ray.sources.mimic_iv.table_units import load
from ehr_ray.sources.mimic_iv.tables import BY_NAME


@pytest.fixture
def events(tmp_path, write_mimic):
    """The events of some rows of a table, and what was refused of them."""

    def run(name, *rows):
        write_mimic(tmp_path, {name: rows})
        files = ("hosp/patients.csv", "hosp/admissions.csv")
        registry = load(str(tmp_path), *files, MimicIvOptions())
        found, refused = [], []
        for block in read_blocks(str(tmp_path), name + ".csv", BY_NAME[name], registry):
            table = block_events(block, BY_NAME[name], registry)
            found += [(str(r["time"]), r["code"], r["numeric_value"]) for r in table.to_pylist()]
            refused += [(r["line"], r["reason"]) for r in block.rejects.table().to_pylist()]
        return found, refused

    return run


def test_a_diagnosis_is_known_at_discharge_and_never_before(events):
    found, refused = events("hosp/diagnoses_icd", "1,11,1,4019,9", "2,21,1, 0389 ,9")
    assert found == [
        ("2151-01-05 12:00:00", "DIAGNOSIS//ICD//9//4019", None),
        ("2121-01-20 16:00:00", "DIAGNOSIS//ICD//9//0389", None),
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


def test_a_procedure_stands_at_the_end_of_its_day_or_at_discharge_on_it(events):
    found, refused = events(
        "hosp/procedures_icd",
        "1,11,1,2151-01-02,3961,9",
        "1,11,2,2151-01-05,3961,9",
        "1,77,2,2151-01-05,3961,9",
    )
    assert [time for time, _, _ in found] == [
        "2151-01-02 23:59:59",
        "2151-01-05 12:00:00",
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


def test_a_chart_entry_without_a_number_is_left_out(events):
    found, refused = events(
        "icu/chartevents",
        "subject_id=2,charttime=2121-01-11 04:00:00,itemid=220048,value=SR (Sinus Rhythm)",
        "subject_id=2,charttime=2121-01-11 04:00:00,itemid=220045,valuenum=88,valueuom=bpm",
    )
    assert found == [("2121-01-11 04:00:00", "LAB//220045//bpm", 88.0)]
    assert refused == []
