"""Copies of a store and back, on `file://` URIs: the same code as for S3, without a server."""

import json
import os

import pyarrow.fs as pafs
import pytest
from small_files import content, shown, write

from ehr_ray.errors import InputError, MissingError, RunError
from ehr_ray.storage import in_place, lock, runs, sync
from ehr_ray.storage.listing import LISTING
from ehr_ray.storage.lock import exclusive_lock
from ehr_ray.storage.paths import COHORT_FOLDERS, STAGING, canonical, local, with_uris
from ehr_ray.storage.sync import MARK, fetch, outline, push


def test_a_path_is_neither_copied_nor_touched(tmp_path, transfers):
    assert fetch(tmp_path / "none") == tmp_path / "none"
    push(tmp_path)
    assert transfers == []


def test_fetch_copies_what_changed_and_removes_what_is_gone(store, transfers):
    folder, uri = store
    write(folder, a="1", sub__b="2", sub__c="3")
    copy = fetch(uri)
    assert content(copy) == {"a": "1", "sub/b": "2", "sub/c": "3"}
    assert sorted(transfers) == ["a", "b", "c"]
    transfers.clear()
    write(folder, a="11")
    (folder / "sub" / "b").unlink()
    (folder / "sub" / "c").unlink()
    assert content(fetch(uri)) == {"a": "11"}
    assert transfers == ["a"]
    assert not (copy / "sub").exists()


def test_what_is_read_in_its_store_is_not_copied_and_an_old_copy_is_removed(store, transfers):
    folder, uri = store
    write(folder, sub__a="1", sub__b="2", c="3")
    copy = sync.fetch(f"{uri}/sub")
    transfers.clear()
    write(folder, sub__a="11")
    assert sync.in_store(f"{uri}/sub") == copy
    assert content(copy) == {"b": "2"}
    assert sync.in_store(f"{uri}/c") == local(f"{uri}/c")
    assert not local(f"{uri}/c").exists()
    assert transfers == []
    assert sync.in_store(folder / "c") == folder / "c"
    with pytest.raises(MissingError, match="d: nothing there"):
        sync.in_store(f"{uri}/d")


def test_stamps_are_those_of_the_store(store, tmp_path):
    folder, uri = store
    write(folder, a="1", sub__b="22", sub___c="3")
    os.utime(folder / "a", ns=(5, 5))
    assert sync.stamps_in(uri)["a"] == sync.stamps_in(folder)["a"] == (1, 5)
    assert sync.sizes_in(uri) == sync.sizes_in(folder)


def test_one_file_and_some_files_of_a_folder(store, transfers):
    folder, uri = store
    write(folder, a="1", b="2")
    assert fetch(f"{uri}/a").read_text() == "1"
    assert content(fetch(uri, only=("b",))) == {"a": "1", "b": "2"}
    assert transfers == ["a", "b"]


def test_what_is_not_asked_for_is_left_as_it_is(store):
    folder, uri = store
    write(folder, a="1", sub__b="2", sub__c="3")
    copy = local(uri)
    write(copy, on_its_way="new", sub__old="0", a="old")
    assert content(fetch(uri, only=("a",))) == {"a": "1", "on_its_way": "new", "sub/old": "0"}
    assert content(fetch(uri, below=("sub",))) == {
        "a": "1", "on_its_way": "new", "sub/b": "2", "sub/c": "3"
    }  # fmt: skip


def test_of_a_cohort_s_folder_its_own_files_come(store):
    folder, uri = store
    write(folder, data__train__0="rows", metadata__codes="c", labels__m="l", note="mine")
    write(folder, runs__a__checkpoint__weights="w")
    copy = local(uri)
    write(copy, runs__a__state__2__weights="on its way", labels__old="gone")
    ours = {"metadata/codes": "c", "labels/m": "l"}
    runs = {"runs/a/state/2/weights": "on its way"}
    found = content(sync.fetch_cohort(uri))
    assert json.loads(found.pop(LISTING)).keys() == {"data/train/0"}
    assert found == ours | runs
    assert content(sync.fetch_cohort(uri, shards=True)) == ours | runs | {"data/train/0": "rows"}
    assert sync.fetch_cohort(f"{uri}/runs").is_dir()  # whose reader says what it is not
    with pytest.raises(MissingError):
        sync.fetch_cohort(f"{uri}/none")
    assert not sync.fetch_cohort(f"{uri}/none", missing_ok=True).exists()


def test_what_evaluate_makes_in_a_run_is_fetched_while_it_is_trained(store):
    folder, uri = store
    write(folder, **{".parts__held_out__samples": "1", "history": "1"})
    copy = local(uri)
    write(copy, history="22")
    with exclusive_lock(copy / lock.RUN_LOCK):
        assert shown(fetch(f"{uri}/.parts")) == {"held_out/samples": "1"}


def test_a_fetch_of_a_folder_leaves_a_run_in_it_that_is_trained(store):
    folder, uri = store
    write(folder, runs__a__history="1", runs__b__history="1")
    copy = fetch(uri)
    write(copy, runs__a__history="22", runs__a__state__2="22", runs__b__history="22")
    with exclusive_lock(copy / "runs" / "a" / lock.RUN_LOCK):
        fetch(uri)
    found = {name: text for name, text in content(copy).items() if lock.RUN_LOCK not in name}
    assert found == {"runs/a/history": "22", "runs/a/state/2": "22", "runs/b/history": "1"}


def test_a_push_of_some_files_sends_no_others(store):
    folder, uri = store
    write(folder, history="of another machine")
    write(local(uri), history="old", metrics="new", embeddings__a="new")
    push(uri, only={"metrics", "embeddings/a"})
    assert content(folder) == {
        "history": "of another machine", "metrics": "new", "embeddings/a": "new"
    }  # fmt: skip


def test_a_file_comes_where_a_folder_was_and_a_folder_where_a_file_was(store):
    folder, uri = store
    write(folder, x__a="1")
    fetch(f"{uri}/x")
    (folder / "x" / "a").unlink()
    (folder / "x").rmdir()
    write(folder, x="a file")
    write(local(f"{uri}/x"), **{".listing.json": "of the folder"})
    assert fetch(f"{uri}/x").read_text() == "a file"
    (folder / "x").unlink()
    write(folder, x__a="1")
    assert content(fetch(f"{uri}/x")) == {"a": "1"}


def test_an_object_is_no_cohort_and_told_by_who_reads_it(store):
    folder, uri = store
    write(folder, x="a file")
    assert sync.fetch_cohort(f"{uri}/x").is_file()


def test_push_writes_what_changed_and_a_fetch_after_it_copies_nothing(store, transfers):
    folder, uri = store
    copy = local(uri)
    write(copy, a="1", sub__b="2", **{".lock": "", ".cache__x": "of this machine"})
    push(uri)
    assert content(folder) == {"a": "1", "sub/b": "2"}
    transfers.clear()
    write(copy, a="changed")
    push(uri)
    fetch(uri)
    assert transfers == ["a"]
    assert (copy / ".lock").exists()


def test_push_removes_only_in_the_folders_it_mirrors(store):
    folder, uri = store
    write(folder, state__1__w="old", kept__x="of another machine")
    write(local(uri), state__2__w="new")
    push(uri, mirror=("state",))
    assert content(folder) == {"state/2/w": "new", "kept/x": "of another machine"}


def fails_at(monkeypatch, name):
    was = sync.upload

    def upload(store, source, path):
        if source.name == name:
            raise OSError("AWS Error NETWORK_CONNECTION during PutObject")
        was(store, source, path)

    monkeypatch.setattr(sync, "upload", upload)
    return was


def test_an_interrupted_push_of_a_state_leaves_the_older_one_to_readers(store, monkeypatch):
    folder, uri = store
    names = ("model.safetensors", "optimizer.safetensors", "progress.yaml")
    copy = local(uri)
    write(copy, **{f"state__1__{name}": "old" for name in names})
    push(uri, mirror=("state",))
    for name in names:
        (copy / "state" / "1" / name).unlink()
    write(copy, **{f"state__2__{name}": "new" for name in names})
    was = fails_at(monkeypatch, "model.safetensors")
    with pytest.raises(RunError, match="AWS_ENDPOINT_URL"):
        push(uri, mirror=("state",))
    there = content(folder)
    assert {n for n in there if n.startswith("state/1/")} == {f"state/1/{n}" for n in names}
    assert "state/2/progress.yaml" not in there
    monkeypatch.setenv(STAGING, str(folder.parent / "other machine"))
    assert [state.name for state in (runs.fetch_run(uri) / "state").iterdir()] == ["1"]
    monkeypatch.setenv(STAGING, str(folder.parent / "copies"))
    monkeypatch.setattr(sync, "upload", was)
    push(uri, mirror=("state",))
    assert content(folder) == {f"state/2/{name}": "new" for name in names}


def test_a_half_written_object_never_has_its_name(store, monkeypatch):
    folder, uri = store
    write(local(uri), a="whole")
    copied = sync.pafs.copy_files

    def half(source, target, **filesystems):
        copied(source, target, **filesystems)
        with open(target, "w") as file:
            file.write("who")
        raise OSError("AWS Error NETWORK_CONNECTION")

    monkeypatch.setattr(sync.pafs, "copy_files", half)
    with pytest.raises(RunError):
        push(uri)
    assert sync.names_in(uri) == set()
    monkeypatch.undo()
    write(folder, b="whole")
    monkeypatch.setenv(STAGING, str(folder.parent / "others"))
    monkeypatch.setattr(sync.pafs, "copy_files", half)
    with pytest.raises(RunError):
        fetch(uri)
    assert not (local(uri) / "b").exists()


def test_a_folder_that_is_not_whole_is_refused_until_it_is(store, monkeypatch):
    folder, uri = store
    write(folder, labels__gone="of an older cohort", runs__a="of another")
    write(local(uri), data__a="1", data__b="2", runs__b="of another")
    was = fails_at(monkeypatch, "b")
    with pytest.raises(RunError):
        push(uri, whole=COHORT_FOLDERS)
    assert sync.unfinished(uri)
    with pytest.raises(InputError, match="interrupted"):
        fetch(uri)
    monkeypatch.setattr(sync, "upload", was)
    push(uri, whole=COHORT_FOLDERS)
    assert not sync.unfinished(uri)
    assert content(folder) == {"data/a": "1", "data/b": "2", "runs/a": "of another"}
    assert not (folder / MARK).exists()


def test_what_is_gone_before_it_is_sent_is_told(store, monkeypatch):
    folder, uri = store
    write(folder, out__labels="of before")
    for place in (f"{uri}/out", f"{uri}/out/labels"):
        with pytest.raises(RunError, match=rf"^{place}: gone before it was sent; run the same"):
            push(place, whole=COHORT_FOLDERS)
    copy, was = local(f"{uri}/out"), sync.upload
    write(copy, a="1")

    def upload(store, source, path):
        source.unlink()
        was(store, source, path)

    monkeypatch.setattr(sync, "upload", upload)
    with pytest.raises(RunError, match=rf"^{uri}/out: a: gone before it was sent; run the same"):
        push(copy)
    assert content(folder) == {"out/labels": "of before"}


def test_nothing_there_is_one_line_or_an_empty_copy(store):
    _, uri = store
    write(local(uri), left="over")
    with pytest.raises(InputError, match=f"{uri}/no: nothing there"):
        fetch(f"{uri}/no")
    assert not list(fetch(uri, missing_ok=True).iterdir())


def test_remove_takes_it_from_both_places(store):
    folder, uri = store
    write(folder, a="1", sub__b="2")
    fetch(uri)
    sync.remove(f"{uri}/sub")
    sync.remove(local(uri) / "a")
    sync.remove(f"{uri}/never")
    assert content(folder) == {}
    assert content(local(uri)) == {}


def test_the_name_of_an_object_leads_out_of_no_folder(store, monkeypatch):
    class Keys:
        """A store whose keys are what nobody would call a path."""

        type_name = "s3"

        def get_file_info(self, asked):
            if isinstance(asked, str):
                return pafs.FileInfo(asked, pafs.FileType.Directory)
            keys = [
                "b/cohort/a",
                "b/cohort/../secret",
                "b/cohort/../../../etc/x",
                "b/cohort//etc/x",
            ]
            file = {"type": pafs.FileType.File, "size": 1, "mtime_ns": 0}
            return [pafs.FileInfo(key, **file) for key in keys]

    monkeypatch.setattr(sync, "filesystem", lambda _: (Keys(), "b/cohort"))
    assert sync.names_in("s3://b/cohort") == {"a", "etc/x"}
    fetched = []
    monkeypatch.setattr(sync, "download", lambda *args: fetched.append(args[2]))
    copy = sync.fetch("s3://b/cohort")
    assert set(fetched) == {copy / "a", copy / "etc" / "x"}


def test_options_that_lead_upwards_remove_nothing(store, tmp_path):
    folder, uri = store
    write(tmp_path, mine="kept")
    write(folder, a="1")
    copy = fetch(f"{uri}?x=/../../../../..{'/..' * len(folder.parts)}{tmp_path}")
    assert content(copy) == {"a": "1"}
    assert copy.resolve().is_relative_to(tmp_path / "copies")
    assert (tmp_path / "mine").read_text() == "kept"


def test_a_link_among_the_copies_is_not_followed_out_of_them(store, tmp_path):
    folder, uri = store
    outside = tmp_path / "outside"
    write(outside, mine="kept", state__1__w="kept")
    write(folder, a="1", sub__b="2")
    copy = local(uri)
    copy.parent.mkdir(parents=True)
    copy.symlink_to(outside)
    for call in (fetch, runs.fetch_run, lambda u: sync.remove(f"{u}/mine")):
        with pytest.raises(RunError, match="EHR_RAY_STAGING"):
            call(uri)
    copy.unlink()
    copy.mkdir()
    (copy / "sub").symlink_to(outside)
    with pytest.raises(RunError, match="leads out of"):
        fetch(uri)
    assert content(outside) == {"mine": "kept", "state/1/w": "kept"}
    assert content(folder) == {"a": "1", "sub/b": "2"}


def test_a_link_in_place_of_a_copy_is_replaced_not_written_through(store, tmp_path):
    folder, uri = store
    write(tmp_path, mine="kept")
    write(folder, a="1")
    copy = local(uri)
    copy.mkdir(parents=True)
    for name in ("a", f".a.{os.getpid()}"):
        (copy / name).symlink_to(tmp_path / "mine")
    assert (fetch(uri) / "a").read_text() == "1"
    assert not (copy / "a").is_symlink()
    assert (tmp_path / "mine").read_text() == "kept"


@pytest.mark.parametrize("name", ["a#1", "b/c?x"])
def test_a_name_that_is_in_no_uri_is_fetched_from_its_folder(store, name):
    folder, uri = store
    (folder / "b").mkdir(parents=True)
    (folder / name).write_text("1")
    stood = outline(uri)
    assert fetch(stood / name).read_text() == "1"
    (folder / name).write_text("new")
    assert fetch(stood / name).read_text() == "new"
    (folder / name).unlink()
    with pytest.raises(InputError, match="nothing there"):
        fetch(stood / name)


def test_an_outline_has_names_sizes_and_times_and_nothing_of_the_files(store, transfers):
    folder, uri = store
    write(folder, a="1", b__c="222", b__d="3", **{".hidden": "4"})
    stood = outline(uri)
    assert content(stood) == {"a": "\0", "b/c": "\0\0\0", "b/d": "\0"}
    for name in content(stood):
        there, here = (folder / name).stat(), (stood / name).stat()
        assert (here.st_size, here.st_mtime_ns) == (there.st_size, there.st_mtime_ns)
        assert canonical(stood / name) == f"{uri}/{name}"
        assert not in_place.is_here(stood / name)
        with in_place.binary(stood / name) as file:
            assert file.read().decode() == (folder / name).read_text()
    assert with_uris(f"{stood}/b/c: bad") == f"{uri}/b/c: bad"
    assert transfers == []
    copied = fetch(stood / "b" / "c")
    assert (copied.read_text(), copied, transfers) == ("222", local(f"{uri}/b/c"), ["c"])
    (folder / "a").unlink()
    (folder / "b" / "c").write_text("more")
    assert content(outline(uri)) == {"b/c": "\0" * 4, "b/d": "\0"}
    assert outline(f"{uri}/b/d").read_text() == "\0"
    assert outline(folder) == folder
    with pytest.raises(InputError, match="nothing there"):
        outline(f"{uri}/none")
    sync.mark(f"{uri}/b")
    with pytest.raises(InputError, match="is being written"):
        outline(f"{uri}/b")
