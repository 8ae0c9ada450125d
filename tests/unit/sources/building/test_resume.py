import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError, RunError
from ehr_ray.events.schema import RECORD
from ehr_ray.sources import splits, table
from ehr_ray.sources.building.resume import discard_staging, has_changed
from ehr_ray.storage import in_place
from ehr_ray.storage.paths import STAGING, local


def tree(path):
    return {
        str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()
    }


def hidden(path):
    return [p.name for p in path.iterdir() if p.name.startswith(".")]


def test_the_same_ingest_again_does_nothing_and_another_is_refused(tmp_path, cohort):
    path = cohort("synthetic", patients=3)
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    cohort("synthetic", patients=3)
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before
    for change in (
        {"patients": 4},
        {"patients": 3, "seed": 1},
        {"patients": 3, "splits": "0.5,0.5,0"},
    ):
        with pytest.raises(InputError, match="holds another input or other options; remove it"):
            cohort("synthetic", **change)
    assert hidden(tmp_path / "out") == []


def test_a_changed_input_is_noticed(tmp_path, cohort, write_patient):
    write_patient(tmp_path / "in/1.parquet", [("HR", 80.0, 1.0)])
    (tmp_path / "l.csv").write_text("id,died\n1,0\n")
    cohort("patient-parquet", tmp_path / "in", labels=tmp_path / "l.csv")
    (tmp_path / "l.csv").write_text("id,died\n1,1 \n")
    with pytest.raises(InputError, match="holds another input"):
        cohort("patient-parquet", tmp_path / "in", labels=tmp_path / "l.csv")


def test_a_folder_that_is_no_cohort_is_never_touched(tmp_path, cohort):
    (tmp_path / "out/cohort").mkdir(parents=True)
    (tmp_path / "out/cohort/thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="holds something else; remove it"):
        cohort("synthetic", patients=2)
    assert tree(tmp_path / "out") == {"cohort/thesis.tex": b"mine"}


def test_an_empty_folder_is_filled(tmp_path, cohort):
    (tmp_path / "out/cohort").mkdir(parents=True)
    assert (cohort("synthetic", patients=2) / "metadata/codes.parquet").exists()


def test_staging_of_another_ingest_is_removed(tmp_path, cohort):
    stale = tmp_path / "out/.cohort.staging-0123456789abcdef"
    (stale / "parts").mkdir(parents=True)
    cohort("synthetic", patients=2)
    assert hidden(tmp_path / "out") == []


@pytest.mark.parametrize("place", ["here", "store"])
@pytest.mark.parametrize(("name", "other"), [("p[12]", "p1"), ("p", "p.staging-b")])
def test_staged_work_of_another_name_stays(tmp_path, monkeypatch, place, name, other):
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    folders = {
        whose: tmp_path / "out" / f".{whose}.staging-0123456789abcdef-6/parts"
        for whose in (name, other)
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
    output = {"here": str(tmp_path / "out"), "store": f"file://{tmp_path}/out"}[place]
    discard_staging(local(f"{output}/{name}"))
    assert not folders[name].exists()
    assert folders[other].exists()


def test_two_ingests_into_one_place_exclude_each_other(tmp_path):
    def enter(_):
        with pytest.raises(InputError, match="another ingest is writing it"):
            ingest("synthetic", None, tmp_path / "c", options={"patients": 3})
        entered.append(True)

    entered = []
    ingest("synthetic", None, tmp_path / "c", options={"patients": 2}, progress=enter)
    assert entered


def test_the_summary_reads_well(tmp_path, write_stays):
    write_stays(tmp_path / "raw", {1: ["00:01,HR,80", "00:02,HR,x", "00:99,HR,1"]})
    summary = ingest("physionet2012", tmp_path / "raw", tmp_path / "c", max_rejected=1)
    assert str(summary).splitlines() == [
        f"{tmp_path}/c: 1 subjects (train 1, tuning 0, held_out 0), 3 events, "
        f"in {summary.seconds:.1f} s",
        "rejected 1 of 4 rows and 0 files (metadata/rejected.parquet)",
        "values that are no number: 1, event kept without one",
        "all by code in metadata/changes.parquet",
    ]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--output .*/file/c: File exists; choose another folder"):
        ingest("synthetic", None, tmp_path / "file" / "c", options={"patients": 1})


def test_a_full_disk_is_one_line_and_the_work_goes_on_afterwards(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ehr_ray.storage.files.pq.write_table", full)
        with pytest.raises(RunError, match="No space left on device; free space there, then run"):
            ingest("synthetic", None, tmp_path / "c", options={"patients": 3})
    assert not (tmp_path / "c").exists()
    assert (
        sum(ingest("synthetic", None, tmp_path / "c", options={"patients": 3}).subjects.values())
        == 3
    )


KILLED = """
import os, pathlib, signal, sys
from ehr_ray.commands.ingest import ingest

calls, limit = 0, int(sys.argv[3])

def dying(rename):
    def counted(source, target):
        global calls
        calls += 1
        if calls == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(source, target)

    return counted

pathlib.Path.rename = dying(pathlib.Path.rename)
os.replace = dying(os.replace)
finish = os.rename

def last(source, target):
    ours = str(target) == sys.argv[2]
    if ours and limit == 100:
        os.kill(os.getpid(), signal.SIGKILL)
    finish(source, target)
    if ours and limit == 101:
        os.kill(os.getpid(), signal.SIGKILL)

os.rename = last
ingest("physionet2012", pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), options={}, cpus=1)
"""


# 4 parts, then 2 files a shard: in the first part, between parts, before and within the shards,
# before the last rename and after it.
@pytest.mark.parametrize("step", [1, 4, 5, 10, 100, 101])
def test_a_killed_ingest_run_again_gives_the_same_bytes(tmp_path, write_stays, step):
    raw = tmp_path / "raw"
    for n in range(3):
        stays = {100 * n + i: [f"00:{i:02d},HR,{60 + i}", "00:30,Na,140"] for i in range(1, 21)}
        write_stays(raw / f"set-{n}", stays)
    head = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"
    (raw / "Outcomes-a.txt").write_text(head + "1,6,1,5,-1,0\n2,6,1,1,-1,1\n")
    output = tmp_path / "killed" / "cohort"
    command = [sys.executable, "-c", KILLED, str(raw), str(output), str(step)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    assert output.exists() == (step == 101)
    (staging,) = (p for p in output.parent.iterdir() if p != output)
    finished = {p: p.stat().st_mtime_ns for p in staging.glob("parts/??????/*")}
    assert (len(finished) > 0) == (step > 1)
    ages = {}

    def note(_):
        ages.update({p: p.stat().st_mtime_ns for p in finished if p.exists()})

    ingest("physionet2012", raw, output, options={}, cpus=1, progress=note)
    ingest("physionet2012", raw, tmp_path / "whole" / "cohort", options={}, cpus=1)
    assert step == 101 or ages == finished
    assert tree(output) == tree(tmp_path / "whole" / "cohort")
    assert hidden(output.parent) == []


class KilledError(Exception):
    """The end of an ingest between two jobs."""


@pytest.mark.parametrize(("size", "keys"), [(32, 3 * 1024), (1, 3 * 16384)])
def test_larger_inputs_have_more_buckets_and_a_killed_ingest_goes_on_with_them(
    tmp_path, monkeypatch, size, keys
):
    rows = [f"{p},{h},HR,{60 + h}" for h in range(9) for p in range(300)]
    (tmp_path / "notes.csv").write_text("\n".join(["id,hours,code,numeric_value", *rows]) + "\n")
    options = {"id_column": "id", "time_column": "hours", "time_unit": "hours"}
    read = partial(ingest, "table", tmp_path / "notes.csv", options=options, cpus=1)

    def killed(line):
        if line.startswith("wrote 2/"):
            raise KilledError

    monkeypatch.setattr(splits, "NUM_BUCKETS", 512)
    monkeypatch.setattr(splits, "MOST_BUCKETS", 16384)
    read(tmp_path / "few")
    monkeypatch.setattr(splits, "BUCKET_BYTES", size)
    read(tmp_path / "whole")
    with pytest.raises(KilledError):
        read(tmp_path / "other", progress=killed)
    (staged,) = tmp_path.glob(".other.staging-*")
    assert np.fromfile(staged / "parts/000000/events.index", np.int64, 3)[1] == keys
    lines = []
    with monkeypatch.context() as patch:
        patch.setattr(table, "_chunk", None)  # the part is there: nothing is read again
        read(tmp_path / "other", progress=lines.append)
    assert lines[0] == "read 1/1"
    assert tree(tmp_path / "other") == tree(tmp_path / "whole")
    events = [pq.read_table(tmp_path / name / "data") for name in ("few", "whole")]
    few, many = (
        each.sort_by([("subject_id", "ascending"), ("time", "ascending")]) for each in events
    )
    assert few.equals(many)
    name = "metadata/subject_splits.parquet"
    assert (tmp_path / "few" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(InputError, match="holds another input or other options"):
        read(tmp_path / "few")  # its shards have other subjects


COLUMNS = {"id_column": "id", "time_column": "hours", "time_unit": "hours"}


@pytest.fixture
def tables(tmp_path):
    """Four CSV files of some patients each, a unit of a table each, in a folder."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for n in range(4):
        rows = [f"{n}{p},{h},HR,{60 + h}" for p in range(9) for h in range(5)]
        text = "\n".join(["id,hours,code,numeric_value", *rows]) + "\n"
        (folder / f"{n}.csv").write_text(text)
    return folder


def parts_in(folder):
    """Return when each file of the finished parts of `c` in a folder was written."""
    found = folder.glob(".c.staging-*/parts/[0-9]*/*")
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in found}


@pytest.mark.parametrize("output", ["here", "store"])
def test_a_read_that_a_store_refuses_leaves_what_was_read_before(
    tmp_path, store, tables, monkeypatch, output
):
    """As where a token has expired, or a node that has just come has none."""
    place = {"here": tmp_path / "out" / "c", "store": store}[output]
    folder = {"here": tmp_path / "out", "store": tmp_path / "store"}[output]
    read = partial(ingest, "table", f"file://{tables}", options=COLUMNS, cpus=1)
    real = in_place.download

    def refused(store, path, target, stamp):
        if path.endswith("raw/2.csv"):
            raise OSError("AWS Error ACCESS_DENIED during HeadObject operation: HTTP status 403")
        real(store, path, target, stamp)

    with monkeypatch.context() as patch:
        patch.setattr(in_place, "download", refused)
        with pytest.raises(InputError, match="no access; give credentials"):
            read(place)
    left = parts_in(folder)
    assert {name.split("/")[2] for name in left} == {"000000", "000001"}
    seen = {}
    read(place, progress=lambda _: seen.update(parts_in(folder)))
    assert left.items() <= seen.items()
    read(tmp_path / "whole" / "c")
    assert tree(folder / "c") == tree(tmp_path / "whole" / "c")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_local_file_that_is_away_leaves_what_was_read_before(tmp_path, tables, kind):
    """As where a share is not mounted for a moment, which is no fault of a file."""
    for path in [*tables.iterdir()] if kind == "parquet" else []:
        pq.write_table(pacsv.read_csv(path), path.with_suffix(".parquet"))
        path.unlink()
    read = partial(ingest, "table", tables, options=COLUMNS, cpus=1)

    def unmount(line):
        if line.startswith("read 2/"):
            tables.rename(tmp_path / "away")

    with pytest.raises(InputError, match="raw"):
        read(tmp_path / "out" / "c", progress=unmount)
    left = parts_in(tmp_path / "out")
    assert {name.split("/")[2] for name in left} == {"000000", "000001"}
    with pytest.raises(InputError, match="raw"):
        read(tmp_path / "out" / "c")  # it is still away
    (tmp_path / "away").rename(tables)
    seen = {}
    read(tmp_path / "out" / "c", progress=lambda _: seen.update(parts_in(tmp_path / "out")))
    assert left.items() <= seen.items()
    read(tmp_path / "whole" / "c")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("output", ["here", "store"])
def test_a_fault_of_the_input_leaves_nothing_in_the_way_of_the_mended_one(
    tmp_path, store, tables, output
):
    place = {"here": tmp_path / "out" / "c", "store": store}[output]
    folder = {"here": tmp_path / "out", "store": tmp_path / "store"}[output]
    read = partial(ingest, "table", tables, options=COLUMNS, cpus=1)
    whole = (tables / "2.csv").read_text()
    (tables / "2.csv").write_text(whole.replace("code", "item", 1))
    with pytest.raises(InputError, match="code"):
        read(place)
    (tables / "2.csv").write_text(whole)
    read(place)
    read(tmp_path / "whole" / "c")
    assert tree(folder / "c") == tree(tmp_path / "whole" / "c")
    assert hidden(folder) == []


def test_what_was_refused_before_anything_was_read_leaves_no_staging(tmp_path, tables):
    options = {**COLUMNS, "id_column": "none"}
    with pytest.raises(InputError, match="--id-column none"):
        ingest("table", tables, tmp_path / "out" / "c", options=options, cpus=1)
    assert hidden(tmp_path / "out") == []


def test_what_ingest_changed_is_known_of_its_own_cohorts_alone(tmp_path):
    assert not has_changed(tmp_path, "code mapped")
    (tmp_path / "metadata").mkdir()
    (tmp_path / RECORD).write_text(json.dumps({"summary": {"changes": {"code mapped": 3}}}))
    assert has_changed(tmp_path, "code mapped")
    assert not has_changed(tmp_path, "unit converted")
    (tmp_path / RECORD).write_text("{}")
    assert not has_changed(tmp_path, "code mapped")
