from pathlib import Path

import pytest

from ehr_ray.errors import InputError
from ehr_ray.storage.paths import (
    STAGING,
    absolute,
    below,
    is_uri,
    local,
    location,
    named,
    parts_of,
    spoken,
    staging,
    uri_of,
)


@pytest.fixture(autouse=True)
def copies(tmp_path, monkeypatch):
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    return tmp_path / "copies"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/runs/a",
        "gs://bucket/a.parquet",
        "file:///data/a",
        "s3://bucket/a?endpoint_override=localhost:9000&scheme=http",
    ],
)
def test_a_uri_and_its_copy_are_found_from_each_other(uri, copies):
    copy = local(uri)
    assert copies in copy.parents
    assert uri_of(copy) == named(copy) == absolute(copy) == uri_of(uri) == uri
    assert uri_of(copy / "state" / "1") == below(uri, "state", "1")


def test_paths_are_left_as_they_are(tmp_path):
    assert local("runs/a") == Path("runs/a")
    assert uri_of(tmp_path) is None
    assert named("runs/a") == "runs/a"
    assert absolute("runs/a") == str(Path.cwd() / "runs/a")
    assert below("runs", "a") == "runs/a"
    assert location("runs/a") == Path.cwd() / "runs" / "a"
    assert location("s3://b/a") == "s3://b/a"
    assert not is_uri("runs/a")


def test_slashes_at_the_end_and_twice_make_no_other_place():
    assert local("s3://bucket/runs//a/") == local("s3://bucket/runs/a")
    assert parts_of("s3://bucket/") == ("s3", "bucket", "", "")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAKEY:hush@bucket/runs",
        "s3://bucket/runs?access_key=AKIAKEY&secret_key=hush",
        "s3://bucket/runs?session_token=hush",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri):
    with pytest.raises(InputError, match="AWS_SECRET_ACCESS_KEY") as caught:
        local(uri)
    assert "hush" not in str(caught.value)
    assert "AKIAKEY" not in str(caught.value)


@pytest.mark.parametrize("uri", ["s3://bucket/../other", "s3://bucket/a/./b"])
def test_a_uri_leads_out_of_no_folder(uri):
    with pytest.raises(InputError, match="whole path"):
        local(uri)


def test_messages_speak_of_uris_not_of_copies(copies):
    copy = local("s3://bucket/cohort?scheme=http")
    text = f"{copy / 'data'}: no train split, see {copy}; or '{copy}'."
    assert spoken(text) == (
        "s3://bucket/cohort/data?scheme=http: no train split, see s3://bucket/cohort?scheme=http; "
        "or 's3://bucket/cohort?scheme=http'."
    )
    assert spoken("/elsewhere/a: gone") == "/elsewhere/a: gone"


def test_copies_lie_in_the_users_cache_by_default(monkeypatch):
    monkeypatch.delenv(STAGING)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert staging() == Path("/somewhere/ehr_ray/staging")


def test_a_message_names_places_in_the_working_folder_as_they_would_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = Path.cwd()
    assert spoken(f"data.cohort={here}/my runs: gone; see {here}/a.") == (
        "data.cohort=my runs: gone; see a."
    )
    for text in (f"/mnt{here}/a", f"sqlite:///{here}/m.db", f"{here}-2/a", f"{here}: gone"):
        assert spoken(text) == text
    monkeypatch.chdir("/")
    assert spoken("/a: gone") == "/a: gone"
