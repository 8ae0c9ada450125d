"""The files of a folder, as a store and as this machine has them."""

import os

import pyarrow.fs as pafs
import pytest
from small_files import write

from ehr_ray.storage.contents import files_of, is_hidden, objects, walked

LOCAL = pafs.LocalFileSystem()


def test_a_store_and_this_machine_tell_the_same_of_a_folder_but_hidden_names(tmp_path):
    write(tmp_path, a="1", sub__b="22", **{".lock": "", "sub__.part": "x"})
    os.utime(tmp_path / "a", ns=(5, 5))
    here, there = files_of(tmp_path), objects(LOCAL, str(tmp_path))
    assert here["a"] == (1, 5)
    assert here.keys() == {"a", "sub/b"}
    assert {name: stamp for name, stamp in there.items() if not is_hidden(name)} == here
    assert {name for name in there if is_hidden(name)} == {".lock", "sub/.part"}


def test_a_folder_is_walked_in_order_and_hidden_names_are_passed_over(tmp_path):
    write(
        tmp_path, b="1", a="1", sub__b="2", sub__deep__c="3", last__d="4", **{".x": "", "._a": ""}
    )
    write(tmp_path, **{".trash__e": "5", "sub__.kept__f": "6", "sub__.g": "7"})
    (tmp_path / "linked").symlink_to(tmp_path / "sub")
    assert [*walked(tmp_path)] == [
        ("", ["a", "b"]),
        ("last/", ["d"]),
        ("sub/", ["b"]),
        ("sub/deep/", ["c"]),
    ]
    assert [*walked(tmp_path / "none")] == []


def test_a_file_has_no_name_and_what_is_not_there_no_files(tmp_path):
    write(tmp_path, a="1")
    assert files_of(tmp_path / "a") == objects(LOCAL, str(tmp_path / "a"))
    assert files_of(tmp_path / "a").keys() == {""}
    assert files_of(tmp_path / "b") == objects(LOCAL, str(tmp_path / "b")) == {}


@pytest.mark.parametrize(
    ("name", "hidden"), [("a/b", False), ("a/.b", True), (".a/b", True), ("../a", True)]
)
def test_a_name_is_hidden_by_a_dot_before_it_or_a_folder_of_it(name, hidden):
    assert is_hidden(name) == hidden
