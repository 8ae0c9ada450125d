"""Rows that are made anew: what files would give, and the same weights, also after a kill."""

import shutil
import threading

import numpy as np
import pytest
import torch
from killed import Killed, kill_at
from safetensors.torch import load_file
from waiting import wait_until

from ehr_ray.errors import DamagedRowsError
from ehr_ray.events.block_files import write_block
from ehr_ray.events.blocks import BlockStore
from ehr_ray.events.patients import Patient
from ehr_ray.registry import get_family
from ehr_ray.runtime.data import stream
from ehr_ray.runtime.data.counted import Counts
from ehr_ray.runtime.data.prepared import prepared
from ehr_ray.runtime.data.stream import streamed
from ehr_ray.runtime.training.worker import loader_of
from ehr_ray.storage import sync
from ehr_ray.storage.paths import STAGING
from ehr_ray.train import history
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.loop import train
from ehr_ray.train.report import SILENT
from ehr_ray.train.task import family_of


class Numbers:
    """A maker of shards that say how many patients they have; every third makes two rows."""

    def patients(self, job):
        for n in range(job["first"], job["first"] + job["count"]):
            patient = Patient(n, n, np.arange(n % 5), np.zeros(n % 5, np.int32), np.ones(n % 5))
            yield patient, [(n, 0.0), (n + 1, 1.0)][: 1 + (n % 3 == 0)]

    def rows(self, patient, cuts):
        for time, label in cuts:
            yield {
                "subject_id": np.array(patient.subject_id),
                "label": np.array(label, np.float32),
                "x": patient.value.astype(np.float32) * time,
                "flag": patient.value > 0,
                "pair": np.full((len(patient.time), 2), time),
            }

    def of(self, job):
        for patient, cuts in self.patients(job):
            yield from self.rows(patient, cuts)


@pytest.fixture
def stores(tmp_path):
    """The same rows in files and in a stream: a shard of several blocks, an empty one, a small."""
    jobs = [
        {"shard": str(tmp_path / name), "first": first, "count": count}
        for name, first, count in [("a", 0, 400), ("b", 0, 0), ("c", 400, 30)]
    ]
    for number, job in enumerate(jobs):
        write_block(tmp_path / f"{number}.arrow", Numbers().of(job))
    kept = BlockStore([tmp_path / f"{number}.arrow" for number in range(3)])
    counts = Counts(tmp_path / "counts", {"train": ["a", "b", "c"]}, {"train": [1, 2, 3]})
    made = streamed(Numbers(), {"train": jobs}, counts, on_ray=False, say=lambda _: None)
    return kept, made.store("train")


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert (value.dtype, value.shape) == (other[name].dtype, other[name].shape)
            np.testing.assert_array_equal(value, other[name])


def test_what_is_known_of_rows_is_what_files_say(stores):
    kept, made = stores
    assert len(made) == len(kept) == 574
    assert made.shard_blocks.tolist() == [3, 1]
    for name in ("lengths", "block_sizes", "shard_blocks"):
        np.testing.assert_array_equal(getattr(made, name), getattr(kept, name))
    for name in ("subject_id", "label"):
        np.testing.assert_array_equal(made.column(name), kept.column(name))
        assert made.column(name).dtype == kept.column(name).dtype
    for name in ("x", "pair"):
        np.testing.assert_array_equal(made.sizes(name), kept.sizes(name))


def test_rows_of_windows_come_in_the_order_asked_for_and_are_those_in_files(stores):
    kept, made = stores
    order = np.random.default_rng(0).permutation(len(kept))
    windows = [np.split(order[:300], [7, 100]), [], [order[300:], order[:5]]]
    ours, theirs = list(made.read(windows)), list(kept.read(windows))
    assert [len(part) for part in ours] == [7, 93, 200, 274, 5]
    for part, other in zip(ours, theirs, strict=True):
        assert_same(part, other)
    assert_same(made.rows([573, 0, 573]), kept.rows([573, 0, 573]))


def test_the_first_window_of_what_is_read_next_is_made_while_the_last_is_used(stores, monkeypatch):
    """And once: it is kept for the call that asks for it, and for no other."""
    kept, made = stores
    random = np.random.default_rng(0)
    epochs = [[np.split(random.permutation(574), [200])] for _ in range(3)]
    asked, wanted = [], made._made
    monkeypatch.setattr(made, "_made", lambda items: asked.append(len(items)) or wanted(items))
    monkeypatch.setattr(stream, "PIPELINE_ROWS", 1)  # a pipeline a window
    parts = made.read(epochs[0], iter(epochs[1]))
    next(parts)
    waiting = next(parts)
    wait_until(lambda: len(asked) == 2)
    assert list(parts) == []
    assert_same(waiting, list(kept.read(epochs[0]))[1])
    for ours, theirs in zip(made.read(epochs[1]), kept.read(epochs[1]), strict=True):
        assert_same(ours, theirs)
    assert len(asked) == 2
    for _ in made.read(epochs[0], iter(epochs[1])):
        pass
    for ours, theirs in zip(made.read(epochs[2]), kept.read(epochs[2]), strict=True):
        assert_same(ours, theirs)
    assert len(asked) == 5


@pytest.fixture
def run(tiny_experiment, tmp_path):
    """Train in this process: run(name, mode, {path: value}, watch)."""

    def start(name, mode, changes=None, watch=SILENT):
        given = {"data.mode": mode, "data.cache_dir": str(tmp_path / mode), **(changes or {})}
        experiment = tiny_experiment(changes=given)
        family = family_of(experiment)
        with prepared(experiment, family, on_ray=False) as data:
            loader = loader_of(experiment, family, data)
            arguments = (experiment, family, data.vocabulary, loader, LocalBackend())
            train(*arguments, tmp_path / name, watch)
        return tmp_path / name

    return start


def assert_same_run(ours, theirs):
    weights = [load_file(run / "checkpoint" / "model.safetensors") for run in (ours, theirs)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    rows = [history.read(run).drop(columns=["seconds", "data_wait"]) for run in (ours, theirs)]
    assert rows[0].equals(rows[1])


WINDOWS = {"data.shuffle_patients": 9, "data.batch_size": 4, "data.bucket_batches": 2}


@pytest.mark.parametrize(
    "changes",
    [
        WINDOWS,
        {**WINDOWS, "task.name": "outcome", "task.hours": [6], "train.accumulate": 2},
        {**WINDOWS, "task": {"name": "outcome", "hidden": 4, "statistics": {}}},
    ],
    ids=["sets", "task", "statistics"],
)
def test_a_stream_ends_with_the_weights_of_files_and_keeps_no_rows(run, changes, tmp_path):
    kept = run("kept", "cache", changes)
    made = run("made", "stream", changes)
    assert_same_run(made, kept)
    kept = {p.name.partition("-")[0] for p in (tmp_path / "stream").glob("*")}
    assert kept <= {"labels", "contradicted", "counts"}
    assert not [t for t in threading.enumerate() if t.name.startswith(("stream", "loader"))]


def test_a_killed_stream_goes_on_to_the_weights_of_one_that_was_not(run):
    changes = {**WINDOWS, "train.report_steps": 3}
    whole = run("whole", "cache", changes)
    for step in (5, 14):
        with pytest.raises(Killed):
            run("killed", "stream", changes, kill_at(step))
    assert_same_run(run("killed", "stream", changes), whole)


def shards_in(folder):
    return [path for path in folder.rglob("*.parquet") if "data" in path.parts]


@pytest.fixture
def cohort_in_store(synthetic_cohort, tmp_path, monkeypatch):
    """The URI of the cohort in a folder that serves as a store, the folder, and that of copies."""
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    folder = tmp_path / "store" / "cohort"
    shutil.copytree(synthetic_cohort, folder)
    return f"file://{folder}", folder, tmp_path / "copies"


@pytest.mark.parametrize("changes", [{}, {"task.name": "outcome"}], ids=["sets", "task"])
def test_a_stream_of_a_cohort_in_a_store_leaves_no_shard_here(run, cohort_in_store, changes):
    uri, _, copies = cohort_in_store
    kept = run("kept", "cache", {**WINDOWS, **changes})
    made = run("made", "stream", {**WINDOWS, **changes, "data.cohort": uri})
    assert_same_run(made, kept)
    assert shards_in(copies) == []


def test_a_stream_reads_what_the_store_has_though_another_verb_left_an_older_copy(
    tiny_experiment, cohort_in_store, tmp_path
):
    uri, folder, _ = cohort_in_store
    changes = {"data.cohort": uri, "data.cache_dir": str(tmp_path / "cache")}
    experiment = tiny_experiment(changes={**changes, "data.mode": "stream"})
    with prepared(experiment, get_family("set_vae"), on_ray=False) as data:
        store = data.store("train")
        wanted = store.rows(range(len(store)))
        first, *others = sorted((folder / "data" / "train").glob("*.parquet"))
        copy = sync.fetch(f"{uri}/data/train/{first.name}")
        time = copy.stat().st_mtime_ns
        copy.write_bytes(others[-1].read_bytes())
        assert_same(store.rows(range(len(store))), wanted)
        assert not copy.exists()
        sound = sync.fetch(f"{uri}/data/train/{first.name}")
        assert_same(store.rows(range(len(store))), wanted)
        assert sound.stat().st_mtime_ns == time  # another verb's, which may be reading it


def test_a_damaged_shard_in_a_store_is_no_fault_of_the_store(
    tiny_experiment, cohort_in_store, tmp_path
):
    uri, folder, _ = cohort_in_store
    changes = {"data.cohort": uri, "data.cache_dir": str(tmp_path), "data.mode": "stream"}
    with prepared(tiny_experiment(changes=changes), get_family("set_vae"), on_ray=False) as data:
        store = data.store("train")
        shard = sorted((folder / "data" / "train").glob("*.parquet"))[0]
        whole = shard.read_bytes()
        shard.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
        with pytest.raises(DamagedRowsError, match=rf"{shard.name}: unreadable.*; ingest the coh"):
            store.rows(range(len(store)))
        shard.write_bytes(whole[:100])
        with pytest.raises(DamagedRowsError, match=rf"{shard.name}: unreadable.*; ingest the coh"):
            store.rows(range(len(store)))


def test_a_shard_that_changes_under_a_stream_is_named(tiny_experiment, synthetic_cohort, tmp_path):
    cohort = tmp_path / "cohort"
    shutil.copytree(synthetic_cohort, cohort)
    changes = {"data.cohort": str(cohort), "data.cache_dir": str(tmp_path), "data.mode": "stream"}
    experiment = tiny_experiment(changes=changes)
    with prepared(experiment, get_family("set_vae"), on_ray=False) as data:
        store = data.store("train")
        shards = sorted((cohort / "data" / "train").glob("*.parquet"))
        shards[0].write_bytes(shards[-1].read_bytes()[:100])
        with pytest.raises(DamagedRowsError, match=rf"train/{shards[0].name}: unreadable"):
            store.rows(range(len(store)))
