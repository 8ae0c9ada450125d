from pathlib import Path
from string import printable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehr_ray.errors import InputError, RunError
from ehr_ray.storage.paths import (
    STAGING,
    absolute,
    canonical,
    canonicals,
    check_output,
    inside,
    is_uri,
    join,
    local,
    location,
    parts_of,
    staging,
    uri_of,
    with_uris,
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
    assert uri_of(copy) == canonical(copy) == absolute(copy) == uri_of(uri) == uri
    assert uri_of(copy / "state" / "1") == join(uri, "state", "1")


def test_paths_are_left_as_they_are(tmp_path):
    assert local("runs/a") == Path("runs/a")
    assert uri_of(tmp_path) is None
    assert canonical("runs/a") == "runs/a"
    assert absolute("runs/a") == str(Path.cwd() / "runs/a")
    assert join("runs", "a") == "runs/a"
    assert location("runs/a") == Path.cwd() / "runs" / "a"
    assert location("s3://b/a") == "s3://b/a"
    assert not is_uri("runs/a")


def test_many_paths_have_the_names_that_each_has(tmp_path):
    names = ["0.parquet", "a/b", "c.parquet"]
    for folder in (local("s3://bucket/data?region=eu"), tmp_path, Path("runs"), Path()):
        paths = [folder / name for name in names]
        assert canonicals(paths) == [canonical(path) for path in paths]
    assert canonicals([]) == []


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


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://../runs", "no name of a bucket"),
        ("s3://./runs", "no name of a bucket"),
        ("s3://b,x=1/runs", "no name of a bucket"),
        ("s3:///runs", "no name of a bucket"),
        ("file://data/runs", "file:///data/runs"),
        ("s3://bucket/a\x00b", "not a URI"),
        ("s3://bucket/a\nb", "not a URI"),
        ("s3://bucket/" + "é" * 128, "255 bytes"),
        ("s3://bucket/a?region=" + "x" * 250, "255 bytes"),
        ("s3://bucket/a?secret%5Fkey=hush", "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_a_bucket_and_names_are_such_as_stores_and_folders_take(uri, said):
    with pytest.raises(InputError, match=said):
        local(uri)


@pytest.mark.parametrize("options", ["x=/../../..", "x=/../../../etc", "../..", "a/b", ".", "a,b"])
def test_options_of_a_uri_lead_nowhere(options, copies):
    copy = local(f"file:///src?{options}")
    assert copy.resolve().is_relative_to(copies / "file")
    assert copy.relative_to(copies).parts[0::2] == ("file", "src")
    assert uri_of(copy) == f"file:///src?{options}"


NAMES = st.text(st.sampled_from(printable + "é\x00\u2028") | st.characters(), max_size=20)
WORDS = NAMES | st.sampled_from(["..", ".", "", "/", "%2e%2e", "a", "x=/../..", "?", "#", ","])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["s3", "gs", "file", "ftp"]),
            st.sampled_from(["", "b", "b.c", "b,x", "b%2Cx", "..", "."]) | NAMES,
            st.lists(WORDS, max_size=4).map("/".join),
            st.sampled_from(["", "?", "?x=1", "?x%3D1", "?/../.."]) | NAMES.map("?{}".format),
        ),
        min_size=2,
        max_size=2,
    )
)
def test_every_uri_has_a_place_of_its_own_inside_the_folder_of_copies(copies, pair):
    found = []
    for scheme, bucket, path, options in pair:
        try:
            copy = local(f"{scheme}://{bucket}/{path}{options}")
        except InputError:
            continue
        assert copy.is_absolute()
        assert ".." not in copy.parts
        assert copy != copies
        assert copy.is_relative_to(copies)
        assert copy.resolve() == copy  # reads the disk, which refuses what is no name
        uri = uri_of(copy)
        assert local(uri) == copy
        assert parts_of(uri) == parts_of(f"{scheme}://{bucket}/{path}{options}")
        assert uri_of(copy / "below") == join(uri, "below")
        found.append((parts_of(uri), copy))
    if len(found) == 2:
        assert (found[0][0] == found[1][0]) == (found[0][1] == found[1][1])


def test_what_only_lies_among_the_copies_has_no_uri(copies):
    for name in ("s3", ".locks/a", "s3/b/../c", "s3/b/a?b", "s3/b/a#b", "s3/b,%41/a", "s3/,/a"):
        assert uri_of(copies / name) is None, name


def test_a_name_that_would_be_read_as_options_is_refused():
    for name in ("a?b", "a#b", ".."):
        with pytest.raises(InputError):
            join("s3://bucket/runs", name)


def test_nothing_outside_the_copies_is_written_or_removed(copies, tmp_path):
    (copies / "s3" / "b").mkdir(parents=True)
    (copies / "s3" / "b" / "away").symlink_to(tmp_path)
    (copies / "s3" / "b" / "file").symlink_to(tmp_path / "kept")
    fine = copies / "s3" / "b" / "file"  # the link itself is replaced
    assert inside(fine) == fine
    for path in (
        copies,
        copies / "..",
        copies / "s3" / ".." / ".." / "kept",
        copies / "s3" / "b" / "away" / "kept",
        tmp_path / "kept",
    ):
        with pytest.raises(RunError, match="leads out of"):
            inside(path)


def test_messages_speak_of_uris_not_of_copies(copies):
    copy = local("s3://bucket/cohort?scheme=http")
    text = f"{copy / 'data'}: no train split, see {copy}; or '{copy}'."
    assert with_uris(text) == (
        "s3://bucket/cohort/data?scheme=http: no train split, see s3://bucket/cohort?scheme=http; "
        "or 's3://bucket/cohort?scheme=http'."
    )
    assert with_uris("/elsewhere/a: gone") == "/elsewhere/a: gone"


def test_copies_lie_in_the_users_cache_by_default(monkeypatch):
    monkeypatch.delenv(STAGING)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert staging() == Path("/somewhere/ehr_ray/staging")


def test_a_message_names_places_in_the_working_folder_as_they_would_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = Path.cwd()
    assert with_uris(f"data.cohort={here}/my runs: gone; see {here}/a.") == (
        "data.cohort=my runs: gone; see a."
    )
    for text in (f"/mnt{here}/a", f"sqlite:///{here}/m.db", f"{here}-2/a", f"{here}: gone"):
        assert with_uris(text) == text
    monkeypatch.chdir("/")
    assert with_uris("/a: gone") == "/a: gone"


def test_a_message_is_told_though_the_working_folder_was_removed(tmp_path, monkeypatch, copies):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert with_uris(f"{copies}/s3/b/a: no; /c/d") == "s3://b/a: no; /c/d"


def test_what_is_written_is_never_where_a_file_or_folder_is_in_the_way(tmp_path):
    taken, folder = tmp_path / "taken", tmp_path / "folder"
    taken.write_text("")
    folder.mkdir()
    for fine in (folder, folder / "new", tmp_path / "a" / "b", "s3://bucket/a"):
        check_output(fine, "--output ")
    for fine in (taken, folder / "new", tmp_path / "a" / "b.json", "s3://bucket/a"):
        check_output(fine, "--output ", file=True)
    with pytest.raises(InputError, match=r"--output .*taken: is a file; name a folder"):
        check_output(taken, "--output ")
    with pytest.raises(InputError, match=r"--export .*folder: is a folder; name a file"):
        check_output(folder, "--export ", file=True)
    for file in (True, False):
        with pytest.raises(InputError, match=r"c: .*taken is a file; name a place in a folder"):
            check_output(taken / "b" / "c", "", file=file)
