import os

import pyarrow.fs as pafs
import pytest
from small_files import content, write

from ehr_ray.errors import RunError
from ehr_ray.storage.paths import STAGING
from ehr_ray.storage.transfers import download, each, join, stamp_of, upload

STORE = pafs.LocalFileSystem()


def test_a_copy_has_the_stamp_of_its_object_and_one_of_another_size_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    write(tmp_path, there="text")
    os.utime(tmp_path / "there", ns=(10**18, 10**18))
    copy = tmp_path / "copies" / "a" / "here"
    download(STORE, str(tmp_path / "there"), copy, (4, 10**18))
    assert stamp_of(copy) == stamp_of(tmp_path / "there") == (4, 10**18)
    with pytest.raises(RunError, match="there: changed while it was copied"):
        download(STORE, str(tmp_path / "there"), copy.with_name("other"), (5, 10**18))
    assert content(copy.parent) == {"here": "text"}
    assert stamp_of(copy.with_name("other")) is None
    upload(STORE, copy, str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "text"


def test_the_first_error_of_several_transfers_is_raised():
    done = []

    def copied(name):
        if name == "b":
            raise OSError("away")
        done.append(name)

    with pytest.raises(OSError, match="away"):
        each(copied, {"a", "b"})
    each(copied, {"c", "d"})
    assert {"c", "d"} <= {*done}


def test_names_are_joined_to_what_may_be_a_bucket_or_nothing():
    assert [join(*pair) for pair in (("b", "n"), ("", "n"), ("b", ""))] == ["b/n", "n", "b"]
