import h5py
import numpy as np
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.hourly_h5 import CHUNK, Window, describe_hourly, read_hourly, write_hourly
from ehr_ray.events.options import VITALS
from ehr_ray.events.patients import Patient
from ehr_ray.events.vocabulary import Vocabulary

HOUR = 3_600_000_000
WORDS = Vocabulary(("HR", "RR"), np.ones(2, int), np.array([80.0, 18.0]), np.ones(2))
WINDOW = Window(vitals=VITALS, first_hour=-24, num_hours=745)


def patient(number):
    hours = np.array([-3.5, 0.2, 0.7, 30.0])
    codes = np.array([0, 0, 0, 1], np.int32)
    values = np.array([70, 80, 90, 20], np.float32) + number % 5
    return Patient(number, 0, (hours * HOUR).astype(np.int64), codes, values)


def test_a_file_holds_what_the_seed_names(tmp_path):
    path = tmp_path / "hourly_tensors.h5"
    count = CHUNK + 3
    assert write_hourly(path, map(patient, range(count)), WINDOW, WORDS) == count
    with h5py.File(path) as file:
        for name in ("values", "masks", "imputation_tier", "time_deltas"):
            assert file[name].shape == (count, 745, 7)
        assert file["patient_index"].asstr()[:3].tolist() == ["0", "1", "2"]
        assert file["vital_index"].asstr()[0] == "HR"
        hours = file["hour_index"][:]
        assert (hours[0], hours[-1], hours.dtype) == (-24, 720, np.int32)
        assert np.isfinite(file["values"][:]).all()
        assert file["values"][1, 24, 0] == 86  # the mean of 81 and 91
        assert file["imputation_tier"][0, :, 0].tolist()[19:24] == [3, 1, 2, 2, 2]
        assert file["imputation_tier"][0, 0, 1] == 4
        assert file["time_deltas"][0, 0, 0] == 25
        assert file["masks"][0].sum() == 3


def test_reading_takes_a_piece(tmp_path):
    path = tmp_path / "x.h5"
    write_hourly(path, map(patient, range(9)), WINDOW, WORDS)
    number, vitals, hours = describe_hourly(path)
    assert (number, vitals, len(hours)) == (9, [v.name for v in VITALS], 745)
    part = read_hourly(path, 2, 4)
    assert part.names == ["2", "3"]
    assert part.observed.sum() == 6
    assert part.values[0, 54, 4] == 22


def test_a_file_without_an_hour_index_starts_a_day_before(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["values"] = np.zeros((1, 3, 2), np.float32)
        file["masks"] = np.ones((1, 3, 2), np.float32)
        file["patient_index"] = np.array([b"a"])
        file["vital_index"] = np.array([b"HR", b"RR"])
    assert describe_hourly(path)[2].tolist() == [-24, -23, -22]
    assert read_hourly(path, 0, 1).observed.all()


def test_what_is_no_such_file_is_named(tmp_path):
    path = tmp_path / "x.h5"
    path.write_text("no")
    with pytest.raises(InputError, match=r"x\.h5: unreadable, damaged"):
        describe_hourly(path)
    with h5py.File(path, "w") as file:
        file["values"] = np.zeros((1, 3, 2))
    with pytest.raises(InputError, match="no dataset masks"):
        describe_hourly(path)


def test_indices_of_another_length_are_refused(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for name in ("values", "masks"):
            file[name] = np.zeros((1, 3, 2))
        file["patient_index"] = np.array([b"a"])
        file["vital_index"] = np.array([b"HR"])
    with pytest.raises(InputError, match="2 vitals"):
        describe_hourly(path)


def test_a_failed_write_leaves_nothing(tmp_path):
    def broken():
        yield patient(1)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_hourly(tmp_path / "x.h5", broken(), WINDOW, WORDS)
    assert list(tmp_path.iterdir()) == []
