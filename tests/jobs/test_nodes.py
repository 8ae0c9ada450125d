"""Work on two nodes, which share a store at most: nodes are lost, and others join."""

import contextlib
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from forked_workers import forked_session
from waiting import wait_until

from ehr_ray.commands.benchmark.faults import same_weights
from ehr_ray.commands.embed import embed
from ehr_ray.commands.evaluate.command import evaluate
from ehr_ray.commands.expand import expand
from ehr_ray.commands.ingest import ingest
from ehr_ray.commands.train.command import train
from ehr_ray.experiment import load
from ehr_ray.sources.parsing.csv_ranges import RANGE_BYTES
from ehr_ray.storage import runs, sync
from ehr_ray.storage.paths import STAGING
from ehr_ray.train.checkpoint import saved_progress

pytestmark = pytest.mark.ray
LOCAL = pyarrow.fs.LocalFileSystem()
LONG = ("train.max_epochs=8", "train.report_steps=2", "evaluation.bootstrap=20")
LONG += ("evaluation.baselines=false", "evaluation.hours=[]")
ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "tiny" / "set_vae.yaml"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    path = tmp_path_factory.mktemp("cohorts") / "synthetic"
    ingest("synthetic", None, path, options={"patients": 60})
    return path


@pytest.fixture(scope="module")
def start(head, cohort, tmp_path_factory):
    """Submit a training of some seconds: start(name, workers) gives its run folder."""
    output = tmp_path_factory.mktemp("runs")

    def submit(name: str, workers: object, *more: str) -> Path:
        settings = overrides(cohort, output, name, workers, *more)
        done = head.submit(name, "train", "configs/tiny/set_vae.yaml", *settings, wait=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return output / name

    return submit


def overrides(cohort: object, output: object, name: str, workers: object, *more: str) -> list[str]:
    common = [f"data.cohort={cohort}", f"output={output}", f"name={name}", *more]
    return [*common, "tracking.experiment=null", f"cluster.num_workers={workers}"]


@pytest.fixture(scope="module")
def whole(cohort, ray_folder, tmp_path_factory):
    """A run of two workers on one machine, of rows in files, to which nothing happens."""
    with forked_session(ray_folder, num_cpus=2):
        output = tmp_path_factory.mktemp("whole")
        return train(load(CONFIG, overrides(cohort, output, "whole", 2, *LONG))).run


@pytest.mark.parametrize("mode", ["stream", pytest.param("cache", marks=pytest.mark.slow)])
def test_a_node_lost_in_mid_epoch_changes_nothing(
    mode, head, cohort, whole, bucket, tmp_path, monkeypatch
):
    """Two nodes share a store and nothing else; what is trained waits for one in place of the lost.

    Two workers and what makes their rows need three CPUs, so that the node of two has a worker.
    Slow: that a node in place of the lost one copies prepared rows from the store, as the second
    machine of `ray/test_storage.py` does.
    """
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    place = f"hospital/train/{mode}"
    pyarrow.fs.copy_files(
        str(cohort), f"{place}/cohort", source_filesystem=LOCAL, destination_filesystem=bucket
    )
    head.lose_nodes()
    nodes = [head.nodes, head.nodes + 1]
    head.add_node(cpus=1)
    second = head.add_node(cpus=2)
    name, output = f"lost-{mode}", f"s3://{place}/runs"
    settings = overrides(f"s3://{place}/cohort", output, name, 2, *LONG, f"data.mode={mode}")
    done = head.submit(name, "train", "configs/tiny/set_vae.yaml", *settings, wait=False)
    assert done.returncode == 0, done.stdout + done.stderr

    def saved():
        return saved_progress(runs.fetch_run(f"{output}/{name}", missing_ok=True))

    wait_until(lambda: (there := saved()) is not None and there.step >= 6, lambda: head.logs(name))
    assert all(any(head.copies(node).rglob("*.*")) for node in nodes)  # each trained
    head.lose(second)
    assert not saved().finished
    head.add_node(cpus=2)
    head.wait(name, "SUCCEEDED")
    assert ("rows streamed" in head.logs(name)) == (mode == "stream")
    assert same_weights(sync.fetch(f"{output}/{name}"), whole)
    if mode == "stream":
        judged_as_on_one_machine(head, f"s3://{place}", f"{output}/{name}", whole, cohort, tmp_path)


def judged_as_on_one_machine(head, store, run, whole, cohort, here):
    """Expand, embed and evaluate on two nodes, of which each has its part of the work."""
    nodes = head.alive()
    alone = {"expanded": here / "expanded", "vectors": here / "vectors", "judged": here / "judged"}
    expand(cohort, alone["expanded"])
    embed(whole, cohort, alone["vectors"], on_ray=False)
    evaluate(whole, output=alone["judged"], on_ray=False)
    for verb, name, words in (
        ("expand", "expanded", [f"{store}/cohort", f"--output={store}/expanded"]),
        ("embed", "vectors", [run, f"--cohort={store}/cohort", f"--output={store}/vectors"]),
        ("evaluate", "judged", [run, f"--output={store}/judged"]),
    ):
        for node in nodes:
            shutil.rmtree(head.copies(node))
        done = head.submit(f"{verb}-in-store", verb, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        for node in nodes:
            made = [p for p in head.copies(node).rglob("*.parquet") if "checkpoint" not in p.parts]
            assert made, f"{verb}: node {node} had no part of it"
        there = sync.fetch(f"{store}/{name}")
        tables = sorted(alone[name].rglob("*.parquet"))
        assert tables
        for path in tables:
            table = pq.read_table(there / path.relative_to(alone[name]))
            assert table.equals(pq.read_table(path)), path
    ours, theirs = (json.loads((p / "metrics.json").read_text()) for p in (there, alone["judged"]))
    assert ours == pytest.approx(theirs, nan_ok=True)


def test_two_nodes_ingest_into_a_store_which_is_all_they_share(head, bucket, tmp_path, monkeypatch):
    """Made-up patients, and a CSV in the store, of which each node reads ranges."""
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    head.lose_nodes()
    nodes = []
    for _ in range(2):
        nodes.append(head.nodes)
        head.add_node(cpus=1)
    with pyarrow.csv.CSVWriter(tmp_path / "events.csv", EVENTS) as writer:
        writer.write(_events())
    assert (tmp_path / "events.csv").stat().st_size > 2 * RANGE_BYTES
    pyarrow.fs.copy_files(
        str(tmp_path / "events.csv"), "hospital/raw/events.csv", destination_filesystem=bucket
    )
    worked = {node: set() for node in nodes}
    options = {"patients": 4000, "max_visits": 16}
    columns = {f"{name}_column": name for name in ("id", "time", "code", "value")}
    columns["time_unit"] = "hours"
    for name, source, place, given in (
        ("made-up", "synthetic", None, options),
        ("table", "table", "s3://hospital/raw/events.csv", columns),
    ):
        arguments = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
        arguments += [] if place is None else [f"--input={place}"]
        with held_by(head, nodes) as parts:
            done = head.submit(
                name,
                "ingest",
                f"--source={source}",
                *arguments,
                f"--output=s3://hospital/nodes/{name}",
                "--cpus=2",
            )
        assert done.returncode == 0, done.stdout + done.stderr
        ingest(source, place, tmp_path / name, options=given, cpus=1)
        there = tree(sync.fetch(f"s3://hospital/nodes/{name}"))
        assert there == tree(tmp_path / name)
        one, other = parts.values()
        assert not one & other
        for node in nodes:
            worked[node] |= {(name, part) for part in parts[node]}
    assert all(worked.values())
    found = {path for node in nodes for path in head.copies(node).rglob("*.*") if path.is_file()}
    assert {path.name for path in found} == {"events.csv"}


@contextlib.contextmanager
def held_by(head, nodes):
    """Yield the parts that jobs of each node work on in the block, once it is over."""
    seen, over = {node: set() for node in nodes}, threading.Event()

    def watch():
        while not over.wait(0.01):
            for node in nodes:
                folders = head.copies(node).glob(".work/*/parts/*")
                seen[node] |= {folder.name.lstrip(".")[:6] for folder in folders}

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def tree(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


EVENTS = pa.schema(
    {
        "id": pa.int64(),
        "time": pa.int64(),
        "code": pa.string(),
        "value": pa.int64(),
        "note": pa.string(),
    }
)


def _events():
    """Return few rows that are large in a file."""
    rows = np.arange(360_000)
    columns = [rows // 100, rows % 100, pa.array(["HR", "Na"]).take(pa.array(rows % 2))]
    return pa.table([*columns, rows % 90 + 50, pa.repeat("x" * 180, len(rows))], schema=EVENTS)


@pytest.mark.slow
def test_workers_grow_and_shrink_with_the_nodes_and_the_curve_stays(head, start, cohort, tmp_path):
    """[1, 2] workers, one node more, then one less: the losses are those of one throughout."""
    long = ("train.max_epochs=60", "train.report_steps=2", "cluster.resize_seconds=2")
    head.lose_nodes()
    head.add_node(cpus=1)
    run = start("elastic", "[1,2]", *long)
    head.wait_for_step("elastic", run, 6)
    third = head.add_node(cpus=1)
    grow = "2 workers go on from step"
    wait_until(lambda: grow in head.logs("elastic"), lambda: head.logs("elastic"))
    grown = saved_progress(run).step
    head.wait_for_step("elastic", run, grown + 4)
    head.lose(third)
    assert not saved_progress(run).finished
    head.wait("elastic", "SUCCEEDED")
    assert "1 worker goes on from step" in head.logs("elastic")
    experiment = load(CONFIG, overrides(cohort, tmp_path, "alone", 0, *long))
    alone = train(experiment).run
    ours, theirs = (pd.read_parquet(path / "history.parquet") for path in (run, alone))
    exact = ["step", "epoch", "lr", "beta", "free_bits"]
    pd.testing.assert_frame_equal(ours[exact], theirs[exact])
    metrics = [c for c in ours if c.startswith(("train/", "val/"))]
    pd.testing.assert_frame_equal(ours[metrics][:10], theirs[metrics][:10], rtol=1e-3)
    last = "val/objective"
    assert ours[last].iloc[-1] == pytest.approx(theirs[last].iloc[-1], rel=0.05)
