"""A copy of which a folder is known and not there, on `file://` URIs."""

import shutil
from pathlib import Path

import pytest
from small_files import content, write

from ehr_ray.commands.expand import expand
from ehr_ray.errors import ConfigError, InputError
from ehr_ray.events.labels import task_files
from ehr_ray.events.manifest import is_contradicted, stamps
from ehr_ray.events.patients import splits_of
from ehr_ray.sources.expanded import CODES, RECORD, check_made_of, fetch_sets, shards_of
from ehr_ray.storage import in_place
from ehr_ray.storage.listing import LISTING, parquet_below, stamp, stamped
from ehr_ray.storage.paths import absolute
from ehr_ray.storage.sync import fetch, fetch_cohort


def test_what_is_listed_has_name_size_and_time_and_is_not_copied(store, transfers):
    folder, uri = store
    write(folder, metadata__codes="1", data__train__a__b__0="123", data__tuning__c="12")
    (folder / "data" / "train" / "0.parquet").write_text("1234")
    copy = fetch(uri, listed=("data",))
    assert content(copy).keys() == {"metadata/codes", LISTING}
    assert transfers == ["codes"]
    assert parquet_below(copy / "data") == [copy / "data" / "train" / "0.parquet"]
    assert parquet_below(copy / "data" / "tuning") == []
    for name in ("data/train/0.parquet", "data/tuning/c", "metadata/codes"):
        there = (folder / name).stat()
        assert stamp(copy / name) == (there.st_size, there.st_mtime_ns)
        assert stamped([copy / name]) == [(f"{uri}/{name}", there.st_size, there.st_mtime_ns, 0)]
    with pytest.raises(FileNotFoundError):
        stamp(copy / "data" / "none")
    with pytest.raises(FileNotFoundError):
        stamp(folder / "none")


def test_one_of_them_that_is_fetched_stays_while_it_is_as_in_the_store(store, transfers):
    folder, uri = store
    write(folder, **{"data__train__0.parquet": "1", "data__train__1.parquet": "2"})
    copy = fetch_cohort(uri)
    first, second = (copy / "data" / "train" / f"{n}.parquet" for n in range(2))
    assert fetch(first).read_text() == "1"
    fetch(second)
    write(folder, **{"data__train__0.parquet": "changed"})
    assert fetch_cohort(uri) == copy
    assert [path.exists() for path in (first, second)] == [False, True]
    assert stamp(first)[0] == len("changed")
    (folder / "data" / "train" / "1.parquet").unlink()
    fetch_cohort(uri)
    assert parquet_below(copy) == [first]


def test_a_whole_copy_has_no_listing(store):
    folder, uri = store
    write(folder, **{"data__train__0.parquet": "1"})
    copy = fetch_cohort(uri)
    fetch(copy / "data" / "train" / "0.parquet")
    assert (copy / LISTING).is_file()
    fetch(uri)
    assert not (copy / LISTING).exists()
    (folder / "data" / "train" / "0.parquet").unlink()
    write(folder, metadata__x="1")
    assert parquet_below(fetch(uri)) == []


def test_a_path_is_its_own_listing(tmp_path, monkeypatch):
    write(tmp_path, **{"a__0.parquet": "12", "a__._0.parquet": "", ".trash__1.parquet": ""})
    assert fetch_cohort(tmp_path) == tmp_path
    assert parquet_below(tmp_path) == [tmp_path / "a" / "0.parquet"]
    assert stamp(tmp_path / "a" / "0.parquet")[0] == 2
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "a" / "0.parquet", Path("a/0.parquet"), Path("a/../a/0.parquet")):
        assert stamped([path]) == [(absolute(path), *stamp(path), path.stat().st_ctime_ns)]
    with pytest.raises(InputError, match=r"a/1\.parquet: no such file; restore it"):
        stamped([tmp_path / "a" / "1.parquet"])


def test_a_cohort_whose_shards_are_listed_is_the_cohort(store, synthetic_cohort):
    """Its shards are known, checked by footers that stay in the store, and their times too."""
    folder, uri = store
    shutil.copytree(synthetic_cohort, folder, dirs_exist_ok=True)
    copy = fetch_cohort(uri)
    shards = splits_of(copy)
    names = {split: [path.name for path in paths] for split, paths in shards.items()}
    assert names == {s: [p.name for p in ps] for s, ps in splits_of(synthetic_cohort).items()}
    assert not any(path.exists() for paths in shards.values() for path in paths)
    assert stamps(copy, shards) == stamps(synthetic_cohort, splits_of(synthetic_cohort))
    assert not is_contradicted(copy, shards)
    assert task_files(copy, "outcome")
    path = folder / "data" / "train" / names["train"][0]
    path.write_bytes(path.read_bytes()[:-40] + b"x" * 40)
    assert is_contradicted(fetch_cohort(uri), shards)
    with pytest.raises(InputError, match=rf"train/{path.name}: unreadable, damaged"):
        in_place.footer(shards["train"][0])


def test_a_folder_without_such_files_has_no_listing_and_is_not_made_for_one(store):
    folder, uri = store
    assert not fetch(uri, listed=("data",), missing_ok=True).exists()
    write(folder, other="1")
    assert not (fetch_cohort(uri) / LISTING).exists()


def test_expanded_sets_are_known_to_be_of_a_cohort_whose_shards_are_listed(
    store, synthetic_cohort, tmp_path
):
    folder, uri = store
    shutil.copytree(synthetic_cohort, folder, dirs_exist_ok=True)
    expand(synthetic_cohort, tmp_path / "sets", on_ray=False)
    check_made_of(tmp_path / "sets", fetch_cohort(uri))
    next((folder / "data" / "train").iterdir()).write_bytes(b"other")
    with pytest.raises(ConfigError, match="is not of it"):
        check_made_of(tmp_path / "sets", fetch_cohort(uri))


def test_expanded_sets_are_known_without_their_shards(store, synthetic_cohort, transfers):
    folder, uri = store
    expand(synthetic_cohort, folder, on_ray=False)
    write(folder, runs__a__weights="of a run")
    transfers.clear()
    copy = fetch_sets(uri)
    assert sorted(transfers) == sorted([RECORD, CODES])
    assert fetch_sets(folder) == folder
    names = {split: [shard.name for shard in shards] for split, shards in shards_of(folder).items()}
    there = shards_of(copy)
    assert {split: [shard.name for shard in shards] for split, shards in there.items()} == names
    (folder / "train" / f"{names['train'][0]}.parquet").unlink()
    with pytest.raises(InputError, match="files are there; run `ehr-ray expand` again"):
        shards_of(fetch_sets(uri))


def test_published_sets_are_copied(store, transfers):
    folder, uri = store
    write(folder, train__a="1", valid__b="2")
    assert {*content(fetch_sets(uri))} == {"train/a", "valid/b"}
    assert sorted(transfers) == ["a", "b"]
