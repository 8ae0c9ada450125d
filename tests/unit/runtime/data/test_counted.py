"""What is known of streamed rows is counted once, kept, and mapped."""

import dataclasses
import multiprocessing
import os
import shutil
import threading
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from killed import Killed

from ehr_ray.errors import InputError, ResourcesUnavailableError, StoreUnavailableError
from ehr_ray.events.row_index import RowIndex
from ehr_ray.registry import get_family
from ehr_ray.runtime.data import counted as module
from ehr_ray.runtime.data.counted import Counts, KeptIndex, counted, stamp_of_shard
from ehr_ray.runtime.data.prepared import prepared
from ehr_ray.storage import sync
from ehr_ray.storage.paths import local


class Rows:
    """A maker whose shards say how many rows they have; it knows whose rows were made."""

    def __init__(self, last=None):
        self.made, self.last = [], last

    def of(self, job):
        if job["shard"] == self.last:
            raise Killed
        self.made.append(job["shard"])
        for number in range(job["count"]):
            yield {"id": np.array(number), "x": np.zeros(number % 7, np.float32)}


@pytest.fixture
def asked(tmp_path):
    """Ask for the index of three shards, of which the second is empty: asked(maker, stamps)."""
    jobs = [{"shard": name, "count": count} for name, count in [("a", 300), ("b", 0), ("c", 5)]]

    def ask(maker, stamps=(1, -2, 3), folder=tmp_path / "counts"):
        counts = Counts(folder, {"train": ["a", "b", "c"]}, {"train": stamps})
        return counted(maker, {"train": jobs}, counts, on_ray=False, say=lambda _: None)["train"]

    return ask


def assert_right(found):
    index = found.open() if isinstance(found, KeptIndex) else found
    numbers = np.concatenate([np.arange(300), np.arange(5)])
    np.testing.assert_array_equal(index.column("id"), numbers)
    np.testing.assert_array_equal(index.lengths, numbers % 7)
    assert (index.block_sizes.tolist(), index.counts.tolist()) == ([256, 44, 5], [2, 0, 1])


def test_the_second_time_nothing_is_counted_and_it_is_mapped(asked):
    first, again = Rows(), Rows()
    assert_right(asked(first))
    assert first.made == ["a", "b", "c"]
    before = pa.total_allocated_bytes()
    found = asked(again)
    index = found.open()
    assert pa.total_allocated_bytes() - before < 1000
    assert not index.lengths.flags.owndata
    assert_right(found)
    assert again.made == []


def test_a_shard_that_changed_is_counted_anew_alone(asked):
    asked(Rows())
    again, back = Rows(), Rows()
    assert_right(asked(again, (1, -2, 4)))
    assert again.made == ["c"]
    assert_right(asked(back))
    assert back.made == []


@pytest.mark.parametrize("where", ["here", "store"])
def test_what_is_known_of_former_states_is_removed_but_of_the_last(
    asked, tmp_path, monkeypatch, where
):
    folders = [tmp_path / "counts"]
    if where == "store":
        monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "staging"))
        folders = [local(f"file://{tmp_path}/store"), tmp_path / "store"]
        asked = partial(asked, folder=folders[0])
    first = asked(Rows()).open()
    for stamp in (4, 5, 6):
        assert_right(asked(Rows(), (1, -2, stamp)))
        assert_right(asked(Rows(), (1, -2, stamp)))
    for folder in folders:
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        names = [name for name in names if not name.startswith(".")]
        kinds = sorted(name.rpartition("-")[0] for name in names)
        assert kinds == ["train"] * 2 + ["train/a", "train/b"] + ["train/c"] * 2
        assert len([*folder.glob(".*.sound")]) <= 2
    np.testing.assert_array_equal(first.lengths[:7], np.arange(7))  # mapped, it stays whole
    again = Rows()
    assert_right(asked(again, (1, -2, 5)))
    assert again.made == []
    assert_right(asked(again))
    assert again.made == ["c"]


def test_what_was_counted_is_found_in_a_store_with_options_by_another_machine(
    asked, tmp_path, monkeypatch
):
    def on(machine, maker):
        monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / machine))
        return asked(maker, folder=local(f"file://{tmp_path}/store?scheme=http"))

    with pytest.raises(Killed):
        on("first", Rows(last="c"))
    again = Rows()
    assert_right(on("second", again))
    assert again.made == ["c"]


def test_another_split_or_another_shard_is_no_former_state(tmp_path):
    shards = {split: [{"shard": "a", "count": 3}, {"shard": "a-b", "count": 2}] for split in "xy"}
    counts = Counts(tmp_path, {split: ["a", "a-b"] for split in "xy"}, {"x": (1, 2), "y": (3, 4)})
    counted(Rows(), shards, counts, on_ray=False, say=lambda _: None)
    assert len([*tmp_path.rglob("*.index")]) == 6


@pytest.fixture
def checked(monkeypatch):
    """How often an index was held against its checksum, one item each time."""
    seen, checksum = [], RowIndex.checksum

    def noted(index):
        seen.append(len(index))
        return checksum(index)

    monkeypatch.setattr(RowIndex, "checksum", noted)
    return seen


def test_a_start_reads_all_that_is_known_once(asked, checked):
    asked(Rows())
    asked(Rows())
    checked.clear()
    assert_right(asked(Rows()))
    assert checked == []


@pytest.mark.parametrize("how", ["written to", "replaced"])
def test_damage_is_seen_though_size_and_time_are_as_before(asked, checked, tmp_path, how):
    place = asked(Rows()).place
    asked(Rows())
    path = tmp_path / "counts" / place.rpartition("/")[2]
    before = path.stat()
    if how == "replaced":
        path.rename(tmp_path / "old")
        shutil.copy(tmp_path / "old", path)
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    checked.clear()
    assert_right(asked(Rows()))
    assert checked


def test_where_no_note_can_be_left_all_is_read_each_time(asked, checked, monkeypatch):
    asked(Rows())

    def refuse(path, text):
        raise ResourcesUnavailableError(f"{path}: read-only")

    monkeypatch.setattr(module.files, "write_text", refuse)
    for _ in range(2):
        checked.clear()
        assert_right(asked(Rows()))
        assert checked == [305]


def test_counting_that_was_killed_goes_on_after_the_last_shard(asked):
    with pytest.raises(Killed):
        asked(Rows(last="c"))
    again = Rows()
    assert_right(asked(again))
    assert again.made == ["c"]


def flip(path):
    content = bytearray(path.read_bytes())
    content[content.index(np.arange(5).tobytes()) + 8] ^= 64
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm", [flip, lambda path: path.write_bytes(path.read_bytes()[:400])], ids=["bit", "cut"]
)
def test_what_is_damaged_is_made_again(asked, tmp_path, harm):
    whole, part = asked(Rows()).place, next((tmp_path / "counts" / "train").glob("c-*"))
    of_all = tmp_path / "counts" / whole.rpartition("/")[2]
    harm(of_all)
    again = Rows()
    assert_right(asked(again))
    assert again.made == []
    harm(of_all)
    harm(part)
    assert_right(asked(again))
    assert again.made == ["c"]


def test_what_is_of_another_shard_is_counted_again(asked, tmp_path):
    whole = asked(Rows()).place
    folder = tmp_path / "counts"
    shutil.copy(next((folder / "train").glob("a-*")), next((folder / "train").glob("c-*")))
    shutil.copy(next((folder / "train").glob("a-*")), whole)
    again = Rows()
    assert_right(asked(again))
    assert again.made == ["c"]


def test_where_nothing_can_be_kept_it_is_held(asked, monkeypatch):
    def refuse(index, path):
        raise ResourcesUnavailableError(f"{path}: read-only")

    monkeypatch.setattr(RowIndex, "write", refuse)
    found = asked(Rows())
    assert isinstance(found, RowIndex)
    assert_right(found)


@pytest.mark.parametrize("error", [StoreUnavailableError, InputError])
def test_a_store_that_takes_no_files_does_not_end_a_start(asked, monkeypatch, error):
    def refuse(path):
        raise error(f"{path}: no")

    monkeypatch.setattr(module.sync, "push", refuse)
    found = asked(Rows())
    assert isinstance(found, RowIndex)
    assert_right(found)


def test_what_is_not_there_once_it_is_written_is_held(asked, monkeypatch):
    monkeypatch.setattr(module.sync, "push", lambda path: path.unlink())
    found = asked(Rows())
    assert isinstance(found, RowIndex)
    assert_right(found)


def test_a_start_beside_another_leaves_what_that_has_not_pushed_yet(tmp_path, monkeypatch):
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "staging"))
    folder = local(f"file://{tmp_path}/store/counts")
    counts = Counts(folder, {"train": ["a"]}, {"train": (1,)})
    push, others = module.sync.push, []

    def while_another_starts(path):
        others.append(
            threading.Thread(
                target=sync.fetch, args=(folder / "train",), kwargs={"missing_ok": True}
            )
        )
        others[-1].start()
        others[-1].join(0.5)
        push(path)

    monkeypatch.setattr(module.sync, "push", while_another_starts)
    jobs = {"train": [{"shard": "a", "count": 3}]}
    counted(Rows(), jobs, counts, on_ray=False, say=lambda _: None)
    for other in others:
        other.join()
    assert len([*(tmp_path / "store" / "counts" / "train").glob("a-*")]) == 1
    assert len([*(folder / "train").glob("a-*")]) == 1


def test_a_start_beside_another_leaves_a_file_that_it_wants_and_that_has_not_pushed_yet(
    asked, tmp_path, fetched_unsent
):
    found = asked(Rows(), folder=local(f"file://{tmp_path}/store/counts"))
    assert_right(found)
    assert isinstance(found, KeptIndex)
    assert len(fetched_unsent) == 4
    assert len([*(tmp_path / "store" / "counts").rglob("*.index")]) == 4


def test_who_does_not_have_it_says_so(asked):
    kept = asked(Rows())
    elsewhere = dataclasses.replace(kept, place=f"{kept.place}-elsewhere")
    with pytest.raises(InputError, match=r"elsewhere: not here, .* data.cache_dir"):
        elsewhere.open()
    with pytest.raises(InputError, match="not what was counted"):
        dataclasses.replace(kept, stamps=(1, -2, 4)).open()


def count(asked, barrier, results):
    barrier.wait()
    maker = Rows()
    assert_right(asked(maker))
    results.put(maker.made)


def test_two_processes_at_once_do_not_harm_each_other(asked):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    both = [context.Process(target=count, args=(asked, barrier, results)) for _ in range(2)]
    for one in both:
        one.start()
    made = [results.get(timeout=60) for _ in both]
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]
    assert all({*some} <= {"a", "b", "c"} for some in made)
    again = Rows()
    assert_right(asked(again))
    assert again.made == []


def test_a_stamp_tells_names_sizes_and_times_apart():
    files = [("a", 1, 2), ("b", 3, 4)]
    others = [files[:1], files[::-1], [("a", 1, 2), ("b", 3, 5)], [("c", 1, 2), ("b", 3, 4)]]
    stamps = {stamp_of_shard(some) for some in [files, *others]}
    assert len(stamps) == 5
    assert all(-(1 << 63) <= stamp < 1 << 63 for stamp in stamps)
    np.array([*stamps], np.int64)


@pytest.fixture
def open_stream(tiny_experiment, synthetic_cohort, tmp_path, monkeypatch):
    """Open a stream of a copy of the cohort: open_stream({path: value}) gives shards counted."""
    cohort = tmp_path / "cohort"
    shutil.copytree(synthetic_cohort, cohort)
    names = []
    count = module.CountShard.__call__
    monkeypatch.setattr(
        module.CountShard,
        "__call__",
        lambda self, job: names.append(job["job"]["shard"]) or count(self, job),
    )

    def start(changes=None):
        given = {
            "data.cohort": str(cohort),
            "data.cache_dir": str(tmp_path / "cache"),
            "data.mode": "stream",
            **(changes or {}),
        }
        names.clear()
        with prepared(tiny_experiment(changes=given), get_family("set_vae"), on_ray=False) as data:
            assert len(data.store("train")) > 0
            assert len(data.store("tuning")) > 0
        return [name.partition("/data/")[2] for name in names]

    return start, cohort


def test_a_start_counts_what_changed_since_the_last_one(open_stream):
    start, cohort = open_stream
    shards = [str(p.relative_to(cohort / "data")) for p in (cohort / "data").rglob("*.parquet")]
    trained = {name for name in shards if name.startswith(("train", "tuning"))}
    assert {*start()} == trained
    assert start() == []
    assert start({"train.max_epochs": 2, "model.width": 24}) == []
    changed = min(name for name in trained if name.startswith("tuning"))
    path = cohort / "data" / changed
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    assert start() == [changed]
    assert {*start({"model.carry_minutes": 45})} == trained


def test_rows_are_counted_anew_where_codes_have_other_counts_in_train(open_stream):
    start, cohort = open_stream
    assert start()
    assert start() == []
    path = cohort / "metadata" / "codes.parquet"
    for name in ("count", "num_subjects"):
        codes = pq.read_table(path)
        place = codes.column_names.index(name)
        more = pc.add(codes[name], 1).cast(codes.schema.field(name).type)
        pq.write_table(codes.set_column(place, codes.schema.field(name), more), path)
        assert start()
