import h5py
import numpy as np
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.modality_h5 import (
    ModalityFile,
    aggregate,
    normalize_pid,
    normalized_ids,
    read_modality,
    write_modality,
)

RNG = np.random.default_rng(0)
EMBEDDING = RNG.normal(size=(3, 512)).astype(np.float32)


def test_names_become_numbers_and_collisions_are_refused(tmp_path):
    assert [normalize_pid(x) for x in ("001", b"7 ", "HN_0042", "x")] == ["1", "7", "42", "x"]
    assert normalized_ids(["001", "1"], tmp_path) == ["1", "1"]
    with pytest.raises(InputError, match="row 2 would be the same patient as one of another name"):
        normalized_ids(["site2_014", "site2_020"], tmp_path)


def test_datasets_are_found_however_deep_and_by_priority(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["run/out/Patient_ID"] = np.array([b"001", b"002", b"3"])
        file["run/out/features"] = np.zeros((3, 512))
        file["run/out/embedding_512"] = EMBEDDING
        file["run/modality_quality"] = np.array([[1.0, 3], [np.nan, 2], [0, 0]])
    found = read_modality(tmp_path / "a.h5")
    assert found.ids == ["1", "2", "3"]
    np.testing.assert_array_equal(found.embedding, EMBEDDING)
    assert found.quality.tolist() == [2, 2, 0]


@pytest.mark.parametrize(
    ("quality", "expected"),
    [
        (np.float32(0.5), [0.5] * 3),
        ([0.5], [0.5] * 3),
        ([[0.2], [0.4], [np.nan]], [0.2, 0.4, 0]),
        ([0.2, 0.4, np.nan], [0.2, 0.4, 0.3]),
    ],
)
def test_quality_is_one_number_a_row(tmp_path, quality, expected):
    write_modality(tmp_path / "a.h5", {"embedding": EMBEDDING, "quality": quality})
    found = read_modality(tmp_path / "a.h5")
    np.testing.assert_allclose(found.quality, expected, rtol=1e-6)
    assert found.ids == ["0", "1", "2"]
    assert not found.named


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("quality_score", [0.2, 0.4]),
        ("quality_score", np.arange(5.0)),
        ("quality", np.ones((1, 3))),
        ("n_patches", [3, 4]),
        ("n_patches", np.ones((3, 2))),
        ("embedding_var_512", np.ones(512)),
        ("embedding_var_512", np.ones((2, 512))),
        ("surv_5yr_label", [1, 0]),
        ("rec_2yr_label", np.ones((1, 3))),
    ],
)
def test_what_is_not_of_as_many_rows_is_refused(tmp_path, name, values):
    write_modality(tmp_path / "a.h5", {"embedding_512": EMBEDDING, f"run/{name}": values})
    with pytest.raises(InputError, match=rf"run/{name} has the shape .*, but there are 3 embed"):
        read_modality(tmp_path / "a.h5")


@pytest.mark.parametrize("patches", [np.int64(7), [7], [7, 7, 7], [[7], [7], [7]]])
def test_patches_are_one_number_for_all_or_one_a_row(tmp_path, patches):
    write_modality(tmp_path / "a.h5", {"embedding_512": EMBEDDING, "n_patches": patches})
    assert read_modality(tmp_path / "a.h5").patches.tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    "label",
    [
        np.array([1, 0, -1], np.int8),
        np.array([[1], [0], [-1]]),
        [1.0, 0.0, np.nan],
        [1.0, 0.0, -1.0],
        ["1", "0", ""],
        ["True", "false", "-1"],
        [b"1.0", b"0.0", b"nan"],
    ],
)
def test_a_label_is_true_false_or_unknown(tmp_path, label):
    write_modality(tmp_path / "a.h5", {"embedding_512": EMBEDDING, "surv_5yr_label": label})
    found = read_modality(tmp_path / "a.h5").labels["survival_5y"]
    assert found.dtype == np.int8
    assert found.tolist() == [1, 0, -1]


@pytest.mark.parametrize("label", [[1, 2, 1], [1.0, 0.0, 0.5], ["0", "alive", "1"], [0, -9, 1]])
def test_a_label_that_is_no_truth_value_is_refused_by_row(tmp_path, label):
    write_modality(tmp_path / "a.h5", {"embedding_512": EMBEDDING, "surv_5yr_label": label})
    with pytest.raises(InputError, match=r"a.h5: row [23], column surv_5yr_label: .* no truth"):
        read_modality(tmp_path / "a.h5")


def test_groups_of_features_are_stacked(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, row in zip(("p10", "p9"), EMBEDDING, strict=False):
            file[f"patients/{name}/features"] = row
    found = read_modality(tmp_path / "a.h5")
    assert found.ids == ["10", "9"]
    np.testing.assert_array_equal(found.embedding, EMBEDDING[:2])


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"embedding_512": EMBEDDING[:, :100]}, "100 wide, not 512"),
        ({"patient_id": ["1"], "embedding_512": EMBEDDING}, "1 of patient_id but 3"),
        ({"other": np.zeros(4)}, "no two-dimensional dataset"),
        ({"embedding_512": EMBEDDING * np.nan}, "NaN"),
    ],
)
def test_what_is_no_modality_is_refused(tmp_path, sets, message):
    write_modality(tmp_path / "a.h5", sets)
    with pytest.raises(InputError, match=message):
        read_modality(tmp_path / "a.h5")


def test_slides_weigh_by_their_patches_and_leave_their_variance():
    rows = np.zeros((3, 512), np.float32)
    rows[:, 0] = [1, 4, 7]
    slides = ModalityFile(
        ["5", "5", "6"], rows, np.array([1, 0, 1], np.float32), np.array([3.0, 1, 0])
    )
    found = aggregate(slides)
    assert found.ids == ["5", "6"]
    assert found.embedding[:, 0].tolist() == [1.75, 7]
    assert found.variance[0, 0] == pytest.approx(0.75 * 0.75**2 + 0.25 * 2.25**2)
    assert found.variance[1].max() == 0
    assert found.quality.tolist() == [0.75, 1]


def test_a_slide_that_says_its_own_variance_adds_it():
    one = ModalityFile(
        ["5"], EMBEDDING[:1], np.ones(1, np.float32), None, np.full((1, 512), 2, np.float32)
    )
    np.testing.assert_allclose(aggregate(one).variance, 2)
