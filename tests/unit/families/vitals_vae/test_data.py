import numpy as np
import pytest
import torch

from ehr_ray.events.block_files import write_block
from ehr_ray.events.blocks import BlockStore
from ehr_ray.events.hourly_h5 import read_hourly
from ehr_ray.events.patients import Patient
from ehr_ray.families.vitals_vae.data import collate, export, measured, remedy, transform

HOUR = 3_600_000_000


@pytest.fixture
def patient(vocabulary):
    rng = np.random.default_rng(0)
    time = np.sort(rng.uniform(-5, 110, 300) * HOUR).astype(np.int64)
    code = rng.integers(0, 7, 300).astype(np.int32)
    value = (vocabulary.mean[code] * rng.normal(1, 0.05, 300)).astype(np.float32)
    return Patient(4, 0, time, code, value)


def test_patients_without_a_vital_sign_are_found_and_their_codes_asked_for(tmp_path, make_config):
    rows = [{"hour": np.zeros(n, np.int32)} for n in (0, 2, 0)]
    write_block(tmp_path / "a.arrow", rows)
    assert measured(BlockStore([tmp_path / "a.arrow"])).tolist() == [False, True, False]
    assert "model.vitals names (of HR: HR" in remedy(make_config())


def test_a_row_holds_z_scores_of_the_window(patient, make_config, vocabulary):
    row = transform(patient, make_config(), vocabulary)
    assert (row["hour"].min(), row["hour"].max()) == (0, 95)
    assert abs(row["value"].mean()) < 0.2
    assert 0.3 < row["value"].std() < 0.7
    assert len(row["hour"]) + row["refused"] == np.sum(
        (patient.time >= 0) & (patient.time < 96 * HOUR)
    )


def test_hours_after_the_landmark_are_never_read(patient, make_config, vocabulary):
    config = make_config(landmark=24)
    changed = patient.value.copy()
    changed[patient.time >= 24 * HOUR] *= 1.5
    other = Patient(4, 0, patient.time, patient.code, changed)
    ours, theirs = (transform(p, config, vocabulary) for p in (patient, other))
    assert ours["hour"].max() == 23
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key])
    assert collate([ours], config)["value"].shape == (1, 24, 7)


def test_outliers_are_clipped(make_config, vocabulary):
    code = vocabulary.encode(["HR"])
    one = Patient(1, 0, np.zeros(1, np.int64), code, np.array([200], np.float32))
    assert transform(one, make_config(), vocabulary)["value"].tolist() == [6.0]


def test_a_batch_is_the_grid_of_hourly_means(make_config):
    config = make_config()
    rows = [
        {
            "subject_id": np.array(9),
            "refused": np.array(0),
            "hour": np.array([2, 2, 95], np.int32),
            "vital": np.array([1, 1, 6], np.int8),
            "value": np.array([1.0, 2.0, 4.0], np.float32),
        },
        {
            "subject_id": np.array(2),
            "refused": np.array(0),
            "hour": np.zeros(0, np.int32),
            "vital": np.zeros(0, np.int8),
            "value": np.zeros(0, np.float32),
        },
    ]
    batch = collate(rows, config)
    assert batch["value"].shape == (2, 96, 7)
    assert batch["value"][0, 2, 1] == 1.5
    assert batch["value"][0, 95, 6] == 4.0
    assert batch["observed"].sum() == 2
    assert batch["value"].dtype == torch.float32
    assert batch["subject_id"].tolist() == [9, 2]


def test_export_writes_the_grid_in_units(patient, make_config, vocabulary, tmp_path):
    config = make_config()
    path = tmp_path / "hourly_tensors.h5"
    assert export([patient], config, vocabulary, path) == 1
    found = read_hourly(path, 0, 1)
    batch = collate([transform(patient, config, vocabulary)], config)
    np.testing.assert_array_equal(found.observed, batch["observed"].numpy())
    mean = {
        vital.name: vocabulary.mean[vocabulary.codes.index(vital.name)] for vital in config.vitals
    }
    centre = np.array(list(mean.values()))
    z = (found.values - centre) / (centre / 10)
    seen = found.observed
    np.testing.assert_allclose(z[seen], batch["value"].numpy()[seen], atol=1e-3)
