"""Files of a store used where they lie, on `file://` URIs: the code of S3, without a server."""

import os

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from small_files import content, write

from ehr_ray.errors import InputError, MissingError, RunError, StoreUnavailableError
from ehr_ray.storage import in_place, sync
from ehr_ray.storage.paths import local
from ehr_ray.storage.sync import push


def test_a_footer_is_read_where_it_lies(store, tmp_path, transfers):
    folder, uri = store
    table = pa.table({"x": [1, 2, 3]})
    pq.write_table(table, folder / "t.parquet")
    assert in_place.footer(f"{uri}/t.parquet").num_rows == 3
    assert in_place.footer(folder / "t.parquet").num_rows == 3
    assert transfers == []


@pytest.mark.parametrize("first", [8, 1 << 16])
def test_a_footer_longer_than_what_is_asked_for_first_and_a_damaged_one(store, monkeypatch, first):
    folder, uri = store
    monkeypatch.setattr(in_place, "TAIL", first)
    pq.write_table(pa.table({"x": range(90)}), folder / "t.parquet", row_group_size=10)
    assert in_place.footer(f"{uri}/t.parquet").num_row_groups == 9
    whole = (folder / "t.parquet").read_bytes()
    cut = {"cut": whole[:-9], "none": b"", "long": b"\xff" * 8, "bad": b"\xff" * 200 + whole[-8:]}
    for name, content_ in cut.items():
        (folder / f"{name}.parquet").write_bytes(content_)
        with pytest.raises(InputError, match=f"{name}.parquet: unreadable"):
            in_place.footer(f"{uri}/{name}.parquet")


def test_a_parquet_file_is_read_where_it_lies_and_a_damaged_one_is_told_from_a_failing_store(
    store, transfers, monkeypatch
):
    folder, uri = store
    table = pa.table({"x": range(1000)})
    pq.write_table(table, folder / "t.parquet", compression="none", write_page_checksum=True)
    copy = local(f"{uri}/t.parquet")
    for place in (f"{uri}/t.parquet", copy):
        with in_place.parquet(place) as file:
            assert file.read().equals(table)
    whole = (folder / "t.parquet").read_bytes()
    flipped = whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]
    for damaged in (flipped, whole[:500], b""):
        (folder / "t.parquet").write_bytes(damaged)
        with (
            pytest.raises(InputError, match=r"t\.parquet: unreadable.*; mend it"),
            in_place.parquet(copy, "mend it") as file,
        ):
            file.read()
    (folder / "t.parquet").write_bytes(whole)
    for error, kind in [
        (OSError("AWS Error SLOW_DOWN during GetObject"), StoreUnavailableError),
        (OSError(5, "Input/output error"), StoreUnavailableError),
        (OSError("AWS Error ACCESS_DENIED during GetObject"), InputError),
    ]:
        with pytest.raises(kind, match=r"^file:.*t\.parquet: ") as told, in_place.parquet(copy):
            raise error
        assert "copy" not in str(told.value)  # nothing is copied
    with pytest.raises(MissingError), in_place.parquet(f"{uri}/none.parquet"):
        raise AssertionError
    assert transfers == []


def test_a_file_that_is_replaced_while_it_is_read_is_no_damaged_one(store):
    folder, uri = store
    table = pa.table({"x": range(1000)})

    def read(replace, told=None):
        pq.write_table(table, folder / "t.parquet")
        with in_place.parquet(f"{uri}/t.parquet"):
            replace()
            if told is not None:
                raise told

    changed = r"t\.parquet: changed while it was read; run the same"
    with pytest.raises(RunError, match=changed):
        read(lambda: pq.write_table(table.slice(7), folder / "t.parquet"))
    with pytest.raises(RunError, match=changed):  # of the same size
        read(lambda: os.utime(folder / "t.parquet", ns=(1, 1)))
    with pytest.raises(RunError, match=changed):
        read(lambda: (folder / "t.parquet").write_bytes(b"short"), InputError("cut short"))
    with pytest.raises(InputError, match="of its rows"):
        read(lambda: None, InputError("of its rows"))


def test_a_name_that_is_in_no_uri_is_read_where_it_lies(store):
    folder, uri = store
    table = pa.table({"x": [1, 2]})
    pq.write_table(table, folder / "a#1.parquet")
    copy = local(uri) / "a#1.parquet"
    with in_place.parquet(copy) as file:
        assert file.read().equals(table)
    assert in_place.footer(copy).num_rows == 2


def test_the_tail_of_an_object_is_what_was_added_or_all_of_a_new_one(store):
    folder, uri = store
    assert in_place.tail(f"{uri}/log", 0) == (b"", 0)
    write(folder, log="one\n")
    assert in_place.tail(f"{uri}/log", 0) == (b"one\n", 4)
    write(folder, log="one\ntwo\n")
    assert in_place.tail(f"{uri}/log", 4) == (b"two\n", 8)
    assert in_place.tail(f"{uri}/log", 8) == (b"", 8)
    write(folder, log="new\n")
    assert in_place.tail(f"{uri}/log", 8) == (b"new\n", 4)


def test_files_are_brought_by_name_wherever_they_are_wanted(store, transfers):
    folder, uri = store
    write(folder, a="1", sub__b="2", c="3")
    target = local(uri) / ".work"
    in_place.bring(uri, {"a", "sub/b"}, target)
    in_place.bring(uri, {"a"}, target)
    assert content(target) == {"a": "1", "sub/b": "2"}
    assert sorted(transfers) == ["a", "b"]
    with pytest.raises(InputError, match="no d there"):
        in_place.bring(uri, {"a", "d"}, target)


def test_what_is_left_comes_with_its_last_file_at_last(store, transfers, tmp_path):
    folder, uri = store
    write(tmp_path / "made", part__z="1", part__a="2", other="3")
    in_place.leave(tmp_path / "made", {"part/a", "part/z"}, f"{uri}/there", "part/a")
    assert content(folder) == {"there/part/z": "1", "there/part/a": "2"}
    assert [os.path.basename(name) for name in transfers] == ["z", "a"]
    assert in_place.exists(f"{uri}/there", "part/a")
    assert not in_place.exists(f"{uri}/there", "other")
    assert in_place.exists(tmp_path / "made", "other")
    assert in_place.folders_in(f"{uri}/there") == {"part"}
    assert in_place.folders_in(f"{uri}/none") == in_place.folders_in(tmp_path) == set()


def test_folders_are_found_where_a_store_lists_its_files_alone(store, monkeypatch):
    """As Google's, which knows no folders, through pyarrow."""
    folder, uri = store
    write(folder, there__a="1", there__part__b="2", there__sub__deep__c="3")

    class Files:
        type_name = "gcs"

        def get_file_info(self, selector):
            found = pafs.LocalFileSystem().get_file_info(selector)
            return [info for info in found if info.is_file]

    monkeypatch.setattr(in_place, "filesystem", lambda uri: (Files(), uri.removeprefix("file://")))
    assert in_place.folders_in(f"{uri}/there") == {"part", "sub"}
    assert in_place.folders_in(f"{uri}/none") == set()


def test_parts_of_a_file_are_read_where_it_lies(store, transfers):
    folder, uri = store
    write(folder, sub__a="0123456789")
    for place in (folder, uri):
        with in_place.opened(place, "sub/a") as file:
            file.seek(3)
            assert file.read_buffer(4).to_pybytes() == b"3456"
        with in_place.opened(place, "sub/none") as file:
            assert file is None
    assert transfers == []


def test_a_folder_is_made_whole_of_what_lies_there_and_what_is_here(store):
    folder, uri = store
    write(folder, staged__data__0="0", staged__data__1="1", out__data__9="of another")
    write(folder, out__metadata__old="x", out__runs__a="of another")
    copy = local(f"{uri}/out")
    write(copy, metadata__codes="m")
    sync.mark(copy)
    in_place.copy_within(f"{uri}/staged", {"data/0", "data/1"}, f"{uri}/out")
    push(copy, whole=("data", "metadata"), kept={"data/0", "data/1"})
    whole = {"data/0": "0", "data/1": "1", "metadata/codes": "m"}
    assert content(folder / "out") == {**whole, "runs/a": "of another"}
