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
from ehr_ray.errors import InputError
from ehr_ray.events.schema import EVENTS, SPLITS


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
