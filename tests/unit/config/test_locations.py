from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from ehr_ray.config.locations import (
    Location,
    ModelName,
    TrackingURI,
    absolute_uri,
    located,
    marks_of,
    same_place,
)
from ehr_ray.errors import InputError


@dataclass
class Inner:
    table: Location | None = None
    kind: Literal["a", "b"] = "a"


@dataclass
class Outer:
    folder: Location = "x"
    name: str = "x"
    files: tuple[Location, ...] = ()
    inner: Inner | None = None
    text_model: ModelName | None = None
    uri: TrackingURI | None = None


MARKS = dict(marks_of(Outer))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_marks_are_found_in_optional_nested_and_listed_fields():
    assert list(MARKS) == ["folder", "files", "inner.table", "text_model", "uri"]
    assert list(dict(marks_of(Inner, "model."))) == ["model.table"]


def test_marked_paths_become_absolute_and_all_else_stays(here):
    plain = {
        "folder": "runs",
        "name": "runs",
        "files": ["a.csv", "s3://b/a.csv", ""],
        "inner": {"table": "../t.csv", "kind": "a"},
        "text_model": None,
        "uri": "http://mlflow:5000",
        "more": 1,
    }
    found = located(plain, MARKS)
    assert found == plain | {
        "folder": str(here / "runs"),
        "files": [str(here / "a.csv"), "s3://b/a.csv", ""],
        "inner": {"table": str(here / "../t.csv"), "kind": "a"},
    }
    assert located(found, MARKS) == found


def test_values_of_variants_are_paths_too(here):
    variants = {"no_gate": {"folder": "a", "name": "a"}, "other": {"inner": {"table": "t"}}}
    found = located({"crossval": {"variants": variants, "folds": 2}}, MARKS)["crossval"]
    assert found["variants"]["no_gate"] == {"folder": str(here / "a"), "name": "a"}
    assert found["variants"]["other"] == {"inner": {"table": str(here / "t")}}


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ({"folder": ["a", None]}, {"folder": ["{here}/a", None]}),
        ({"inner.table": {"choice": ["a"]}}, {"inner.table": {"choice": ["{here}/a"]}}),
        ({"inner": {"table": ["a"]}}, {"inner": {"table": ["{here}/a"]}}),
        ({"folder": "default", "name": ["a"]}, {"folder": "default", "name": ["a"]}),
    ],
)
def test_choices_of_a_search_are_paths_too(here, search, expected):
    text = str(expected).replace("{here}", str(here))
    assert str(located({"search": search}, MARKS)["search"]) == text


@pytest.mark.parametrize(
    "name",
    ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", "hashing", "s3://b/model"],
)
def test_the_name_of_a_model_stays(name):
    assert located({"text_model": name}, MARKS) == {"text_model": name}


@pytest.mark.parametrize("name", ["./mini", "models/of/mine", "kept", "owner/kept"])
def test_a_model_is_a_folder_where_one_is_there_or_the_name_can_be_no_other(here, name):
    (here / "kept").mkdir()
    (here / "owner" / "kept").mkdir(parents=True)
    assert located({"text_model": name}, MARKS) == {"text_model": str(here / name)}


def test_a_folder_called_hashing_does_not_hide_the_embedding_without_a_model(here):
    (here / "hashing").mkdir()
    assert located({"text_model": "hashing"}, MARKS) == {"text_model": "hashing"}


@pytest.mark.parametrize(
    "uri", ["sqlite:////x/m.db", "http://h:5000", "databricks", "databricks://me", "file:///x"]
)
def test_the_uri_of_a_tracking_server_stays(uri):
    assert absolute_uri(uri) == uri


@pytest.mark.parametrize("uri", ["mlruns", "file:mlruns", "./mlruns", "uc/../mlruns"])
def test_a_tracking_uri_that_is_a_path_becomes_absolute(here, uri):
    assert Path(absolute_uri(uri)).resolve() == here / "mlruns"
    assert Path(absolute_uri(uri)).is_absolute()


def test_credentials_in_a_uri_are_refused():
    with pytest.raises(InputError, match="holds credentials"):
        located({"folder": "s3://me:secret@bucket/runs"}, MARKS)


def test_one_place_has_one_name_through_links_and_copies_for_jobs(here):
    (here / "real").mkdir()
    (here / "link").symlink_to("real")
    mark = MARKS["folder"]
    names = ("link/a", "real/a", "real/../link/a", str(here / "real" / "a"))
    assert {same_place(name, mark) for name in names} == {str((here / "real" / "a").resolve())}
    copies = (f"/tmp/ray/s/runtime_resources/working_dir_files/_ray_pkg_{n}/a.csv" for n in "12")
    assert {same_place(name, mark) for name in copies} == {"a.csv"}
    assert same_place("s3://b/a", mark) == "s3://b/a"
    assert same_place("mini", MARKS["text_model"]) == "mini"
