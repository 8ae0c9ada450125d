import json
import os
import subprocess
import sys
from pathlib import Path

import meds
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError, RunError
from ehr_ray.events.schema import EVENTS, SPLITS


def tree(path):
    return {
        str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()
    }


def hidden(path):
    return [p.name for p in path.iterdir() if p.name.startswith(".")]


def test_the_cohort_satisfies_the_meds_schemas(cohort):
    path = cohort("synthetic", patients=40)
    shards = sorted((path / "data").rglob("*.parquet"))
    assert len(shards) >= 8
    for shard in shards:
        table = pq.ParquetFile(shard).read()
        meds.DataSchema.validate(table)
        assert table.schema.equals(EVENTS)
    meds.LabelSchema.validate(pq.read_table(path / "labels/outcome.parquet"))
    meds.SubjectSplitSchema.validate(pq.read_table(path / "metadata/subject_splits.parquet"))
    meds.CodeMetadataSchema.validate(pq.read_table(path / "metadata/codes.parquet"))
    meds.DatasetMetadataSchema.validate(json.loads((path / "metadata/dataset.json").read_text()))


def test_every_subject_is_whole_in_one_file_and_sorted(cohort):
    path = cohort("synthetic", patients=200)
    owner = {}
    for shard in sorted((path / "data").rglob("*.parquet")):
        table = pq.ParquetFile(shard).read()
        ids = table["subject_id"].to_numpy()
        times = table["time"].to_numpy().view(np.int64)
        assert len(ids) > 0
        np.testing.assert_array_equal(np.lexsort((times, ids)), np.arange(len(ids)))
        for subject in np.unique(ids):
            assert owner.setdefault(subject, shard) == shard
    splits = pq.read_table(path / "metadata/subject_splits.parquet").to_pydict()
    said = dict(zip(splits["subject_id"], splits["split"], strict=True))
    assert said == {subject: shard.parent.name for subject, shard in owner.items()}
    assert list(said) == sorted(said)


def test_a_subject_keeps_its_split_and_events_when_the_cohort_grows(cohort, events_of):
    small, large = (cohort("synthetic", name=str(n), patients=n) for n in (50, 300))
    before, after = (
        dict(
            zip(
                *pq.read_table(p / "metadata/subject_splits.parquet").to_pydict().values(),
                strict=True,
            )
        )
        for p in (small, large)
    )
    assert {s: after[s] for s in before} == before
    kept = events_of(large).sort_by("subject_id").filter(pa.compute.field("subject_id") <= 50)
    assert kept.num_rows == events_of(small).num_rows


def test_statistics_come_from_train_only(cohort, events_of):
    path = cohort("synthetic", patients=60)
    codes = pq.read_table(path / "metadata/codes.parquet").to_pandas().set_index("code")
    hr = events_of(path, "train").to_pandas().query("code == 'HR'").numeric_value.astype(float)
    assert codes.loc["HR", "count"] == len(hr)
    assert codes.loc["HR", "mean"] == pytest.approx(hr.mean())
    assert codes.loc["HR", "description"] == "Heart rate (bpm)"
    assert codes.loc["ADMISSION", "description"] == "Start of the stay"


def test_all_held_out_has_no_train_statistics_but_every_code(cohort):
    path = cohort("synthetic", patients=5, splits="all:held_out")
    assert [p.name for p in (path / "data").iterdir()] == ["held_out"]
    codes = pq.read_table(path / "metadata/codes.parquet")
    assert "HR" in codes["code"].to_pylist()
    assert set(codes["count"].to_pylist()) == {0}


def test_labels_of_other_subjects_alone_are_refused(tmp_path, write_stays):
    write_stays(tmp_path / "raw", {i: ["00:01,HR,80"] for i in range(1, 4)})
    head = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"
    (tmp_path / "raw/Outcomes-a.txt").write_text(head + "98,6,1,5,-1,1\n99,6,1,5,-1,0\n")
    with pytest.raises(InputError, match=r"none of the 4 labels is of a subject with events"):
        ingest("physionet2012", tmp_path / "raw", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_the_summary_counts_what_is_on_disk(tmp_path, write_stays):
    write_stays(tmp_path / "raw", {i: ["00:01,HR,80", "00:99,HR,70"] for i in range(1, 11)})
    (tmp_path / "raw/1.txt").write_text((tmp_path / "raw/1.txt").read_text() + "00:03,HR,999\n")
    head = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"
    (tmp_path / "raw/Outcomes-a.txt").write_text(
        head + "1,6,1,5,-1,1\n2,6,1,5,-1,0\n99,6,1,5,-1,0\n"
    )
    summary = ingest("physionet2012", tmp_path / "raw", tmp_path / "c", max_rejected=1, options={})
    assert sum(summary.subjects.values()) == 10
    assert tuple(summary.subjects) == SPLITS
    assert summary.events == 20
    assert (summary.rejected_rows, summary.rejected_files) == (10, 0)
    assert summary.changes == {"out of range": 1}
    assert (summary.labels["mortality"].labels, summary.labels["mortality"].mean) == (2, 0.5)
    assert summary.labels_without_subject == 2
    again = ingest("physionet2012", tmp_path / "raw", tmp_path / "c", max_rejected=1)
    assert again.reused
    assert (again.subjects, again.labels) == (summary.subjects, summary.labels)


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


def test_two_ingests_into_one_place_exclude_each_other(tmp_path):
    def enter(_):
        with pytest.raises(InputError, match="another ingest is writing it"):
            ingest("synthetic", None, tmp_path / "c", options={"patients": 3})
        entered.append(True)

    entered = []
    ingest("synthetic", None, tmp_path / "c", options={"patients": 2}, progress=enter)
    assert entered


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"source": "mimic3"},
            "--source mimic3: not available; choose from physionet2012, mimic-iv",
        ),
        ({"source": "hospital"}, "--source hospital: not available"),
        ({"source": "mimic-iv"}, "--source mimic-iv reads files: say where by --input PATH"),
        ({"source": "meds"}, "--source meds reads files: say where by --input PATH"),
        ({"source": "meds", "input": Path("no/where")}, "--input no/where: no such file or folder"),
        ({"source": "synthetic", "splits": "1,2"}, "--splits 1,2"),
        ({"source": "synthetic", "max_rejected": 3}, "--max-rejected 3"),
    ],
)
def test_bad_arguments_are_one_line_and_leave_nothing(tmp_path, arguments, message):
    with pytest.raises(InputError) as error:
        ingest(**{"input": None, "output": tmp_path / "out/c", "options": {}, **arguments})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


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


PEAK = """
import pathlib, resource, sys
from ehr_ray.commands.ingest import ingest
options = {"patients": int(sys.argv[1])}
ingest("synthetic", None, pathlib.Path(sys.argv[2]), options=options, cpus=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_stays_flat_when_the_cohort_grows_tenfold(tmp_path):
    """That `ingest` holds a part of the patients at a time, whatever their number."""

    def peak(patients):
        command = [sys.executable, "-c", PEAK, str(patients), str(tmp_path / str(patients))]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
        return float(
            subprocess.run(command, env=environment, check=True, capture_output=True).stdout
        )

    assert peak(40_000) < 1.3 * peak(4_000)


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
