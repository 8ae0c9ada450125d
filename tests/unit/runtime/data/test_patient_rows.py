import dataclasses

import numpy as np
import pytest

from ehr_ray.events.carry import PatientSets, carry_forward
from ehr_ray.events.patients import Patient
from ehr_ray.runtime.data.patient_rows import PatientRow, as_table, from_table


def same(one, other):
    for field in dataclasses.fields(one):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if dataclasses.is_dataclass(ours):
            same(ours, theirs)
            continue
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype, field.name
        np.testing.assert_array_equal(ours, theirs, field.name)


@pytest.mark.parametrize("sets", [False, True])
def test_patients_come_back_whole_with_what_is_wanted_of_them(synthetic_patients, sets):
    patients = synthetic_patients["train"][:5]
    nobody = np.zeros(0)
    codes = nobody.astype(np.int32)
    patients.append(Patient(7, 1, nobody.astype(np.int64), codes, nobody.astype(np.float32)))
    if sets:
        made = [
            (p, carry_forward(p.minute, p.code, p.value, p.static, window=60)) for p in patients
        ]
        patients = [PatientSets(p.subject_id, tokens) for p, tokens in made]
    cuts = [None if sets else [(n, float(n % 2)), (2**60 + n, 1.0)] for n in range(len(patients))]
    rows = [PatientRow(p, c, [3, 9]) for p, c in zip(patients, cuts, strict=True)]
    back = list(from_table(as_table(rows)))
    assert len(back) == len(rows)
    for one, other in zip(rows, back, strict=True):
        assert type(one.patient) is type(other.patient)
        same(one.patient, other.patient)
        assert (other.cuts, other.index) == (one.cuts, one.index)
