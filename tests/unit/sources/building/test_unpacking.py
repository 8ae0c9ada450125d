"""Ingest of large compressed files by several tasks, which run here one after another."""

import contextlib
import gzip
import json
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_up import mimic_iv

import ehr_ray.commands.ingest as module
from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError, RunError
from ehr_ray.events.schema import RECORD
from ehr_ray.runtime.data.tasks import run_jobs
from ehr_ray.sources.building.jobs import ReadUnit, UnpackUnit
from ehr_ray.sources.parsing import csv_ranges

COLUMNS = {
    "id_column": "stay",
    "time_column": "hours",
    "time_unit": "hours",
    "code_column": "item",
    "value_column": "reading",
}


class Jobs:
    """Run jobs in this process as if they were on Ray, and stop where one dies."""

    def __init__(self):
        self.done, self.dies = [], None

    def run(self, function, jobs, *, on_ray, **how):
        del on_ray
        return run_jobs(partial(self._call, function), jobs, on_ray=False, **how)

    def _call(self, function, job):
        kind = type(function)
        if self.dies == (kind, sum(done is kind for done in self.done)):
            raise RunError("lost")
        self.done.append(kind)
        return function(job)

    def count(self, kind):
        return sum(done is kind for done in self.done)


@pytest.fixture(autouse=True)
def jobs(monkeypatch):
    made = Jobs()
    monkeypatch.setattr(module, "run_jobs", made.run)
    monkeypatch.setattr(module, "session", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(csv_ranges, "RANGE_BYTES", 8_000)
    monkeypatch.setattr(csv_ranges, "SCAN_BYTES", 3_000)
    return made


@pytest.fixture
def text():
    draw = np.random.default_rng(0)
    lines = [
        f"{draw.integers(100)},{draw.integers(100)},HR,{draw.integers(50, 150)}"
        for _ in range(3000)
    ]
    lines[700] = "1,never,HR,3"
    lines[1500] = '"2",5,HR,">100"'
    lines[2000] = "1,2"
    lines[2500] = "007,5,HR,3"
    return "stay,hours,item,reading\r\n" + "\r\n".join(lines) + "\r\n"


def pack(folder, content, name="events.csv.gz"):
    """Write a gzip file of two members."""
    half = len(content) // 2
    (folder / name).write_bytes(gzip.compress(content[:half]) + gzip.compress(content[half:]))
    return folder / name


def contents(path):
    """Return the files of a cohort, without the fingerprint in its record."""
    found = {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    record = json.loads(found[RECORD])
    del record["fingerprint"]
    return {**found, RECORD: record}


def made(source, output, **how):
    ingest("table", source, output, options=COLUMNS, max_rejected=0.5, **{"cpus": 2, **how})
    return contents(output)


def test_a_cohort_of_pieces_is_that_of_the_whole(tmp_path, jobs, text):
    source = pack(tmp_path, text.replace("007,", "7,").encode("utf-8-sig"))
    lines = []
    whole = made(source, tmp_path / "whole", cpus=1, progress=lines.append)
    assert jobs.count(ReadUnit) == 1
    assert not any("unpacked" in line for line in lines)
    assert made(source, tmp_path / "cut", progress=lines.append) == whole
    assert jobs.count(ReadUnit) == 1 + 5
    assert "unpacked 1/1" in lines
    rejected = pq.read_table(tmp_path / "cut/metadata/rejected.parquet").to_pylist()
    assert [(row["file"], row["line"]) for row in rejected] == [
        ("events.csv.gz", 702),
        ("events.csv.gz", 2002),
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"events.csv.gz", "whole", "cut"}


def test_a_file_whose_rows_are_not_its_lines_is_read_by_one_task(tmp_path, jobs, text):
    text = text.replace("007,5,HR,3", '7,5,"H\nR",3')
    source = pack(tmp_path, text.encode())
    whole = made(source, tmp_path / "whole", cpus=1)
    assert made(source, tmp_path / "cut") == whole
    assert jobs.count(ReadUnit) == 2


@pytest.mark.parametrize("again", [1, 2])
@pytest.mark.parametrize(
    "dies", [(UnpackUnit, 0), (ReadUnit, 0), (ReadUnit, 3)], ids=lambda d: f"{d[0].__name__}{d[1]}"
)
def test_a_killed_ingest_goes_on_with_its_pieces(tmp_path, jobs, text, dies, again, monkeypatch):
    source = pack(tmp_path, text.replace("007,", "7,").encode())
    whole = made(source, tmp_path / "whole", cpus=1)
    jobs.done.clear()
    jobs.dies = dies
    with pytest.raises(RunError, match="lost"):
        made(source, tmp_path / "cut")
    kind, number = dies
    jobs.dies = None
    if kind is ReadUnit:
        monkeypatch.setattr("ehr_ray.sources.building.unpacking.unpack", None)
    (staging,) = tmp_path.glob(".cut.staging-*")
    assert len([*staging.glob("parts/*")]) == (number if kind is ReadUnit else 0)
    assert made(source, tmp_path / "cut", cpus=again) == whole
    assert jobs.count(ReadUnit) - number == (1 if (kind, again) == (UnpackUnit, 1) else 5)
    assert not staging.exists()


def test_one_begun_by_one_task_goes_on_so(tmp_path, jobs, text):
    source = pack(tmp_path, text.replace("007,", "7,").encode())
    whole = made(source, tmp_path / "whole", cpus=1)
    jobs.dies = (ReadUnit, jobs.count(ReadUnit))
    with pytest.raises(RunError, match="lost"):
        made(source, tmp_path / "cut", cpus=1)
    jobs.dies = None
    assert made(source, tmp_path / "cut") == whole
    assert jobs.count(ReadUnit) == 2


@pytest.mark.parametrize("damage", ["short", "plain"])
@pytest.mark.parametrize("cpus", [1, 2])
def test_a_damaged_file_is_told_as_ever(tmp_path, text, damage, cpus):
    source = pack(tmp_path, text.encode())
    packed = source.read_bytes()
    source.write_bytes(packed[: len(packed) // 2] if damage == "short" else text.encode())
    says = {
        "short": r"events\.csv\.gz: unreadable: Truncated compressed stream",
        "plain": r"events\.csv\.gz: not a readable CSV \(Not a gzipped file",
    }[damage]
    with pytest.raises(InputError, match=says):
        ingest("table", source, tmp_path / "out", options=COLUMNS, cpus=cpus)
    assert {path.name for path in tmp_path.iterdir()} == {"events.csv.gz"}


def test_ids_in_doubtful_spellings_are_told_over_pieces(tmp_path, text):
    with pytest.raises(InputError, match="1 subject ids are written in ways that may be two"):
        made(pack(tmp_path, text.encode()), tmp_path / "out")


def test_large_tables_of_a_hospital_are_read_in_pieces(tmp_path, jobs):
    rows = [
        f"subject_id={1 + i % 2},charttime=2151-01-0{1 + i % 5} 0{i % 7}:00:00,"
        f"itemid={220045 + i % 3},valuenum={i},valueuom=bpm"
        for i in range(1000)
    ]
    rows[700] = rows[700].replace("charttime=2151", "charttime=never")
    tables = {**mimic_iv.SMALL, "icu/chartevents": rows}
    mimic_iv.write(tmp_path / "raw", tables, gz=True)
    found = {}
    for cpus in (1, 2):
        output = tmp_path / f"with{cpus}"
        ingest("mimic-iv", tmp_path / "raw", output, cpus=cpus, max_rejected=0.5)
        found[cpus] = contents(output), jobs.count(ReadUnit)
        jobs.done.clear()
    (whole, before), (cut, after) = found.values()
    assert cut == whole
    assert after > before + 3
    rejected = pq.read_table(tmp_path / "with2/metadata/rejected.parquet").to_pylist()
    assert ("icu/chartevents.csv.gz", 702) in [(row["file"], row["line"]) for row in rejected]
