import h5py
import numpy as np
import pandas as pd
import pytest

from ehr_ray.events.modality_h5 import aggregate, read_modality
from ehr_ray.events.patients import Patient
from ehr_ray.experiment import dump, parse
from ehr_ray.families.hcat.data import collate, transform
from ehr_ray.families.hcat.export import SUMMARY, export, run_metadata
from ehr_ray.families.hcat.tokenizer import Tokenizer

STATIC = np.iinfo(np.int64).min


@pytest.fixture
def patients(vocabulary):
    """Two patients, the second without blood counts; tiles twice."""
    made = []
    for subject, left_out in ((7, ()), (12, ("BLOOD",))):
        rng = np.random.default_rng(subject)
        kept = [
            i
            for i, name in enumerate(vocabulary.codes)
            if "//" in name and "END" not in name and not name.startswith(left_out or "?")
            for _ in range(2 if name.startswith("TMA") else 1)
        ]
        code = np.array(kept, np.int32)
        flag = np.array([vocabulary.codes[i].startswith("ICD") for i in kept])
        value = np.where(flag, np.nan, rng.normal(size=len(kept))).astype(np.float32)
        made.append(Patient(subject, 0, np.full(len(kept), STATIC), code, value))
    return made


def test_files_hold_the_tokens_and_read_back_as_such(tmp_path, patients, make_config, vocabulary):
    config = make_config()
    assert export(patients, config, vocabulary, tmp_path) == 2
    rows = [transform(patient, config, vocabulary) for patient in patients]
    tokens = Tokenizer(config, vocabulary)(collate(rows, config))
    clinical, blood = (read_modality(tmp_path / f"{n}.h5") for n in ("clinical", "temporal"))
    assert clinical.ids == ["7", "12"]
    assert blood.ids == ["7"]
    np.testing.assert_allclose(clinical.embedding, tokens.value[:, 0], atol=1e-5)
    assert clinical.labels["survival_5y"].tolist() == [-1, -1]
    spatial = aggregate(read_modality(tmp_path / "spatial.h5"))
    np.testing.assert_allclose(spatial.embedding, tokens.value[:, 4], atol=1e-4)
    assert spatial.variance.max() > 0
    with h5py.File(tmp_path / "clinical.h5") as file:
        assert "no event within 1825 days" in file["surv_5yr_label_positive"][()].decode()


def test_the_summary_has_what_the_published_one_leaves_out():
    raw = {"family": "hcat", "name": "x", "seed": 3, "data": {"cohort": "c"}}
    rows = {f"val/{m}_{n}": [0.5, 0.7] for m in ("f1", "auc") for n in ("surv", "rec", "avg")}
    history = pd.DataFrame({"train/objective": [2.0, 1.0], **rows})
    found = run_metadata(dump(parse(raw)), history, {"train": [1, 2], "tuning": [3]})[SUMMARY]
    assert found["n_patients"] == 3
    assert found["seed"] == 3
    assert found["splits"]["tuning"] == [3]
    assert found["alphas"]["alpha_kl"] == 0.05
    assert found["best_metrics"]["surv_f1"] == 0.7
    assert found["history"]["train_loss"] == [2, 1]
    assert found["positive"] == {"survival_5y": "no event", "recurrence_2y": "event"}
    assert found["model_config"]["d_model"] == 32
