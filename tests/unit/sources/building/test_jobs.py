"""Jobs as Ray has them: sent to a process with another working folder, and run twice by a retry."""

import pickle
from pathlib import Path

import pytest

from ehr_ray.commands import ingest as module
from ehr_ray.commands.ingest import ingest
from ehr_ray.sources.building.jobs import (
    CheckRange,
    DividePart,
    FindQuantiles,
    JoinGroup,
    ReadUnit,
    SampleShard,
    SettleRange,
    WriteShard,
)


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The folder a user stands in, with a table of events and one of splits."""
    folder = tmp_path / "d'été à l'hôpital"
    folder.mkdir()
    monkeypatch.chdir(folder)
    rows = [
        f"{p},2020-01-0{1 + h % 3} 0{h % 9}:00:00,HR,{60 + h}" for p in range(40) for h in range(9)
    ]
    rows += [f"{p},,WARD//{p % 4}," for p in range(40)]
    Path("notes.csv").write_text("\n".join(["subject_id,time,code,numeric_value", *rows]) + "\n")
    splits = [f"{p},{('train', 'train', 'tuning', 'held_out')[p % 4]}" for p in range(40)]
    Path("splits.csv").write_text("\n".join(["subject_id,split", *splits]) + "\n")
    return folder


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder): p.read_bytes() for p in files if p.name != "ingest.json"}


@pytest.mark.parametrize("how", [{}, {"splits": "splits.csv"}, {"split_by": "WARD"}])
def test_jobs_that_travel_and_run_twice_leave_what_one_process_leaves(
    user, tmp_path, monkeypatch, how
):
    given = ("table", Path("notes.csv"))
    ingest(*given, Path("cohorts/one"), cpus=1, **how)
    elsewhere = tmp_path / "node"
    elsewhere.mkdir()
    ran = set()

    def sent(function, jobs, **_):
        results = []
        with monkeypatch.context() as patch:
            patch.chdir(elsewhere)
            for job in jobs:
                for _ in range(2):
                    result = pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(job)))
                results.append(result)
        ran.add(type(function))
        return results

    monkeypatch.setattr(module, "run_jobs", sent)
    ingest(*given, Path("cohorts/other"), cpus=1, **how)
    whole = {ReadUnit, CheckRange, WriteShard, SettleRange, JoinGroup, SampleShard, FindQuantiles}
    assert ran == whole | ({DividePart} if "split_by" in how else set())
    assert content(user / "cohorts" / "other") == content(user / "cohorts" / "one")
    assert not any(elsewhere.iterdir())
