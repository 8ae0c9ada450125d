"""Embeddings without Ray; by Ray Data, and to a store, in tests/ray."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.embed import embed
from ehr_ray.commands.expand import expand
from ehr_ray.errors import InputError
from ehr_ray.runtime.inference.embeddings import ShardEmbedder
from ehr_ray.runtime.inference.shards import of_precision
from ehr_ray.storage import files

NAMES = ("float32", "bf16")


@pytest.fixture(scope="module")
def sharded(synthetic_cohort, tmp_path_factory):
    """The cohort with a train shard in a folder of its own, and an empty one."""
    cohort = tmp_path_factory.mktemp("cohorts") / "sharded"
    shutil.copytree(synthetic_cohort, cohort)
    (cohort / "metadata" / "ingest.json").unlink()
    train = cohort / "data" / "train"
    (train / "b").mkdir()
    (train / "0.parquet").rename(train / "b" / "0.parquet")
    pq.write_table(pq.read_table(train / "1.parquet").slice(0, 0), train / "9.parquet")
    return cohort


@pytest.fixture(scope="module")
def folder(tiny_run, sharded, tmp_path_factory):
    path = tmp_path_factory.mktemp("embeddings") / "folder"
    assert embed(tiny_run, sharded, path, on_ray=False) == 60
    return path


def names(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*.*")}


def test_a_shard_whose_name_no_store_can_have_is_refused_before_anything_is_there(
    tiny_run, synthetic_cohort, tmp_path, monkeypatch
):
    """The cohort is named as its reader does, from the folder he stands in."""
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "copies"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(synthetic_cohort, "cohort")
    (tmp_path / "cohort" / "metadata" / "ingest.json").unlink()
    train = tmp_path / "cohort" / "data" / "train"
    (train / "0.parquet").rename(train / "a#0.parquet")
    refused = r"no name in a store may .* as a#0\.parquet does"
    with pytest.raises(InputError, match=refused):
        embed(tiny_run, "cohort", f"file://{tmp_path}/store/embedded", on_ray=False)
    with pytest.raises(InputError, match=refused):
        expand("cohort", f"file://{tmp_path}/store/expanded", on_ray=False)
    assert [*(tmp_path / "store").rglob("*.*")] == []


def test_a_folder_has_a_file_a_shard_and_reads_as_one_table(sharded, folder):
    made = names(folder)
    assert {"_embed.json", "train/b-0.parquet", "train/9.parquet", "held_out/0.parquet"} <= made
    assert len(made) == 1 + len(list((sharded / "data").rglob("*.parquet")))
    table = pd.read_parquet(folder)
    assert list(table) == ["subject_id", "embedding"]
    assert table["subject_id"].nunique() == len(table) == 60
    assert np.isfinite(np.stack(table["embedding"])).all()


def test_one_file_holds_the_rows_of_the_folder(tiny_run, sharded, folder, tmp_path, monkeypatch):
    """Whatever a command that was killed has left beside it."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: ended.pid)
        (files.temporary(tmp_path / "all.parquet") / "train").mkdir(parents=True)
    assert embed(tiny_run, sharded, tmp_path / "all.parquet", on_ray=False) == 60
    assert [path.name for path in tmp_path.iterdir()] == ["all.parquet"]
    one = pd.read_parquet(tmp_path / "all.parquet").set_index("subject_id")["embedding"]
    many = pd.read_parquet(folder).set_index("subject_id")["embedding"]
    assert np.array_equal(np.stack(one), np.stack(many[one.index]))


def test_another_command_that_fetches_one_file_leaves_what_has_not_been_sent_yet(
    tiny_run, sharded, tmp_path, fetched_unsent
):
    stored = f"file://{tmp_path}/store/all.parquet"
    assert embed(tiny_run, sharded, stored, on_ray=False) == 60
    assert "all.parquet" in fetched_unsent
    assert len(pq.read_table(tmp_path / "store" / "all.parquet")) == 60


def test_gpus_that_are_not_there_are_refused_by_the_option(tiny_run, sharded, tmp_path):
    for gpus, said in ((-1, "give the GPUs of each"), (float("inf"), "give"), (1, "finds no GPU")):
        with pytest.raises(InputError, match=f"--gpus {gpus:g}: .*{said}"):
            embed(tiny_run, sharded, tmp_path / "gpu", gpus=gpus, on_ray=False)


def test_a_folder_begun_in_bf16_is_not_completed_in_float32(tiny_experiment):
    trained = {name: tiny_experiment(changes={"train.precision": name}) for name in NAMES}
    assert of_precision(trained["bf16"], 1) == {"precision": "bf16"}
    for name, gpus in (("bf16", 0), ("float32", 1), ("float32", 0)):
        assert of_precision(trained[name], gpus) == {}
    reduced = tiny_experiment(changes={"train.matmul_precision": "high"})
    assert of_precision(reduced, 1) == {"matmul_precision": "high"}
    assert of_precision(reduced, 0) == {}


def test_a_killed_job_goes_on_with_the_shards_that_are_missing(
    tiny_run, sharded, folder, tmp_path, monkeypatch
):
    shutil.copytree(folder, tmp_path / "half")
    shard = tmp_path / "half" / "tuning" / "0.parquet"
    shard.unlink()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: ended.pid)
        files.temporary(shard).write_text("half")  # of the shard it was at
        files.temporary(tmp_path / "half").mkdir()  # of a cohort by a code map
    made = []
    whole = ShardEmbedder.__call__

    def counted(self, job):
        made.append(job["target"])
        return whole(self, job)

    monkeypatch.setattr(ShardEmbedder, "__call__", counted)
    assert embed(tiny_run, sharded, tmp_path / "half", on_ray=False) == 60
    assert made == [str(shard)]
    assert [*tmp_path.rglob(".*")] == []
    for name in names(folder) - {"_embed.json"}:
        assert (tmp_path / "half" / name).read_bytes() == (folder / name).read_bytes()


def test_a_folder_of_weights_with_another_vocabulary_is_refused(
    tiny_run, sharded, folder, tmp_path
):
    """Whether its note says the vocabulary, or is of an earlier version, which did not."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    output = shutil.copytree(folder, tmp_path / "out")
    note, codes = output / "_embed.json", run / "checkpoint" / "vocabulary.parquet"
    record = json.loads(note.read_text())
    note.write_text(json.dumps({n: value for n, value in record.items() if n != "applied"}))
    assert embed(run, sharded, output, on_ray=False) == 60
    assert json.loads(note.read_text()) == record
    table = pq.read_table(codes)
    mean = pa.array([mean + 1000 for mean in table["mean"].to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("mean"), "mean", mean), codes)
    with pytest.raises(InputError, match="holds another embedding"):
        embed(run, sharded, output, on_ray=False)


def test_a_folder_of_another_cohort_or_of_other_files_is_refused(
    tiny_run, sharded, folder, tmp_path
):
    other = shutil.copytree(sharded, tmp_path / "cohort")
    with pytest.raises(InputError, match="holds another embedding; choose another --output"):
        embed(tiny_run, other, folder, on_ray=False)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="not empty; choose another --output"):
        embed(tiny_run, sharded, tmp_path, on_ray=False)


def test_a_file_of_another_kind_is_refused(tiny_run, sharded, tmp_path):
    with pytest.raises(InputError, match=r"e\.csv: embeddings are Parquet; name a file that ends"):
        embed(tiny_run, sharded, tmp_path / "e.csv", on_ray=False)
    assert not (tmp_path / "e.csv").exists()


def test_a_folder_that_is_named_as_a_file_is_refused(tiny_run, sharded, tmp_path):
    (tmp_path / "all.parquet").mkdir()
    with pytest.raises(InputError, match="is a folder; name a file"):
        embed(tiny_run, sharded, tmp_path / "all.parquet", on_ray=False)
