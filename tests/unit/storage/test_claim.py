import json

import pytest

from ehr_ray.errors import InputError
from ehr_ray.storage.claim import claim


def test_the_same_job_finds_what_it_has_written(tmp_path):
    folder = tmp_path / "out"
    assert claim(folder, "_job.json", {"cohort": "a"}, "expansion") <= {"_job.json"}
    (folder / "train").mkdir()
    (folder / "train" / "0.parquet").touch()
    assert "train/0.parquet" in claim(folder, "_job.json", {"cohort": "a"}, "expansion")
    assert json.loads((folder / "_job.json").read_text()) == {"cohort": "a"}


def test_a_folder_of_another_job_is_refused_and_stays_as_it_was(tmp_path):
    claim(tmp_path, "_job.json", {"cohort": "a"}, "expansion")
    with pytest.raises(InputError, match="holds another expansion; choose another --output"):
        claim(tmp_path, "_job.json", {"cohort": "b"}, "expansion")
    assert json.loads((tmp_path / "_job.json").read_text()) == {"cohort": "a"}


def test_what_an_earlier_version_noted_of_the_job_is_replaced_by_what_this_one_notes(tmp_path):
    claim(tmp_path, "_job.json", {"cohort": "a"}, "expansion")
    new = {"cohort": "a", "codes": "b"}
    with pytest.raises(InputError, match="holds another expansion"):
        claim(tmp_path, "_job.json", new, "expansion")
    claim(tmp_path, "_job.json", new, "expansion", formerly={"cohort": "a"})
    assert json.loads((tmp_path / "_job.json").read_text()) == new


def test_files_of_nobody_knows_what_are_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="not empty"):
        claim(tmp_path, "_job.json", {}, "expansion")
    with pytest.raises(InputError, match=r"thesis\.tex: is a file"):
        claim(tmp_path / "thesis.tex", "_job.json", {}, "expansion")


def test_a_job_killed_while_it_wrote_its_note_goes_on(tmp_path):
    (tmp_path / "._job.json.host-1-0123abcd-01234567").touch()
    claim(tmp_path, "_job.json", {"cohort": "a"}, "expansion")
    assert json.loads((tmp_path / "_job.json").read_text()) == {"cohort": "a"}
