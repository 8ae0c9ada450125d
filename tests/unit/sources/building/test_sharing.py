"""Jobs of an ingest into a store that share nothing else: a node here is a folder of copies."""

import contextlib
import gzip
import multiprocessing
import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from made_up import mimic_iv, omop

import ehr_ray.commands.ingest as module
from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError, RunError
from ehr_ray.sources import physionet2012, synthetic
from ehr_ray.sources.building import ranges, shards
from ehr_ray.sources.building.sharing import WORK, address_of, at_work
from ehr_ray.sources.building.staging import Plan
from ehr_ray.sources.mimic_iv.icd_groups import groups_file
from ehr_ray.sources.parsing import csv_ranges, parquet_files
from ehr_ray.sources.source import Unit
from ehr_ray.sources.splits import SplitPolicy
from ehr_ray.storage import in_place, sync
from ehr_ray.storage.paths import OUTLINE, STAGING

BUCKET = "s3://hospital"


class Nodes:
    """Run jobs on two nodes by turns, beside the driver; `lost_at` is the job none comes after."""

    def __init__(self, folder, patch):
        self._folder, self._patch = folder, patch
        self.jobs, self.lost_at = 0, None

    def driver(self, name):
        """Move the driver to a machine of this name, which has no copies at first."""
        self._patch.setenv(STAGING, str(self._folder / name))

    def run(self, function, jobs, **_):
        results = []
        for number, job in enumerate(jobs):
            if self.jobs == self.lost_at:
                raise RunError("lost")
            self.jobs += 1
            results.append(self._on_node(number % 2, *pickle.loads(pickle.dumps((function, job)))))
        return results

    def _on_node(self, node, function, job):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(STAGING, str(self._folder / f"node{node}"))
            return function(job)

    def copies(self, node):
        """Return the names of the files that a node has kept."""
        found = tree(self._folder / f"node{node}")
        return {name for name in found if not name.startswith(".locks/")}


@pytest.fixture
def nodes(tmp_path, monkeypatch, bucket):
    made = Nodes(tmp_path / "machines", monkeypatch)
    monkeypatch.setattr(module, "run_jobs", made.run)
    monkeypatch.setattr(module, "session", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(ranges, "RANGE_ROWS", 250)
    monkeypatch.setattr(shards, "MIN_SHARDS", 3)
    monkeypatch.setattr(synthetic, "PATIENTS_PER_UNIT", 50)
    made.driver("driver")
    yield made
    bucket.delete_dir_contents("hospital/shared", missing_dir_ok=True)


def tree(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def objects(bucket, folder):
    selector = pyarrow.fs.FileSelector(f"hospital/{folder}", recursive=True, allow_not_found=True)
    found = {}
    for info in bucket.get_file_info(selector):
        if info.is_file:
            with bucket.open_input_stream(info.path) as stream:
                found[os.path.relpath(info.path, f"hospital/{folder}")] = stream.read()
    return found


def write_events(folder, monkeypatch):
    """Leave a CSV that is read in several ranges, with names of subjects, and labels."""
    monkeypatch.setattr(csv_ranges, "RANGE_BYTES", 20_000)
    monkeypatch.setattr(csv_ranges, "SCAN_BYTES", 10_000)
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    lines = ["stay,hours,item,reading"]
    for stay in range(200):
        lines.append(f"s{stay:04d},,SITE//{stay % 20},")
        times = np.sort(draw.integers(0, 100, 15))
        lines += [f"s{stay:04d},{t},HR,{draw.integers(50, 150)}" for t in times]
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    said = "".join(f"s{n:04d},{n % 2}\n" for n in range(200))
    (folder / "died.csv").write_text("stay,died\n" + said)
    return {
        "id_column": "stay",
        "time_column": "hours",
        "time_unit": "hours",
        "code_column": "item",
        "value_column": "reading",
        "labels": f"{BUCKET}/shared/raw/died.csv",
    }


def put(bucket, folder, target):
    for name, content in tree(folder).items():
        with bucket.open_output_stream(f"hospital/{target}/{name}", compression=None) as stream:
            stream.write(content)


REMOVED = "another ingest into the same place has removed what this one had left"
PATIENTS = {"patients": 150, "min_visits": 2, "max_visits": 6}


def test_two_nodes_make_in_a_store_what_one_folder_has(nodes, bucket, tmp_path):
    options = {**PATIENTS, "admissions": 3}
    ingest("synthetic", None, f"{BUCKET}/shared/cohort", options=options, cpus=2)
    assert [nodes.copies(node) for node in (0, 1)] == [set(), set()]
    ingest("synthetic", None, tmp_path / "here", options=options, cpus=2)
    assert objects(bucket, "shared") == {
        f"cohort/{name}": content for name, content in tree(tmp_path / "here").items()
    }


@pytest.mark.parametrize("how", ["hash", "group", "table"])
def test_a_table_in_a_store_is_read_in_ranges_by_both(nodes, bucket, tmp_path, monkeypatch, how):
    options = write_events(tmp_path / "raw", monkeypatch)
    if how == "table":
        who = [f"s{n:04d}" for n in range(200)]
        splits = pa.table({"subject_id": who, "split": ["train", "test", "valid", "dev"] * 50})
        pq.write_table(splits, tmp_path / "raw" / "splits.parquet")
    put(bucket, tmp_path / "raw", "shared/raw")
    more = {
        "hash": {},
        "group": {"split_by": "SITE"},
        "table": {"splits": f"{BUCKET}/shared/raw/splits.parquet"},
    }[how]
    source = f"{BUCKET}/shared/raw/events.csv"
    for place in (f"{BUCKET}/shared/cohort", tmp_path / "here"):
        ingest("table", source, place, options=options, cpus=2, **more)
    nodes.driver("another")
    for place in (f"{BUCKET}/shared/cohort", tmp_path / "here"):
        assert ingest("table", source, place, options=options, cpus=2, **more).reused
    assert objects(bucket, "shared/cohort") == tree(tmp_path / "here")
    held = {"events.csv", "died.csv"} | ({"splits.arrow"} if how != "hash" else set())
    for node in (0, 1):
        assert nodes.copies(node)
        assert {name.rpartition("/")[2] for name in nodes.copies(node)} <= held


def test_a_compressed_table_in_a_store_is_unpacked_there_for_both(
    nodes, bucket, tmp_path, monkeypatch
):
    options = write_events(tmp_path / "raw", monkeypatch)
    events = tmp_path / "raw" / "events.csv"
    (tmp_path / "raw" / "events.csv.gz").write_bytes(gzip.compress(events.read_bytes()))
    events.unlink()
    put(bucket, tmp_path / "raw", "shared/raw")
    source, place = f"{BUCKET}/shared/raw/events.csv.gz", f"{BUCKET}/shared/cohort"
    ingest("table", source, tmp_path / "whole", options=options, cpus=1)
    nodes.jobs, nodes.lost_at = 0, 2  # the file is unpacked and one of its pieces read
    with pytest.raises(RunError, match="lost"):
        ingest("table", source, place, options=options, cpus=2)
    left = times(bucket, "shared")
    pieces = {name: time for name, time in left.items() if "/unpacked/" in name}
    assert len([name for name in pieces if name.endswith(".rows")]) == 2
    nodes.driver("another")
    nodes.lost_at = None
    seen = {}

    def look(line):
        if line == "fitting codes on train":
            seen.update(times(bucket, "shared"))

    ingest("table", source, place, options=options, cpus=2, progress=look)
    assert pieces.items() <= seen.items()
    assert objects(bucket, "shared/cohort") == tree(tmp_path / "whole")
    assert {name.partition("/")[0] for name in objects(bucket, "shared")} == {"cohort", "raw"}
    for node in (0, 1):
        assert {name.rpartition("/")[2] for name in nodes.copies(node)} <= {
            "events.csv.gz",
            "died.csv",
        }


def test_ended_anywhere_it_goes_on_from_another_machine(nodes, bucket, tmp_path, monkeypatch):
    place = f"{BUCKET}/shared/cohort"
    ingest("synthetic", None, tmp_path / "here", options=PATIENTS, cpus=2)
    total, begun, stamps = nodes.jobs, 0, {}
    for stop in (2, 5, total - 4, total):
        shutil.rmtree(tmp_path / "machines", ignore_errors=True)
        nodes.driver(f"before{stop}")
        nodes.jobs, nodes.lost_at = 0, stop
        with monkeypatch.context() as patch:
            lost_where(patch, stop, total)
            with pytest.raises(RunError, match="lost"):
                ingest("synthetic", None, place, options=PATIENTS, cpus=2)
        with pytest.raises(InputError, match="is being written, or its writing was interrupted"):
            sync.fetch(place)
        there = objects(bucket, "shared")
        assert len(there) > begun
        begun = len(there)
        now = times(bucket, "shared")
        assert {n: t for n, t in now.items() if "/parts/" in n}.items() >= stamps.items()
        stamps = {n: t for n, t in now.items() if "/parts/" in n}
    nodes.driver("last")
    nodes.lost_at = None
    ingest("synthetic", None, place, options=PATIENTS, cpus=2)
    assert objects(bucket, "shared/cohort") == tree(tmp_path / "here")
    assert objects(bucket, "shared").keys() == {f"cohort/{n}" for n in tree(tmp_path / "here")}
    nodes.driver("another")
    nodes.jobs = 0
    assert ingest("synthetic", None, place, options=PATIENTS, cpus=2).reused
    assert nodes.jobs == 0


def lost_where(patch, stop, total):
    """At the end of all jobs, lose the driver while it makes the cohort whole, shards there."""
    real = sync.push

    def push(place, **how):
        if how.get("whole"):
            raise RunError("lost")
        real(place, **how)

    if stop == total:
        patch.setattr(sync, "push", push)


def times(bucket, folder):
    selector = pyarrow.fs.FileSelector(f"hospital/{folder}", recursive=True)
    return {info.path: info.mtime_ns for info in bucket.get_file_info(selector) if info.is_file}


def test_another_ingest_removes_what_one_before_left_in_the_store(nodes, bucket, tmp_path):
    place = f"{BUCKET}/shared/cohort"
    nodes.lost_at = 4
    with pytest.raises(RunError, match="lost"):
        ingest("synthetic", None, place, options=PATIENTS, cpus=2)
    nodes.driver("another")
    nodes.lost_at = None
    ingest("synthetic", None, place, options={**PATIENTS, "patients": 60}, cpus=2)
    assert {name.partition("/")[0] for name in objects(bucket, "shared")} == {"cohort"}


def test_parts_that_another_removed_make_no_cohort(nodes, bucket):
    place = f"{BUCKET}/shared/cohort"

    def remove(line):
        if line == "fitting codes on train":
            (staging,) = in_place.folders_in(f"{BUCKET}/shared") - {"cohort"}
            bucket.delete_dir(f"hospital/shared/{staging}/parts/000001")

    with pytest.raises(RunError, match=REMOVED):
        ingest("synthetic", None, place, options=PATIENTS, cpus=2, progress=remove)
    assert sync.unfinished(place)
    ingest("synthetic", None, place, options=PATIENTS, cpus=2)
    assert not sync.unfinished(place)


@pytest.mark.parametrize("table", ["events.rows", "events.index", "names.index"])
def test_a_part_that_lost_a_file_beside_another_removal_is_told_and_made_again(
    nodes, bucket, tmp_path, monkeypatch, table
):
    """The removal comes between the files of a part and the one by which it is known."""
    options = write_events(tmp_path / "raw", monkeypatch)
    put(bucket, tmp_path / "raw", "shared/raw")
    source, place = f"{BUCKET}/shared/raw/events.csv", f"{BUCKET}/shared/cohort"
    real = in_place.leave

    def leave(folder, names, uri, last=None):
        real(folder, names, uri, last)
        if last is not None and last.startswith("parts/000001/"):
            bucket.delete_file(f"{uri.removeprefix('s3://')}/parts/000001/{table}")

    with monkeypatch.context() as patch:
        patch.setattr(in_place, "leave", leave)
        with pytest.raises(RunError, match=REMOVED):
            ingest("table", source, place, options=options, cpus=2)
    ingest("table", source, place, options=options, cpus=2)
    ingest("table", source, tmp_path / "here", options=options, cpus=2)
    assert objects(bucket, "shared/cohort") == tree(tmp_path / "here")


@pytest.mark.parametrize("folder", ["parts", "divided"])
def test_what_was_made_without_a_lost_table_is_made_again_with_it(
    nodes, bucket, tmp_path, monkeypatch, folder
):
    options = write_events(tmp_path / "raw", monkeypatch)
    put(bucket, tmp_path / "raw", "shared/raw")
    source, place = f"{BUCKET}/shared/raw/events.csv", f"{BUCKET}/shared/cohort"
    more = {"options": options, "cpus": 2, "split_by": "SITE" if folder == "divided" else None}
    run = nodes.run

    def lossy(function, jobs, *, verb, **how):
        if verb == "wrote":
            (staging,) = in_place.folders_in(f"{BUCKET}/shared") - {"cohort", "raw"}
            bucket.delete_file(f"hospital/shared/{staging}/{folder}/000001/events.index")
        return run(function, jobs, **how)

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_jobs", lossy)
        with pytest.raises(RunError, match=REMOVED):
            ingest("table", source, place, **more)
    nodes.driver("another")
    ingest("table", source, place, **more)
    ingest("table", source, tmp_path / "here", **more)
    assert objects(bucket, "shared/cohort") == tree(tmp_path / "here")


def test_bad_input_leaves_nothing(nodes, bucket, tmp_path, monkeypatch):
    options = write_events(tmp_path / "raw", monkeypatch)
    put(bucket, tmp_path / "raw", "shared/raw")
    source, place = f"{BUCKET}/shared/raw/events.csv", f"{BUCKET}/shared/cohort"
    with pytest.raises(InputError, match=r"--code-column none: events\.csv has the columns"):
        ingest("table", source, place, options={**options, "code_column": "none"}, cpus=2)
    left = {name for name in objects(bucket, "shared") if not name.startswith("raw/")}
    assert left == set()
    (tmp_path / "raw" / "died.csv").unlink()
    bucket.delete_file("hospital/shared/raw/died.csv")
    with pytest.raises(InputError, match=r"s3://hospital/shared/raw/died\.csv: nothing there"):
        ingest("table", source, place, options=options, cpus=2)


@pytest.mark.parametrize("groups", ["icd", "own"])
def test_groups_of_diagnoses_are_tasks_of_an_input_in_a_store(nodes, bucket, tmp_path, groups):
    put(bucket, mimic_iv.write(tmp_path / "raw"), "shared/raw")
    if groups == "own":
        groups = str(tmp_path / "own.csv")
        Path(groups).write_text("task,version,prefix\nhypertension,9,401\n")
    place = f"{BUCKET}/shared/cohort"
    options = {"tasks": groups, "label_start": "icu"}
    for output in (place, tmp_path / "here"):
        how = {"options": options, "max_rejected": 1.0, "cpus": 2}
        ingest("mimic-iv", f"{BUCKET}/shared/raw", output, **how)
    assert objects(bucket, "shared/cohort") == tree(tmp_path / "here")


def test_a_folder_of_a_killed_job_is_removed_by_the_next_one_here(tmp_path, monkeypatch):
    monkeypatch.setenv(STAGING, str(tmp_path / "node"))
    folder, work = tmp_path / "node" / "plan", tmp_path / "node" / WORK
    plan = Plan("synthetic", None, SplitPolicy(), folder, store=f"file://{tmp_path}/store")

    def killed():
        with at_work(plan, "out") as job:
            (job.staging / "events.rows").write_bytes(b"rows of patients")
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (left,) = work.glob("tmp*")
    with at_work(plan, "out") as one:
        assert not left.exists()
        with at_work(plan, "out") as other:
            assert {*work.glob("tmp*")} == {one.staging, other.staging}
    assert not [*work.glob("tmp*")]


@pytest.mark.parametrize("gone", ["before", "while it is copied"])
def test_a_staged_file_that_another_ingest_removed_is_told_as_such(tmp_path, monkeypatch, gone):
    monkeypatch.setenv(STAGING, str(tmp_path / "node"))
    folder, store = tmp_path / "node" / "plan", tmp_path / "store"
    plan = Plan("synthetic", None, SplitPolicy(), folder, store=f"file://{store}")
    piece = store / "unpacked" / "000000" / "000003.rows"
    if gone != "before":
        piece.parent.mkdir(parents=True)
        piece.write_bytes(b"rows")
        listed = in_place.each
        monkeypatch.setattr(in_place, "each", lambda *how: piece.unlink() or listed(*how))
    needs = [folder / "unpacked" / "000000" / "000003.rows"]
    with (
        pytest.raises(RunError, match=rf"^--output out: {REMOVED}"),
        at_work(plan, "out", needs=needs),
    ):
        raise AssertionError


def test_a_table_of_splits_that_another_ingest_removed_is_told_as_such(tmp_path, monkeypatch):
    monkeypatch.setenv(STAGING, str(tmp_path / "node"))
    (tmp_path / "store").mkdir()
    plan = Plan("synthetic", None, SplitPolicy(), tmp_path, store=f"file://{tmp_path}/store")
    with pytest.raises(RunError, match=REMOVED):
        plan.splits_table()


@pytest.mark.parametrize(
    ("place", "uses", "address"),
    [
        ("s3://hospital/a", (str(groups_file("icd")),), None),
        ("s3://hospital/a", (str(groups_file("own.csv")),), "local"),
        ("/cohorts/a", (str(groups_file("own.csv")),), None),
    ],
)
def test_a_table_that_only_this_machine_has_is_read_on_it(place, uses, address):
    units = [Unit(root="s3://hospital/raw", uses=("a.csv", *uses))]
    assert address_of(place, units) == address


@pytest.mark.parametrize(
    ("place", "roots", "address"),
    [
        ("/cohorts/a", ["/raw"], None),
        ("/cohorts/a", ["s3://hospital/raw"], None),
        ("s3://hospital/a", ["", ""], None),
        ("s3://hospital/a", ["s3://hospital/raw", "gs://other/labels"], None),
        ("s3://hospital/a", ["postgresql://reader@db/omop"], None),
        ("s3://hospital/a", ["s3://hospital/raw", "/labels"], "local"),
        ("s3://hospital/a", ["duckdb:///raw/cdm.duckdb"], "local"),
        ("s3://hospital/a", ["file:///raw"], "local"),
        ("file:///cohorts/a", ["s3://hospital/raw"], "local"),
    ],
)
def test_a_cluster_that_shares_a_store_is_used_where_all_lies_in_one(place, roots, address):
    assert address_of(place, [Unit(root=root) for root in roots]) == address


def held_of(folder, name):
    """Return the files of a name that a machine holds, without the stand-ins of files."""
    return [p for p in folder.rglob(name) if p.is_file() and not is_outlined_in(folder, p)]


def is_outlined_in(folder, path):
    return path.relative_to(folder).parts[0] == OUTLINE


@pytest.mark.parametrize("kind", ["csv", "parquet", "folder"])
def test_the_machine_of_the_command_copies_no_table_of_an_input_in_a_store(
    nodes, bucket, tmp_path, monkeypatch, kind
):
    options = write_events(tmp_path / "raw", monkeypatch)
    events = tmp_path / "raw" / "events.csv"
    if kind == "parquet":
        monkeypatch.setattr(parquet_files, "CHUNK_ROWS", 500)
        monkeypatch.setattr(in_place, "TAIL", 64)
        table = pyarrow.csv.read_csv(events)
        pq.write_table(table, events.with_suffix(".parquet"), row_group_size=400)
        events.unlink()
        events = events.with_suffix(".parquet")
    put(bucket, tmp_path / "raw", "shared/raw")
    name = "" if kind == "folder" else f"/{events.name}"
    for place in (f"{BUCKET}/shared/cohort", tmp_path / "here"):
        ingest("table", f"{BUCKET}/shared/raw{name}", place, options=options, cpus=2)
        assert not held_of(tmp_path / "machines" / "driver", events.name)
    for node in ("node0", "node1"):
        assert len(held_of(tmp_path / "machines" / node, events.name)) == 1
    assert objects(bucket, "shared/cohort") == tree(tmp_path / "here")
    given = tmp_path / "raw" if kind == "folder" else events
    options["labels"] = tmp_path / "raw" / "died.csv"
    ingest("table", given, tmp_path / "folder", options=options, cpus=2)
    assert same(tmp_path / "folder", tmp_path / "here")


def same(one, other):
    """Whether two cohorts are the same but for what tells their inputs' times of change."""
    found = [tree(folder) for folder in (one, other)]
    for files in found:
        del files["metadata/ingest.json"]
    return found[0] == found[1]


def test_each_node_copies_the_files_it_reads_of_a_folder_of_stays(
    nodes, bucket, tmp_path, monkeypatch
):
    monkeypatch.setattr(physionet2012, "FILES_PER_UNIT", 3)
    raw = tmp_path / "raw"
    raw.mkdir()
    for stay in range(100, 130):
        rows = [f"00:00,RecordID,{stay}", "00:00,Age,60", *(f"{h:02d}:00,HR,80" for h in range(4))]
        (raw / f"{stay}.txt").write_text("\n".join(["Time,Parameter,Value", *rows]) + "\n")
    said = "".join(f"{stay},5,{stay % 2}\n" for stay in range(100, 130))
    (raw / "Outcomes-a.txt").write_text("RecordID,Length_of_stay,In-hospital_death\n" + said)
    put(bucket, raw, "shared/raw")
    ingest("physionet2012", f"{BUCKET}/shared/raw", f"{BUCKET}/shared/cohort", cpus=2)
    machines = tmp_path / "machines"
    driver, *there = (
        {p.name for p in held_of(machines / m, "*.txt")} for m in ("driver", "node0", "node1")
    )
    assert driver == set()
    assert there[0].isdisjoint(there[1])
    assert there[0] | there[1] == {path.name for path in raw.iterdir()}
    ingest("physionet2012", raw, tmp_path / "folder", cpus=2)
    sync.fetch(f"{BUCKET}/shared/cohort")
    assert same(tmp_path / "folder", machines / "driver" / "s3" / "hospital" / "shared" / "cohort")


def test_of_a_mimic_in_a_store_no_table_and_of_an_omop_the_concepts_come_to_the_driver(
    nodes, bucket, tmp_path, monkeypatch
):
    monkeypatch.setattr(csv_ranges, "RANGE_BYTES", 100)
    monkeypatch.setattr(csv_ranges, "SCAN_BYTES", 50)
    driver = tmp_path / "machines" / "driver"
    for source, made, held in (("mimic-iv", mimic_iv, set()), ("omop", omop, {"concept.csv"})):
        raw = made.write(tmp_path / source)
        put(bucket, raw, f"shared/{source}")
        place, how = f"{BUCKET}/shared/{source}-cohort", {"max_rejected": 1.0, "cpus": 2}
        ingest(source, f"{BUCKET}/shared/{source}", place, **how)
        assert {path.name for path in held_of(driver, "*.csv")} == held
        ingest(source, raw, tmp_path / f"{source}-here", **how)
        sync.fetch(place)
        assert same(tmp_path / f"{source}-here", driver / "s3/hospital/shared" / f"{source}-cohort")


def test_a_cohort_in_a_store_is_ingested_again_by_its_footers(nodes, bucket, tmp_path):
    place, again = f"{BUCKET}/shared/cohort", f"{BUCKET}/shared/again"
    ingest("synthetic", None, place, options=PATIENTS, cpus=2)
    nodes.driver("another")
    ingest("meds", place, again, cpus=2)
    held = {path.name for path in held_of(tmp_path / "machines" / "another", "*.parquet")}
    assert "0.parquet" not in held
    assert "subject_splits.parquet" in held
    sync.fetch(place)
    cohort = tmp_path / "machines" / "another" / "s3" / "hospital" / "shared"
    ingest("meds", shutil.copytree(cohort / "cohort", tmp_path / "copy"), tmp_path / "here", cpus=2)
    sync.fetch(again)
    assert same(tmp_path / "here", cohort / "again")
