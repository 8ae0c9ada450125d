import pyarrow as pa
import pytest

from ehr_ray.evaluation.suite import SplitPredictions
from ehr_ray.families.vitals_vae.evaluation.files import latents, write_h5


def samples(ids):
    return pa.table(
        {
            "subject_id": ids,
            "embedding": pa.array([[1.0, 2.0]] * len(ids), pa.list_(pa.float32())),
            "n_obs": pa.array([3.0] * len(ids), pa.float32()),
        }
    )


def test_splits_are_told_apart_and_a_split_is_not_repeated():
    found = latents(
        {
            "train": SplitPredictions(samples([4, 5]), {}),
            "held_out": SplitPredictions(samples([9]), {}),
        }
    )
    assert found["split"].tolist() == [b"train", b"train", b"held_out"]
    assert found["patient_index"].tolist() == [b"4", b"5", b"9"]
    assert found["n_obs"].tolist() == [3, 3, 3]
    assert found["mu"].shape == (3, 2)
    assert "kl" not in found


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises((TypeError, ValueError, AttributeError)):
        write_h5(tmp_path / "x.h5", {"a": object()})
    assert list(tmp_path.iterdir()) == []
