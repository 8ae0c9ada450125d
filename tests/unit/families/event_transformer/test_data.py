from dataclasses import replace

import numpy as np
import pytest
import torch

from ehr_ray.families.event_transformer.config import EventTransformerConfig
from ehr_ray.families.event_transformer.family import FAMILY

LAST, RANDOM = (EventTransformerConfig(max_length=4, truncation=t) for t in ("last", "random"))


@pytest.fixture
def row(vocabulary, make_patient):
    return FAMILY.transform(make_patient(6), LAST, vocabulary)


def test_a_row_holds_ids_and_no_vectors(row):
    kinds = {name: array.dtype for name, array in row.items() if array.ndim}
    assert kinds == {"phrase": "int32", "gap": "int8", "value": "float16", "minute": "float64"}
    assert sum(kind.itemsize for kind in kinds.values()) == 15  # of 4 * 384 + 8 as vectors
    assert row["minute"].tolist() == [0, 0, 60, 120, 180, 240]


def test_values_are_z_scored_and_clipped(vocabulary, make_patient):
    patient = make_patient(6)
    row = FAMILY.transform(patient, EventTransformerConfig(clip_value=3), vocabulary)
    known = vocabulary.location[patient.code], vocabulary.scale[patient.code]
    expected = (patient.value - known[0]) / known[1]
    np.testing.assert_allclose(row["value"], expected.clip(-3, 3), atol=2e-3)


def test_batches_are_padded_at_the_right(row):
    short = {name: array[:2] if array.ndim else array for name, array in row.items()}
    batch = FAMILY.collate([short, row], LAST)
    assert batch["mask"].tolist() == [[True, True, False, False], [True] * 4]
    assert batch["phrase"][1].tolist() == row["phrase"][-4:].tolist()
    assert batch["gap"][0].tolist()[2:] == [-1, -1]
    assert torch.isfinite(batch["value"]).all()
    assert not batch["valued"][0, 2:].any()
    assert len(FAMILY.collate([row], RANDOM)["phrase"][0]) == 6


def test_a_patient_without_events_makes_a_batch(vocabulary, make_patient):
    empty = FAMILY.transform(make_patient(0), LAST, vocabulary)
    assert FAMILY.collate([empty], LAST)["mask"].tolist() == [[False]]


def test_a_batch_tells_where_its_tokens_stand_whatever_window_is_drawn(row):
    short = {name: array[:2] if array.ndim else array for name, array in row.items()}
    nobody = {name: array[:0] if array.ndim else array for name, array in row.items()}
    rows = [short, nobody, row]
    for config in (LAST, RANDOM):  # a window has four places
        assert FAMILY.collate(rows, config)["place"].tolist() == [0, 1, 8, 9, 10, 11]
    cls = replace(LAST, arch="encoder", pooling=("cls",))  # and its vector comes before them
    assert FAMILY.collate(rows, cls)["place"].tolist() == [0, 1, 2, 5, 10, 11, 12, 13, 14]
