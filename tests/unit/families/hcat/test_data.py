import dataclasses

import numpy as np
import pytest

from ehr_ray.events.patients import Patient
from ehr_ray.families.hcat.data import CLIP, collate, transform

DAY = 86_400_000_000
STATIC = np.iinfo(np.int64).min


@pytest.fixture
def patient(vocabulary):
    events = [
        (STATIC, "CLINICAL//0", 1.5),
        (STATIC, "CLINICAL//1", np.nan),
        (STATIC, "ICD//C02", np.nan),
        (0, "BLOOD//2", 50.0),
        (2 * DAY, "BLOOD//3", 1.0),
        (400 * DAY, "RECURRENCE", np.nan),
        (900 * DAY, "MEDS_DEATH", np.nan),
        (900 * DAY, "FOLLOW_UP//END", np.nan),
    ]
    time, codes, value = zip(*events, strict=True)
    return Patient(
        7, 0, np.array(time, np.int64), vocabulary.encode(codes), np.array(value, np.float32)
    )


def test_features_are_what_is_known_at_the_landmark_and_outcomes_what_comes_after(
    patient, make_config, vocabulary
):
    row = transform(patient, make_config(), vocabulary)
    names = [vocabulary.codes[i] for i in row["code"]]
    assert names == ["CLINICAL//0", "ICD//C02", "BLOOD//2"]
    assert row["value"].tolist() == [1.5, 1.0, CLIP]
    assert (float(row["survival_5y/days"]), int(row["survival_5y/state"])) == (900, 1)
    assert (float(row["recurrence_2y/days"]), int(row["recurrence_2y/state"])) == (400, 1)
    later = transform(patient, make_config(landmark_hours=72), vocabulary)
    assert len(later["code"]) == 4


def test_an_outcome_on_the_day_of_diagnosis_is_an_outcome_and_no_feature(
    patient, make_config, vocabulary
):
    time = np.where(patient.code == vocabulary.encode(["RECURRENCE"])[0], 0, patient.time)
    row = transform(dataclasses.replace(patient, time=time), make_config(), vocabulary)
    assert (float(row["recurrence_2y/days"]), int(row["recurrence_2y/state"])) == (0, 1)
    assert "RECURRENCE" not in [vocabulary.codes[i] for i in row["code"]]


def test_a_patient_cut_at_the_prediction_has_the_same_features_and_no_outcome(
    patient, make_config, vocabulary
):
    whole = transform(patient, make_config(), vocabulary)
    cut = transform(patient.until(0), make_config(), vocabulary)
    np.testing.assert_array_equal(whole["code"], cut["code"])
    np.testing.assert_array_equal(whole["value"], cut["value"])
    batch = collate([whole, cut], make_config())
    assert batch["label"].tolist() == [[0, 1], [-1, -1]]
    assert batch["days"].tolist() == [[900, 400], [-1, -1]]
    assert batch["row"].tolist() == [0, 0, 0, 1, 1, 1]


def test_a_label_that_is_stated_needs_no_days(patient, make_config, vocabulary):
    codes = list(vocabulary.codes)
    codes[codes.index("MEDS_DEATH")] = "LABEL//survival_5y//1"
    stated = dataclasses.replace(vocabulary, codes=tuple(codes))
    row = transform(patient, make_config(), stated)
    assert collate([row], make_config())["label"].tolist() == [[1, 1]]
