import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from killed import Killed

from ehr_ray.events import code_statistics
from ehr_ray.events.code_statistics import fit_codes
from ehr_ray.events.manifest import FOLDER, MANIFEST, contradicted
from ehr_ray.events.patients import splits_of
from ehr_ray.events.schema import EVENTS
from ehr_ray.runtime.data import manifest, tasks
from ehr_ray.runtime.data.manifest import Shards, fitted_codes, opened, scratch
from ehr_ray.storage import sync
from ehr_ray.storage.listing import stamped
from ehr_ray.storage.paths import local


def write(path, first, count=500):
    random = np.random.default_rng(first)
    values = random.normal(size=count).astype("f4")
    columns = [
        np.sort(random.integers(first, first + 50, count)),
        pa.nulls(count, pa.timestamp("us")),
        random.choice([*"ABC", f"only {first}"], count, p=[0.7, 0.2, 0.05, 0.05]),
        pa.array(values, mask=values > 1.5),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=EVENTS), path)


@pytest.fixture
def others(tmp_path):
    """A dataset of another maker: three shards of train, one of each other split."""
    for number, name in enumerate(
        ("train/a/0", "train/a/1", "train/b/0", "tuning/0", "held_out/0")
    ):
        write(tmp_path / f"others/data/{name}.parquet", 100 * number)
    return tmp_path / "others"


def told(cohort, cache, **options):
    with opened(cohort, cache, **{"on_ray": False} | options) as found:
        return list(zip(found.column("shard"), found.column("subjects"), strict=True))


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.parquet")}


def test_shards_are_listed_and_looked_at_once_for_all_that_is_asked_of_them(others, monkeypatch):
    shards, looked = Shards.of(others), []
    (others / "table.csv").write_text("1")
    monkeypatch.setattr(manifest, "stamped", lambda paths: looked.extend(paths) or stamped(paths))
    digest = shards.digest()
    with_table = shards.digest(Path("table.csv"), Path("none.csv"))
    assert with_table != digest == shards.digest(Path("none.csv"))
    found = [path for paths in splits_of(others).values() for path in paths]
    assert [*map(Path, looked)] == [*found, others / "table.csv"]
    assert [name for name, *_ in shards.stamps["train"]] == [str(p) for p in found[:3]]
    write(found[0], 7)
    assert shards.digest() == digest != Shards.of(others).digest()


def test_what_the_footers_of_shards_say_is_kept_until_a_file_changes(
    synthetic_cohort, tmp_path, monkeypatch
):
    cohort, cache, asked = tmp_path / "cohort", tmp_path / "cache", []
    shutil.copytree(synthetic_cohort, cohort)

    def asking(*given):
        asked.append(given)
        return contradicted(*given)

    monkeypatch.setattr(manifest, "contradicted", asking)
    for _ in range(2):
        assert Shards.of(cohort, cache).contradicted == set()
    assert len(asked) == 1
    shard = splits_of(cohort)["tuning"][0]
    content = shard.read_bytes()
    shard.write_bytes(content[:-20] + b"x" * 20)
    for _ in range(2):
        assert Shards.of(cohort, cache).contradicted == {"tuning"}
    assert len(asked) == 2
    shard.write_bytes(content)
    next((cohort / FOLDER).iterdir()).touch()
    assert Shards.of(cohort, cache).contradicted == set()
    assert len(asked) == 3
    (tmp_path / "file").touch()
    assert Shards.of(cohort, tmp_path / "file").contradicted == set()  # where nothing can be kept
    assert Shards.of(cohort).contradicted == set()
    for kept in cache.glob("contradicted-*"):
        kept.write_text("")  # of a machine that was switched off
    assert Shards.of(cohort, cache).contradicted == set()
    shutil.rmtree(cohort / FOLDER)
    assert Shards.of(cohort, cache).contradicted == set()
    assert len(asked) == 6


def test_a_shard_written_anew_with_its_size_and_time_is_looked_at_again(synthetic_cohort, tmp_path):
    cohort, cache = tmp_path / "cohort", tmp_path / "cache"
    shutil.copytree(synthetic_cohort, cohort)
    assert Shards.of(cohort, cache).contradicted == set()
    shard = splits_of(cohort)["tuning"][0]
    before = shard.stat()
    shard.write_bytes(shard.read_bytes()[:-20] + b"x" * 20)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (shard.stat().st_size, shard.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert Shards.of(cohort, cache).contradicted == {"tuning"}


def test_a_copy_in_the_place_of_a_cohort_is_looked_at_again_and_is_the_same(others, tmp_path):
    cache, first = tmp_path / "cache", Shards.of(others).digest()
    counted = told(others, cache)
    shutil.copytree(others, tmp_path / "copy")
    shutil.rmtree(others)
    (tmp_path / "copy").rename(others)
    assert Shards.of(others).digest() != first
    assert told(others, cache) == counted


def test_a_dataset_of_others_is_counted_once_and_nothing_is_written_into_it(
    others, tmp_path, monkeypatch
):
    before, cache = files_of(others), tmp_path / "cache"
    first = told(others, cache)
    assert [name for name, _ in first] == [
        path.relative_to(others).as_posix() for ps in splits_of(others).values() for path in ps
    ]
    assert files_of(others) == before
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "describe_shard", None)
        assert told(others, cache) == first
    write(others / "data/tuning/0.parquet", 1000, 20)
    again = dict(told(others, cache))
    assert again["data/tuning/0.parquet"] <= 20
    assert len(list(cache.iterdir())) == 2


def test_what_a_killed_command_counted_is_kept(others, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "FILES", 2)
    cache, counted = tmp_path / "cache", []
    first = told(others, cache)
    (folder,) = cache.iterdir()
    whole = files_of(folder)
    assert len(whole) == 2
    (folder / "000001.parquet").unlink()
    describe = manifest.describe_shard

    def spied(path, name, split):
        counted.append(name)
        return describe(path, name, split)

    monkeypatch.setattr(manifest, "describe_shard", spied)
    assert told(others, cache) == first
    assert counted == ["data/tuning/0.parquet", "data/held_out/0.parquet"]
    assert files_of(folder) == whole


def test_shards_are_counted_by_jobs_that_can_travel(others, tmp_path, monkeypatch):
    ran = []

    def run_jobs(function, jobs, **options):
        ran.append((options["verb"], len(jobs), options["on_ray"]))
        there = pickle.loads(pickle.dumps(function))
        return tasks.run_jobs(there, jobs, **dict(options, on_ray=False))

    monkeypatch.setattr(manifest, "run_jobs", run_jobs)
    with opened(others, tmp_path / "cache", on_ray=True) as found:
        fitted_codes(found, splits_of(others)["train"], tmp_path / "cache", on_ray=True)
    assert ran == [
        ("counted shards", 5, True),
        ("joined counts", 1, True),
        ("sampled shards", 3, True),
        ("found quantiles", 1, True),
    ]


def test_a_dataset_in_a_store_is_counted_and_fitted_where_it_lies(others, tmp_path, monkeypatch):
    def made(cohort, cache):
        with opened(cohort, cache, on_ray=False) as found:
            rows = [table.to_pylist() for table in found.rows(MANIFEST.names)]
            return rows, fitted_codes(found, splits_of(cohort)["train"], cache, on_ray=False)

    here = made(others, tmp_path / "cache")
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "copies"))
    cohort = sync.fetch_cohort(f"file://{others}")
    rows, fitted = made(cohort, tmp_path / "other")
    assert rows == here[0]
    assert fitted.equals(here[1])
    assert [*(tmp_path / "copies").rglob("*.parquet")] == []


def test_a_second_start_takes_nothing_that_the_first_has_yet_to_send(others, tmp_path, monkeypatch):
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "copies"))
    monkeypatch.setattr(manifest, "FILES", 2)
    cache, push, begun = local(f"file://{tmp_path}/cache"), sync.push, []

    def killed(*_, **__):
        raise Killed

    def sent(place):
        if not begun:
            begun.append(place)
            with monkeypatch.context() as patch:
                patch.setattr(manifest, "run_jobs", killed)
                with pytest.raises(Killed):
                    told(others, cache)
        push(place)

    with monkeypatch.context() as patch:
        patch.setattr(sync, "push", sent)
        counted = told(others, cache)
    assert begun
    assert counted == told(others, tmp_path / "here")


def test_a_start_beside_another_leaves_counts_that_have_not_been_sent_yet(
    others, tmp_path, fetched_unsent
):
    cache = local(f"file://{tmp_path}/store")
    assert told(others, cache) == told(others, tmp_path / "here")
    assert len(fetched_unsent) == len([*(tmp_path / "store").rglob("*.parquet")]) > 0


def begin_and_die(cache):
    with scratch(cache, "fit") as folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "joined").write_text("half")
        sync.push(folder)
        os._exit(9)


@pytest.mark.parametrize("place", ["disk", "store"])
def test_what_a_killed_command_left_is_removed_by_the_next(tmp_path, monkeypatch, place):
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "copies"))
    cache = tmp_path / "cache"
    named = cache if place == "disk" else local(f"file://{cache}")
    killed = multiprocessing.get_context("fork").Process(target=begin_and_die, args=(named,))
    killed.start()
    killed.join()
    assert killed.exitcode == 9
    assert len([*cache.rglob("joined")]) == 1
    (cache / "fit-by-hand").mkdir()
    with scratch(named, "ids"), scratch(named, "fit") as own:
        own.mkdir(parents=True, exist_ok=True)
        (own / "joined").write_text("of a command that lives")
        with scratch(named, "fit"):
            assert (own / "joined").exists()
        assert [path.parent for path in named.rglob("joined")] == [own]
    assert [path.name for path in cache.iterdir()] == ["fit-by-hand"]
    assert [*tmp_path.rglob("joined")] == []


def test_where_nothing_can_be_kept_it_is_counted_each_time(others, tmp_path):
    (tmp_path / "file").write_text("no folder")
    first = told(others, None)
    assert told(others, tmp_path / "file" / "cache") == first
    assert dict(first)["data/train/a/0.parquet"] == 50


def test_a_cohort_whose_shards_changed_is_counted_anew(synthetic_cohort, tmp_path, monkeypatch):
    cohort, cache = tmp_path / "cohort", tmp_path / "cache"
    shutil.copytree(synthetic_cohort, cohort)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "describe_shard", None)
        assert sum(count for _, count in told(cohort, cache)) == 60
    assert not cache.exists()
    write(cohort / "data/train/99.parquet", 10**6)
    stored = files_of(cohort / FOLDER)
    assert dict(told(cohort, cache))["data/train/99.parquet"] == 50
    assert files_of(cohort / FOLDER) == stored


def test_a_cohort_without_one_has_the_counts_that_ingest_leaves(synthetic_cohort, tmp_path):
    cohort = tmp_path / "cohort"
    shutil.copytree(synthetic_cohort, cohort)
    shutil.rmtree(cohort / FOLDER)
    with (
        opened(cohort, tmp_path / "cache", on_ray=False) as counted,
        opened(synthetic_cohort, None, on_ray=False) as left,
    ):
        assert [t.to_pylist() for t in counted.counts()] == [t.to_pylist() for t in left.counts()]
        for name in ("shard", "split", "subjects", "events", "bytes", "footer", "min_time"):
            assert counted.column(name) == left.column(name)


@pytest.mark.parametrize(
    ("kept", "group", "files"), [(True, 64, 256), (False, 64, 2), (True, 2, 256), (False, 2, 1)]
)
def test_jobs_of_shards_fit_the_codes_that_one_walk_fits(
    others, tmp_path, monkeypatch, kept, group, files
):
    monkeypatch.setattr(manifest, "FILES", files)
    monkeypatch.setattr(code_statistics, "QUANTILE_SAMPLE", 200)
    for module in (code_statistics, manifest):
        monkeypatch.setattr(module, "GROUP_SHARDS", group)
    cache = tmp_path / "cache" if kept else None
    shards = splits_of(others)
    with opened(others, cache, on_ray=False) as found:
        table = fitted_codes(found, shards["train"], cache, on_ray=False)
    assert table.equals(
        fit_codes(shards["train"], [*shards["tuning"], *shards["held_out"]]), check_metadata=True
    )
    if cache is not None:
        assert [path.name.split("-")[0] for path in cache.iterdir()] == ["manifest"]
