import pytest

from ehr_ray.sources.mimic_iv.descriptions import describe, read_titles
from ehr_ray.sources.mimic_iv.tables import BY_NAME


@pytest.fixture
def words(tmp_path, write_mimic):
    def run(name, codes):
        write_mimic(tmp_path)
        files = {t.table: t.table + ".csv" for t in BY_NAME[name].titles}
        known = read_titles(str(tmp_path), files, BY_NAME[name])
        table = describe(codes, known)
        return dict(zip(*table.to_pydict().values(), strict=True))

    return run


def test_words_carry_the_unit_and_unknown_codes_have_none(words):
    assert words("icu/chartevents", {"LAB//220045//bpm", "LAB//1//bpm", "LAB//220045//UNK"}) == {
        "LAB//220045//UNK": "Heart Rate",
        "LAB//220045//bpm": "Heart Rate (bpm)",
    }
    assert words("hosp/labevents", {"LAB//50912//mg/dL"}) == {
        "LAB//50912//mg/dL": "Creatinine, Blood (mg/dL)"
    }


def test_a_unit_may_hold_slashes(words):
    codes = {"INFUSION_START//221906//mcg/kg/min", "INFUSION_END//221906//a//b"}
    assert words("icu/inputevents", codes) == {
        "INFUSION_END//221906//a//b": "Norepinephrine (a//b)",
        "INFUSION_START//221906//mcg/kg/min": "Norepinephrine (mcg/kg/min)",
    }


def test_icd_codes_go_by_version(words):
    codes = {"DIAGNOSIS//ICD//9//4019", "DIAGNOSIS//ICD//10//4019", "DIAGNOSIS//ICD//10//E785"}
    assert words("hosp/diagnoses_icd", codes) == {
        "DIAGNOSIS//ICD//10//E785": "Hyperlipidemia, unspecified",
        "DIAGNOSIS//ICD//9//4019": "Unspecified essential hypertension",
    }


def test_without_a_dictionary_there_are_no_words(tmp_path):
    assert read_titles(str(tmp_path), {}, BY_NAME["icu/chartevents"]) == {}
    assert describe({"LAB//220045//bpm"}, {}).num_rows == 0
