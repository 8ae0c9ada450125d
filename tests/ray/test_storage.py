"""Every verb from URI to URI, against an S3 server on loopback.

The driver's copies lie in another folder than the workers', as on another machine, so whatever one
needs of the other goes through the store.
"""

import os
import shutil
import threading
from pathlib import Path

import pandas as pd
import psutil
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from waiting import wait_until

import ehr_ray
from ehr_ray.commands.embed import embed
from ehr_ray.commands.evaluate.command import evaluate
from ehr_ray.commands.expand import expand
from ehr_ray.commands.ingest import ingest
from ehr_ray.commands.train.command import train
from ehr_ray.commands.tune import tune
from ehr_ray.errors import ConfigError, InputError, RunError
from ehr_ray.experiment import load
from ehr_ray.storage import in_place, runs, sync
from ehr_ray.storage.paths import STAGING, staging

pytestmark = pytest.mark.ray
CONFIG = Path(__file__).parents[2] / "configs" / "tiny" / "set_vae.yaml"
BUCKET = "s3://hospital"
LONG = ["train.max_epochs=6", "train.report_steps=3", "tracking.experiment=null"]
LONG += ["evaluation.bootstrap=20", "evaluation.hours=[]", "evaluation.baselines=false"]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Move the driver to a machine without copies: machine("b")."""

    def move(name):
        monkeypatch.setenv(STAGING, str(tmp_path / name))

    move("first")
    return move


@pytest.fixture(scope="module")
def stored(cluster, bucket, tmp_path_factory):
    """The URI of a cohort, ingested there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STAGING, str(tmp_path_factory.mktemp("ingest")))
        ingest("synthetic", None, f"{BUCKET}/cohort", options={"patients": 80}, cpus=1)
    return f"{BUCKET}/cohort"


def experiment(cohort, output, *changes):
    return load(CONFIG, [f"data.cohort={cohort}", f"output={output}", *LONG, *changes])


def objects(bucket, folder):
    """Return the names of all objects in a folder, hidden ones too."""
    found = bucket.get_file_info(pyarrow.fs.FileSelector(f"hospital/{folder}", recursive=True))
    return {os.path.relpath(i.path, f"hospital/{folder}") for i in found if i.is_file}


def rows_here():
    """Return the shards, and files of rows, that the driver has copied."""
    found = staging().rglob("*")
    rows = (("data", "train"), ("expanded", "train"))
    return [p for p in found if p.suffix == ".arrow" or p.parts[-3:-1] in rows]


def no_shard_was_copied():
    """Whether neither the driver nor the workers have copies of the cohort's shards."""
    folders = (staging(), Path(os.environ["RAY_TMPDIR"]) / "staging")
    return not [p for folder in folders for p in folder.rglob("hospital/cohort/data/*/*.parquet")]


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_ingest_again_from_another_machine_has_nothing_to_do(stored, bucket, machine):
    machine("second")
    again = ingest("synthetic", None, stored, options={"patients": 80}, cpus=1)
    assert again.reused
    assert sync.names_in(stored) >= {"metadata/codes.parquet", "data/train/0.parquet"}
    with pytest.raises(InputError, match="another input or other options"):
        ingest("synthetic", None, stored, options={"patients": 90}, cpus=1)
    bucket.create_dir("hospital/other")
    with bucket.open_output_stream("hospital/other/note.txt") as stream:
        stream.write(b"mine")
    with pytest.raises(InputError, match="s3://hospital/other: holds something else"):
        ingest("synthetic", None, f"{BUCKET}/other", options={"patients": 80}, cpus=1)


def test_expand_from_bucket_to_bucket_gives_what_folders_give(stored, bucket, machine, tmp_path):
    first = expand(stored, f"{BUCKET}/expanded")
    machine("second")
    assert expand(stored, f"{BUCKET}/expanded").tokens == first.tokens
    sets = f"data.expanded={BUCKET}/expanded"
    short = ("data.mode=cache", "train.max_epochs=1")
    run = train(experiment(stored, tmp_path / "runs", sets, *short)).run
    assert (run / "checkpoint" / "model.safetensors").is_file()
    assert not rows_here()
    assert no_shard_was_copied()
    with pytest.raises(InputError, match="holds another expansion"):
        expand(stored, f"{BUCKET}/expanded", lvcf_minutes=60)
    expand(sync.fetch(stored), tmp_path / "expanded")
    for split in ("train", "tuning", "held_out"):
        there = pyarrow.dataset.dataset(f"hospital/expanded/{split}", filesystem=bucket)
        here = pq.read_table(tmp_path / "expanded" / split)
        assert there.to_table().equals(here)
    assert first.tokens > 1000


def test_a_killed_training_goes_on_from_the_store_on_another_machine(
    stored, bucket, machine, tmp_path, capsys, caplog
):
    here = ("name=whole", "cluster.num_workers=0")
    whole = train(experiment(sync.fetch(stored), tmp_path / "runs", *here)).run
    output = f"{BUCKET}/runs"
    killed = threading.Event()

    def kill_once():
        def saved():
            names = (name for name in sync.names_in(f"{output}/run") if "progress" in name)
            return max(names, default="") >= "state/000000000006"

        wait_until(saved)
        for process in _train_workers():
            os.kill(process, 9)
            killed.set()

    thread = threading.Thread(target=kill_once)
    thread.start()
    with pytest.raises(RunError):
        train(experiment(stored, output, "name=run", "cluster.max_failures=0"))
    thread.join()
    assert killed.is_set()

    machine("second")
    shutil.rmtree(Path(os.environ["RAY_TMPDIR"]) / "staging")  # the workers' copies
    capsys.readouterr()
    trained = train(experiment(stored, output, "name=run"))
    rows = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert str(trained.step) in [row[1] for row in rows if len(row) > 4]  # of workers elsewhere
    assert trained.resumed_at >= 6
    assert trained.step > trained.resumed_at
    names = sync.names_in(f"{output}/run")
    states = {name.split("/")[1] for name in names if name.startswith("state/")}
    assert len(states) <= 2, states  # older ones went
    blocks = {name.split("/")[1] for name in objects(bucket, "runs") if name.startswith(".cache/")}
    assert len(blocks) == 1, blocks  # the second machine found those of the first
    assert not rows_here()  # it saw to it that workers read them
    machine("third")
    run = sync.fetch(f"{output}/run")
    step = f"{trained.step:012d}"
    for folder in ("checkpoint", f"state/{step}"):
        ours, theirs = weights(run / folder), weights(whole / folder)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    columns = ["step", "train/objective", "val/objective"]
    ours, theirs = (pd.read_parquet(place / "history.parquet")[columns] for place in (run, whole))
    pd.testing.assert_frame_equal(ours, theirs)
    assert train(experiment(stored, output, "name=run")).already_finished

    lines = evaluate(f"{output}/run")
    assert not rows_here()
    assert f"report: {output}/run/report.html" in lines
    assert sync.names_in(f"{output}/run") >= {"metrics.json", "report.html", "results.csv"}
    evaluate(f"{output}/run", output=f"{BUCKET}/results", task="none")
    assert "metrics.json" in sync.names_in(f"{BUCKET}/results")
    assert embed(f"{output}/run", stored, f"{BUCKET}/vectors/all.parquet") == 80
    assert in_place.footer(f"{BUCKET}/vectors/all.parquet").num_rows == 80
    assert objects(bucket, "vectors") == {"all.parquet"}
    assert no_shard_was_copied()
    assert not {name for name in objects(bucket, "runs/run") if name.startswith(".progress")}
    machine("fourth")
    assert ehr_ray.load(f"{output}/run").experiment.output == output

    place = "hospital/runs/run/checkpoint/model.safetensors"
    with bucket.open_input_stream(place) as stream:
        content = stream.read()
    with bucket.open_output_stream(place) as stream:
        stream.write(content[: len(content) // 2])
    machine("fifth")
    shutil.rmtree(Path(os.environ["RAY_TMPDIR"]) / "staging", ignore_errors=True)
    caplog.clear()
    assert embed(f"{output}/run", stored, f"{BUCKET}/vectors/before.parquet") == 80
    assert "using the one before it" in caplog.text
    assert ehr_ray.load(f"{output}/run").experiment.output == output


def test_a_store_that_refuses_is_one_line(stored, machine, monkeypatch):
    with pytest.raises(InputError, match="s3://nowhere/cohort: no bucket nowhere"):
        train(experiment("s3://nowhere/cohort", f"{BUCKET}/runs"))
    with pytest.raises(InputError, match="s3://hospital/none: nothing there"):
        train(experiment(f"{BUCKET}/none", f"{BUCKET}/runs"))
    with pytest.raises(InputError, match="no bucket nowhere"):
        train(experiment(stored, "s3://nowhere/runs"))
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        train(experiment(stored, f"{BUCKET}/runs", "tracking.experiment=x"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(RunError, match="no store answers there; check AWS_ENDPOINT_URL"):
        sync.fetch(stored)


def test_a_report_that_cannot_be_stored_is_tried_again(
    cohort, machine, monkeypatch, tmp_path, capsys
):
    output, push, failures = f"file://{tmp_path}/store", sync.push, []

    def fails(place, *, mirror=(), **how):
        if mirror and len(failures) < limit:
            failures.append(place)
            raise RunError("the store is away")
        push(place, mirror=mirror, **how)

    monkeypatch.setattr(sync, "push", fails)
    limit, changes = 2, ("cluster.num_workers=0", "train.max_epochs=2")
    trained = train(experiment(cohort, output, "name=run", *changes))
    said = capsys.readouterr().err
    assert said.count("not stored, tried again with this report: the store is away") == limit
    assert f"state/{trained.step:012d}/progress.yaml" in sync.names_in(f"{output}/run")
    limit = 1000
    with pytest.raises(RunError, match="the store is away"):
        train(experiment(cohort, output, "name=lost", *changes))


def test_a_search_lies_in_a_store_and_is_known_on_another_machine(stored, bucket, machine):
    changes = ["name=sweep", "train.max_epochs=1", "tune.trials=2", "tune.scheduler=none"]
    given = experiment(stored, f"{BUCKET}/searches", *changes, "search={train.lr: [0.001, 0.002]}")
    first = tune(given)
    assert set(first.sweep.frame["status"]) == {"finished"}
    there = objects(bucket, "searches/sweep")
    assert there >= {"search.yaml", "trials.parquet", "report.html", "trials/0000/trial.yaml"}
    hidden = {name.rpartition("/")[0] for name in there if "/." in f"/{name}"}
    assert {name.rpartition("/")[2] for name in hidden} <= {runs.BEFORE}
    machine("second")
    again = tune(given)
    pd.testing.assert_frame_equal(again.sweep.frame, first.sweep.frame)
    for row in first.sweep.frame.to_dict("records"):
        trial = f"{BUCKET}/searches/sweep/trials/{row['trial']:04d}"
        assert ehr_ray.load(trial).experiment.train.lr == row["train.lr"]


def _train_workers() -> list[int]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found
