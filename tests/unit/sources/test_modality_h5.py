import numpy as np
import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError
from ehr_ray.events.labels import read_labels
from ehr_ray.events.modality_h5 import write_modality

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path):
    raw = tmp_path / "raw"
    write_modality(
        raw / "clinical.h5",
        {
            "patient_id": ["001", "002", "003"],
            "embedding_512": RNG.normal(size=(3, 512)),
            "surv_5yr_label": np.array([1, 0, -1], np.int8),
            "rec_2yr_label": np.array([0, -1, 1], np.int8),
        },
    )
    blood = RNG.normal(size=(2, 512))
    blood[1] = 0
    write_modality(raw / "temporal.h5", {"patient_id": ["1", "2"], "embedding_512": blood})
    write_modality(
        raw / "spatial.h5",
        {
            "patient_index_map": ["1", "1"],
            "embedding_mean_512": np.stack([np.zeros(512), np.full(512, 4.0)]),
            "n_patches": np.array([3, 1]),
            "quality_score": np.array([1.0, 0.6]),
        },
    )
    return raw


def read(folder, tmp_path):
    ingest("modality-h5", folder, tmp_path / "c", splits="all:train", cpus=1, max_rejected=0.5)
    return pq.read_table(tmp_path / "c" / "data" / "train").to_pandas()


def test_embeddings_are_codes_and_zeros_are_missing(folder, tmp_path):
    events = read(folder, tmp_path)
    first = events[events["subject_id"] == 1].set_index("code")["numeric_value"]
    assert first["SPATIAL//EMBEDDING//000"] == 1  # (3 * 0 + 1 * 4) / 4
    assert first["SPATIAL//QUALITY"] == pytest.approx(0.9)
    assert first["SPATIAL//SPREAD"] == pytest.approx(np.sqrt(3))
    assert first["TEMPORAL//QUALITY"] == 1
    second = events[events["subject_id"] == 2]["code"]
    assert second.str.startswith("CLINICAL//EMBEDDING").sum() == 512
    assert not second.str.startswith("TEMPORAL").any()


def test_labels_are_those_of_the_clinical_file(folder, tmp_path):
    events = read(folder, tmp_path)
    survival = read_labels(tmp_path / "c", "survival_5y")
    assert survival.subject_id.tolist() == [1, 2]
    assert survival.value.tolist() == [True, False]
    stated = events[events["code"] == "LABEL//recurrence_2y//1"]
    assert stated["subject_id"].tolist() == [3]
    assert stated["time"].dt.year.tolist() == [2001]


def test_who_is_not_in_the_clinical_file_is_rejected(folder, tmp_path):
    write_modality(
        folder / "semantic.h5", {"patient_id": ["9"], "embedding_512": RNG.normal(size=(1, 512))}
    )
    assert not read(folder, tmp_path)["code"].str.startswith("SEMANTIC").any()
    rejected = pq.read_table(tmp_path / "c" / "metadata" / "rejected.parquet").to_pylist()
    assert rejected == [{"file": "semantic.h5", "line": 1, "reason": "no row in the clinical file"}]


def test_only_slides_may_be_several_of_a_patient(folder, tmp_path):
    twice = {"patient_id": ["1", "001"], "embedding_512": RNG.normal(size=(2, 512))}
    write_modality(folder / "semantic.h5", twice)
    with pytest.raises(InputError, match="rows 1 and 2 are of one patient"):
        read(folder, tmp_path)


def test_rows_without_patients_are_not_joined_by_their_numbers(folder, tmp_path):
    embedding = {"embedding_512": RNG.normal(size=(3, 512))}
    write_modality(folder / "temporal.h5", embedding)
    with pytest.raises(InputError, match="the temporal file has no patient_id, so that nobody"):
        read(folder, tmp_path)
    (folder / "spatial.h5").unlink()
    write_modality(folder / "clinical.h5", embedding)
    read(folder, tmp_path / "by_row")
    write_modality(folder / "temporal.h5", {"embedding_512": embedding["embedding_512"][:2]})
    with pytest.raises(InputError, match="the clinical file has no patient_id, so that nobody"):
        read(folder, tmp_path)


def test_slides_without_patients_are_nobodys(folder, tmp_path):
    write_modality(folder / "spatial.h5", {"embedding_512": RNG.normal(size=(3, 512))})
    with pytest.raises(InputError, match="the spatial file has no patient_id, so that nobody"):
        read(folder, tmp_path)


def test_a_label_of_floats_with_gaps_is_no_label_there(folder, tmp_path):
    write_modality(
        folder / "clinical.h5",
        {
            "patient_id": ["1", "2", "3"],
            "embedding_512": RNG.normal(size=(3, 512)),
            "surv_5yr_label": np.array([[1.0], [np.nan], [0.0]]),
        },
    )
    events = read(folder, tmp_path)
    survival = read_labels(tmp_path / "c", "survival_5y")
    assert survival.subject_id.tolist() == [1, 3]
    assert survival.value.tolist() == [True, False]
    assert (events["code"].str.startswith("LABEL//survival_5y")).sum() == 2


def test_a_hidden_file_is_none_of_a_modality(folder, tmp_path):
    (folder / "._clinical.h5").write_text("what a Mac notes beside a file")
    assert len(read(folder, tmp_path))


def test_a_folder_without_a_clinical_file_is_refused(folder, tmp_path):
    (folder / "clinical.h5").unlink()
    with pytest.raises(InputError, match=r"no clinical\*.h5"):
        read(folder, tmp_path)
