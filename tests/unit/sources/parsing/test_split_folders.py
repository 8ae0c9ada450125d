import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.split_folders import files_by_split


def found(path, is_one=lambda path: path.read_text() == "patient"):
    return list(files_by_split(path, (".x", ".y"), is_one))


def write(path, text="patient"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_folders_of_splits_are_known_in_any_capitals(tmp_path):
    for name in ("1.x", "train/3.X", "train/2.x", "train/note.txt", "Test/4.y", "VALID/.5.x"):
        write(tmp_path / name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tuning").symlink_to("train")
    assert found(tmp_path) == [
        ("", None, ["1.x"]),
        ("Test", "test", ["4.y"]),
        ("VALID", "valid", []),
        ("train", "train", ["2.x", "3.X"]),
        ("tuning", "tuning", ["2.x", "3.X"]),
    ]


@pytest.mark.parametrize("name", ["eval/1.x", "eval/b.Y", "train/site/1.x", "data/train/1.x"])
def test_patients_in_a_folder_of_no_split_are_refused(tmp_path, name):
    write(tmp_path / "train/0.x")
    write(tmp_path / "eval/a.x", "no patient")
    write(tmp_path / name)
    with pytest.raises(InputError, match="has files of patients and is no folder of a split; name"):
        found(tmp_path)


def test_what_is_no_patient_may_stand_beside_them(tmp_path):
    write(tmp_path / "train/0.x")
    for name in ("labels/labels.x", "docs/1.txt", ".trash/1.x"):
        write(tmp_path / name, "a table of labels" if name.endswith(".x") else "patient")
    assert [folder for folder, _, _ in found(tmp_path)] == ["", "train"]
