import numpy as np
import torch

from ehr_ray.events.patients import Patient
from ehr_ray.families.set_vae.data import collate, transform

STATIC = np.iinfo(np.int64).min
MINUTE = 60_000_000


def patient(*events):
    """Events are (minute or None, code, value)."""
    minute, code, value = zip(*events, strict=True) if events else ((), (), ())
    time = [STATIC if m is None else int(m * MINUTE) for m in minute]
    return Patient(
        4, 0, np.array(time, np.int64), np.array(code, np.int32), np.array(value, np.float32)
    )


def test_a_patient_becomes_sets_of_scaled_and_clipped_values(make_config, vocabulary):
    events = [(None, 2, 1.5), (0, 0, 99.0), (60, 1, -50.0), (60, 3, np.nan)]
    row = transform(patient(*events), make_config(), vocabulary)
    assert row["set_size"].tolist() == [2, 4]
    assert row["minute"].tolist() == [0.0, 60.0]
    assert row["code"].tolist() == [0, 2, 0, 1, 2, 3]
    assert row["value"].tolist() == [10.0, 1.5, 10.0, -10.0, 1.5, 1.0]
    assert row["carried"].tolist() == [False, False, True, False, True, False]
    assert row["age"].tolist() == [0, 0, 60, 0, 60, 0]
    assert (row["age"].dtype, row["value"].dtype, row["code"].dtype) == ("f4", "f4", "i4")
    unclipped = transform(patient(*events), make_config(clip_value=None), vocabulary)
    assert unclipped["value"].max() == 99.0


def test_options_of_carrying_reach_it(make_config, vocabulary):
    events = [(0, 0, 1.0), (0, 1, 1.0), (61, 2, 1.0)]
    config = make_config(carry_minutes=60, always_carry=("C01", "not a code"))
    row = transform(patient(*events), config, vocabulary)
    assert row["code"].tolist() == [0, 1, 1, 2]


def test_a_patient_without_events_has_one_empty_set(make_config, vocabulary):
    row = transform(patient(), make_config(), vocabulary)
    assert (row["set_size"].tolist(), row["minute"].tolist()) == ([0], [0.0])
    assert [len(row[name]) for name in ("code", "value", "age", "carried")] == [0] * 4
    batch = collate([row], make_config())
    assert batch["mask"].tolist() == [[False]]


def test_collate_pads_every_set_and_keeps_patients_in_order(rows, make_config):
    batch = collate(rows, make_config())
    sizes = np.concatenate([row["set_size"] for row in rows])
    assert batch["mask"].shape == (9, 12)
    assert batch["mask"].sum(1).tolist() == sizes.tolist()
    assert batch["patient"].tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert batch["set_index"].tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]
    assert batch["num_sets"].tolist() == [3, 1, 5]
    assert batch["subject_id"].tolist() == [11, 5, 8]
    for name in ("code", "value", "age", "carried"):
        flat = np.concatenate([row[name] for row in rows])
        np.testing.assert_array_equal(batch[name][batch["mask"]], flat)
        assert not batch[name][~batch["mask"]].any()
    assert all(isinstance(value, torch.Tensor) for value in batch.values())
