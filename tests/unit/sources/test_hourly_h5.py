import h5py
import numpy as np
import pytest

from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError
from ehr_ray.events.hourly_h5 import Window, write_hourly
from ehr_ray.events.options import VITALS
from ehr_ray.events.patients import cohort_shards, read_patients
from ehr_ray.runtime.data.dataset import vocabulary_of

WINDOW = Window(vitals=VITALS, first_hour=-24, num_hours=745)


def write(path, names=("3", "P-1")):
    rng = np.random.default_rng(0)
    masks = (rng.random((len(names), 745, 7)) < 0.05).astype(np.int8)
    middle = np.array([80, 120, 70, 85, 18, 96, 37])
    with h5py.File(path, "w") as file:
        file["values"] = (middle + rng.normal(size=masks.shape)).astype(np.float32)
        file["masks"] = masks
        file["patient_index"] = np.array(names, "S")
        file["vital_index"] = np.array([v.name for v in VITALS], "S")
        file["hour_index"] = np.arange(-24, 721, dtype=np.int32)
    return masks


def test_a_file_is_a_cohort_and_the_cohort_writes_the_same_grids(tmp_path):
    masks = write(tmp_path / "in.h5")
    cohort = tmp_path / "cohort"
    summary = ingest(
        "hourly-h5", tmp_path / "in.h5", cohort, splits="all:train", options={}, cpus=1
    )
    assert "2 subjects" in str(summary)
    words = vocabulary_of(cohort, 1)
    patients = [p for s in cohort_shards(cohort, "train") for p in read_patients(s, words)]
    write_hourly(tmp_path / "out.h5", patients, WINDOW, words)
    with h5py.File(tmp_path / "in.h5") as old, h5py.File(tmp_path / "out.h5") as new:
        order = np.argsort([p.subject_id for p in patients])
        seen = masks > 0
        np.testing.assert_array_equal(new["masks"][:][order], masks)
        np.testing.assert_array_equal(new["values"][:][order][seen], old["values"][:][seen])


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        ingest("hourly-h5", tmp_path / "x.h5", tmp_path / "c", splits=None, options={}, cpus=1)
    write(tmp_path / "empty.h5", names=())
    with pytest.raises(InputError, match="holds no patient"):
        ingest("hourly-h5", tmp_path / "empty.h5", tmp_path / "c", splits=None, options={}, cpus=1)
