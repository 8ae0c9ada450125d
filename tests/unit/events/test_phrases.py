import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.phrases import Lookups, phrase_of, read_lookup, unit_of

LOOKUPS = Lookups(medical={"I10": "Hypertension", "REGION//7": "Region London"}, lab={"MCV": "MCV"})


@pytest.mark.parametrize(
    ("code", "phrase"),
    [
        ("LAB//50912//mg/dL", "Lab Creatinine"),
        ("LAB//220045//bpm", "Heart rate"),
        ("LAB//224009//UNK", "item 224009"),
        ("LAB//MCV", "Lab MCV"),
        ("LAB//MCV//low", "Lab MCV low"),
        ("LAB_MCV", "Lab MCV"),
        ("LAB//unheard_of", "Lab unheard of"),
        ("MEDICAL//I10", "Hypertension"),
        ("DIAG_I10", "Hypertension"),
        ("DIAGNOSIS//ICD//10//I10", "Hypertension"),
        ("DIAGNOSIS//ICD//10//I482", "Diagnosis, disease of the circulatory system ICD 10 I482"),
        ("DIAGNOSIS//ICD//9//V1011", "Diagnosis, factor influencing health status ICD 9 V1011"),
        ("MEDICAL//bp_sitting", "bp sitting"),
        ("REGION//7", "Region London"),
        ("GENDER//F", "Demographic gender female"),
        ("ETHNICITY//WHITE", "Demographic ethnicity WHITE"),
        ("LIFESTYLE//current_smoker", "Lifestyle current smoker"),
        ("MEDICATION//START//Furosemide", "Medication start Furosemide"),
        ("INFUSION_START//221906", "Infusion start Norepinephrine"),
        ("SUBJECT_FLUID_OUTPUT//226559//ml", "Subject fluid output Urine output by Foley catheter"),
        ("TRANSFER_TO//discharge//UNK", "Transfer to discharge"),
        ("<time_interval_12d-20d>", "12-20 days"),
        ("<time_interval_30d-2mt>", "30 days-2 months"),
        ("<time_interval_60mt->", "more than 60 months"),
        ("AGE: 60-65", "AGE: 60-65"),
        ("Q5", "5"),
        ("7.25", "7.25"),
        ("very high", "very high"),
        ("<start>", "<start>"),
        ("MEDS_BIRTH", "Birth"),
        ("SysABP", "Invasive systolic arterial blood pressure"),
    ],
)
def test_a_code_becomes_a_clinical_phrase(code, phrase):
    assert phrase_of(code, lookups=LOOKUPS) == phrase


def test_a_users_lookup_wins_over_the_cohort_and_the_cohort_over_ours():
    assert phrase_of("K", "Potassium in urine (mmol/L)") == "Potassium in urine"
    assert phrase_of("K", "Potassium", Lookups(lab={"K": "Kalium"})) == "Kalium"
    assert phrase_of("ICUType", "1 coronary care, 2 cardiac surgery") == "Intensive care unit type"


@pytest.mark.parametrize(
    ("code", "description", "unit"),
    [
        ("LAB//50912//mg/dL", "", "mg/dL"),
        ("LAB//50920//UNK", "", ""),
        ("LAB//51498// ", "", ""),
        ("MEDICATION//START//Furosemide", "", ""),
        ("x", "Serum sodium (mmol/L)", "mmol/L"),
        ("x", "Glasgow coma score (3-15)", ""),
        ("x", "Gender (0 female, 1 male)", ""),
        ("Temp", "", "degrees Celsius"),
    ],
)
def test_the_unit_is_what_the_code_or_its_description_states(code, description, unit):
    assert unit_of(code, description) == unit


def test_a_lookup_may_have_a_bom_blanks_and_duplicates(tmp_path):
    path = tmp_path / "lab.csv"
    path.write_text("\ufeffCode , term\nmcv,Mean corpuscular volume\nHb,\nmcv, MCV \n", "utf-8")
    assert read_lookup(path, "model.lab_lookup") == {"MCV": "MCV"}
    assert read_lookup(None, "model.lab_lookup") == {}


def test_a_bad_lookup_is_named_with_the_option(tmp_path):
    with pytest.raises(InputError, match=r"model\.lab_lookup=.*none\.csv: no such file"):
        read_lookup(tmp_path / "none.csv", "model.lab_lookup")
    (tmp_path / "bad.csv").write_text("key,name\n1,2\n")
    with pytest.raises(InputError, match="it needs code and term"):
        read_lookup(tmp_path / "bad.csv", "model.lab_lookup")
