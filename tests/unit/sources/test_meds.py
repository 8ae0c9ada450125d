from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError

T0 = datetime(2150, 1, 1)


def write_shard(path, rows, *, valued=True, time_type=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    ids, times, codes, values = zip(*rows, strict=True)
    columns = {
        "subject_id": pa.array(ids, pa.int64()),
        "time": pa.array(times, time_type or pa.timestamp("us")),
        "code": pa.array(codes, pa.string()),
    }
    if valued:
        columns["numeric_value"] = pa.array(values, pa.float32())
    pq.write_table(pa.table(columns), path)


def split_of(path):
    table = pq.read_table(path / "metadata/subject_splits.parquet")
    return dict(zip(*table.to_pydict().values(), strict=True))


def test_splits_come_from_the_subject_table_first(tmp_path, cohort):
    write_shard(tmp_path / "in/data/train/a/b/0.parquet", [(i, T0, "A", 1.0) for i in range(4)])
    (tmp_path / "in/metadata").mkdir()
    splits = pa.table(
        {"subject_id": [0, 1, 2, 3], "split": ["held_out", "tuning", "train", "train"]}
    )
    pq.write_table(splits, tmp_path / "in/metadata/subject_splits.parquet")
    path = cohort("meds", tmp_path / "in")
    assert split_of(path) == {0: "held_out", 1: "tuning", 2: "train", 3: "train"}


def test_else_from_the_first_folder(tmp_path, cohort):
    for i, folder in enumerate(("train", "tuning", "held_out", "test")):
        write_shard(tmp_path / f"in/data/{folder}/x/0.parquet", [(i, T0, "A", 1.0)])
    path = cohort("meds", tmp_path / "in")
    assert split_of(path) == {0: "train", 1: "tuning", 2: "held_out", 3: "held_out"}


def test_else_by_hash(tmp_path, cohort):
    write_shard(tmp_path / "in/data/0.parquet", [(i, T0, "A", 1.0) for i in range(200)])
    counts = list(split_of(cohort("meds", tmp_path / "in")).values())
    assert 140 < counts.count("train") < 180


def test_asked_splits_win(tmp_path, cohort):
    write_shard(tmp_path / "in/data/train/0.parquet", [(i, T0, "A", 1.0) for i in range(5)])
    path = cohort("meds", tmp_path / "in", splits="all:held_out")
    assert set(split_of(path).values()) == {"held_out"}


def test_a_subject_in_two_split_folders_is_refused(tmp_path, cohort):
    write_shard(tmp_path / "in/data/train/0.parquet", [(5, T0, "A", 1.0)])
    write_shard(tmp_path / "in/data/tuning/0.parquet", [(5, T0, "A", 1.0)])
    with pytest.raises(InputError, match=r"1 subjects .* the first .* in train and in tuning"):
        cohort("meds", tmp_path / "in")


def test_an_unknown_split_name_says_what_to_do(tmp_path, cohort):
    write_shard(tmp_path / "in/data/0.parquet", [(5, T0, "A", 1.0)])
    (tmp_path / "in/metadata").mkdir()
    splits = pa.table({"subject_id": [5], "split": ["fold1"]})
    pq.write_table(splits, tmp_path / "in/metadata/subject_splits.parquet")
    with pytest.raises(InputError, match=r"split 'fold1': not one of .* divide anew by --splits"):
        cohort("meds", tmp_path / "in")


def test_a_missing_value_column_and_other_time_units_are_accepted(tmp_path, cohort, events_of):
    shard = tmp_path / "in/data/train/0.parquet"
    write_shard(
        shard,
        [(1, T0, "A", None), (1, None, "S", None)],
        valued=False,
        time_type=pa.timestamp("ns"),
    )
    rows = events_of(cohort("meds", tmp_path / "in")).to_pylist()
    assert [tuple(r.values()) for r in rows] == [(1, None, "S", None), (1, T0, "A", None)]


def test_labels_and_descriptions_are_kept(tmp_path, cohort):
    write_shard(tmp_path / "in/data/train/0.parquet", [(1, T0, "A", 1.0), (2, T0, "A", 1.0)])
    (tmp_path / "in/labels/los").mkdir(parents=True)
    (tmp_path / "in/metadata").mkdir()
    death = pa.table(
        {
            "subject_id": [2, 1, 7],
            "prediction_time": [T0, T0, T0],
            "boolean_value": [True, False, True],
        }
    )
    pq.write_table(death, tmp_path / "in/labels/death.parquet")
    for n, subject in enumerate((2, 1)):
        days = pa.table(
            {
                "subject_id": [subject],
                "prediction_time": [T0],
                "float_value": pa.array([2.5], pa.float32()),
            }
        )
        pq.write_table(days, tmp_path / f"in/labels/los/{n}.parquet")
    codes = pa.table({"code": ["A"], "description": ["a thing"], "parent_codes": [["X"]]})
    pq.write_table(codes, tmp_path / "in/metadata/codes.parquet")
    path = cohort("meds", tmp_path / "in")
    assert pq.read_table(path / "labels/death.parquet")["subject_id"].to_pylist() == [1, 2]
    assert pq.read_table(path / "labels/los.parquet")["float_value"].to_pylist() == [2.5, 2.5]
    assert pq.read_table(path / "metadata/codes.parquet")["description"].to_pylist() == ["a thing"]


def test_bad_rows_are_quarantined_by_row_number(tmp_path, cohort):
    rows = [(1, T0, "A", 1.0), (None, T0, "A", 1.0), (1, T0, None, 1.0), (1, T0, "A", float("inf"))]
    write_shard(tmp_path / "in/data/train/0.parquet", rows)
    path = cohort("meds", tmp_path / "in", max_rejected=1.0)
    rejected = pq.read_table(path / "metadata/rejected.parquet").to_pylist()
    assert [(r["line"], r["reason"]) for r in rejected] == [
        (2, "subject id is blank"),
        (3, "code is blank"),
        (4, "value inf is not a finite number"),
    ]


def test_a_corrupt_shard_is_named(tmp_path, cohort):
    write_shard(tmp_path / "in/data/train/0.parquet", [(1, T0, "A", 1.0)])
    (tmp_path / "in/data/train/1.parquet").write_bytes(b"PAR1 not at all")
    with pytest.raises(InputError, match=r"1 of 2 files.*data/train/1.parquet: unreadable"):
        cohort("meds", tmp_path / "in")


def test_a_folder_without_data_is_no_dataset(tmp_path, cohort):
    with pytest.raises(InputError, match=r"no data/\*\*/\*.parquet"):
        cohort("meds", tmp_path)


def test_the_real_demo_keeps_every_event_and_split(shared, cohort, events_of):
    source = shared("mimic_iv_demo_meds")
    path = cohort("meds", source)
    raw = pa.concat_tables(
        pq.ParquetFile(p).read() for p in sorted(source.glob("data/**/*.parquet"))
    )
    events = events_of(path)
    assert events.num_rows == raw.num_rows == 916_166
    before = pq.read_table(source / "metadata/subject_splits.parquet").sort_by("subject_id")
    assert split_of(path) == dict(zip(*before.to_pydict().values(), strict=True))
    for name in ("numeric_value", "time"):
        total = [
            pc.sum(t[name].cast(pa.int64() if name == "time" else pa.float64())).as_py()
            for t in (raw, events)
        ]
        assert total[0] == pytest.approx(total[1], rel=1e-9)
    ids = events["subject_id"].to_numpy()
    assert len(np.flatnonzero(np.diff(ids))) + 1 == 100
