import http.server
import re
import threading
from types import SimpleNamespace

import pyarrow as pa
import pytest

from ehr_ray.errors import InputError, RunError
from ehr_ray.storage import object_stores
from ehr_ray.storage.object_stores import endpoint, explained, filesystem, lies_in
from ehr_ray.storage.paths import local
from ehr_ray.storage.sync import fetch

GOOGLE = "google::cloud::Status"


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("AWS Error NO_SUCH_BUCKET during X", InputError, "no such bucket"),
        ("AWS Error ACCESS_DENIED during X: key AKIA1", InputError, "AWS_SECRET_ACCESS_KEY"),
        ("AWS Error NETWORK_CONNECTION during X", RunError, "AWS_ENDPOINT_URL"),
        ("AWS Error SLOW_DOWN during X: of AKIA1", RunError, "SLOW_DOWN"),
        (
            f"{GOOGLE}(NOT_FOUND: Permanent error, AKIA1)",
            InputError,
            "no such bucket or object; check",
        ),
        (f"{GOOGLE}(PERMISSION_DENIED: AKIA1)", InputError, "GOOGLE_APPLICATION_CREDENTIALS"),
        (f"{GOOGLE}(UNAUTHENTICATED: AKIA1)", InputError, "GOOGLE_APPLICATION_CREDENTIALS"),
        (f"{GOOGLE}(UNAVAILABLE: AKIA1)", RunError, "no store answers"),
        (f"{GOOGLE}(RESOURCE_EXHAUSTED: AKIA1)", RunError, "store answered RESOURCE_EXHAUSTED;"),
    ],
)
def test_what_a_store_refuses_is_one_line_without_its_details(text, kind, said):
    for error in (OSError(text), OSError(2, text)):  # Google's have a number as a disk's have
        with pytest.raises(kind, match=said) as caught, explained("s3://b/a"):
            raise error
        assert str(caught.value).startswith("s3://b/a: ")
        assert "AKIA1" not in str(caught.value)


def test_a_full_disk_names_the_folder_of_copies():
    with pytest.raises(RunError, match="EHR_RAY_STAGING"), explained("s3://b/a"):
        raise OSError(28, "No space left on device")


def test_google_s_library_asks_a_store_that_is_away_for_a_minute(monkeypatch):
    asked = []
    monkeypatch.setattr(
        object_stores, "_connected", lambda *given: asked.append(given) or (None, "b")
    )
    for uri in ("gs://b/a", "gs://b/a?retry_limit_seconds=5", "gcs://b/a?scheme=http"):
        filesystem(uri)
    assert asked == [
        ("gs://b", "retry_limit_seconds=60"),
        ("gs://b", "retry_limit_seconds=5"),
        ("gcs://b", "scheme=http&retry_limit_seconds=60"),
    ]


def test_an_unknown_kind_of_storage_is_refused():
    for uri in ("ftp://host/a", "abfs://host/a"):
        with pytest.raises(InputError, match="use s3, gs"):
            fetch(uri)


@pytest.fixture
def asked():
    """The requests that came to a store, which takes all, and its URI."""
    seen = []

    class Store(http.server.BaseHTTPRequestHandler):
        def do_PUT(self):
            seen.append((self.command, self.path))
            for end in (b"0\r\n", b"\r\n"):  # of the last chunk, and of what follows it
                for _ in iter(self.rfile.readline, end):
                    pass
            self.send_response(200)
            self.send_header("ETag", '"0"')
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        yield seen, f"s3://hospital/a?endpoint_override={address}&scheme=http&region=us-east-1"
        server.shutdown()


def test_a_small_file_is_one_request(asked, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    seen, uri = asked
    store, path = filesystem(uri)
    with store.open_output_stream(path) as stream:
        stream.write(b"small")
    assert seen == [("PUT", "/hospital/a")]


def test_a_library_that_knows_no_such_option_goes_without(monkeypatch):
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)

    def older(uri):
        if "delayed" in uri:
            raise pa.ArrowInvalid("Unexpected query parameter")
        return uri, "older"

    library = SimpleNamespace(FileSystem=SimpleNamespace(from_uri=older))
    monkeypatch.setattr(object_stores, "pafs", library)
    assert filesystem("s3://older/a?region=x") == ("s3://older?region=x", "older/a")


def test_the_endpoint_comes_from_the_usual_variables(monkeypatch):
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    assert endpoint("") == ""
    assert endpoint("region=eu-1") == "region=eu-1"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    assert endpoint("") == "endpoint_override=127.0.0.1:9000&scheme=http&region=us-east-1"
    monkeypatch.setenv("AWS_REGION", "eu-1")
    assert endpoint("endpoint_override=a:1") == "endpoint_override=a:1&region=eu-1"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://hospital/a?x=/../../../victim", "Unexpected query parameter in S3 URI: 'x'; check"),
        ("gs://hospital/a?x=y", "Unexpected query parameter in GCS URI: 'x'; check it"),
    ],
)
def test_an_option_that_no_store_knows_is_the_callers_error(uri, said, monkeypatch):
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=re.escape(said)), explained(uri):
        filesystem(uri)


@pytest.mark.parametrize(
    ("location", "folder", "lies"),
    [
        ("s3://b/in/out", "s3://b/in", True),
        ("s3://b/in", "s3://b/in/", True),
        ("s3://b/in", "s3://b", True),
        ("s3://b/inner", "s3://b/in", False),
        ("s3://b/in/out", "s3://c/in", False),
        ("s3://b/in/out", "gs://b/in", False),
        ("gcs://b/in/out", "gs://b/in", True),
        ("s3://b/in/out?region=x", "s3://b/in", True),
        ("s3://b/in/out?endpoint_override=a:1", "s3://b/in", False),
        (
            "s3://b/in/out?endpoint_override=a:1&scheme=http",
            "s3://b/in?endpoint_override=a:1",
            True,
        ),
        ("in/out", "s3://b/in", False),
        ("in/out", "in", True),
        ("in/../out", "in", False),
        ("linked/out", "in", True),
        ("file://{}/linked/out", "in", True),
        ("in", "file://{}", True),
    ],
)
def test_a_place_lies_in_a_folder_by_whichever_name_it_is_given(
    tmp_path, monkeypatch, location, folder, lies
):
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "linked").symlink_to("in")
    location, folder = (name.format(tmp_path) for name in (location, folder))
    assert lies_in(location, folder) == lies
    if "://" in location:
        assert lies_in(local(location), folder) == lies  # its copy is known as it
