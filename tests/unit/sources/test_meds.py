import json
import shutil
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError
from ehr_ray.events.patients import read_patients
from ehr_ray.events.vocabulary import Vocabulary

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


def test_what_is_hidden_is_not_of_the_dataset(tmp_path, cohort):
    for name in ("train/0.parquet", "train/._0.parquet", ".old/0.parquet", "train/.b/0.parquet"):
        write_shard(tmp_path / "in/data" / name, [(len(name), T0, "A", 1.0)])
    assert split_of(cohort("meds", tmp_path / "in")) == {len("train/0.parquet"): "train"}


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


def test_answers_in_two_columns_are_refused_and_an_empty_one_is_no_answer(tmp_path, cohort):
    write_shard(tmp_path / "in/data/train/0.parquet", [(1, T0, "A", 1.0)])
    (tmp_path / "in/labels").mkdir()
    table = {"subject_id": [1], "prediction_time": [T0], "boolean_value": [False]}
    table |= {"float_value": [3.5], "categorical_value": [""]}
    pq.write_table(pa.table(table), tmp_path / "in/labels/los.parquet")
    with pytest.raises(InputError, match="answers in boolean_value and in float_value; keep the"):
        cohort("meds", tmp_path / "in")
    for answer, number in ((True, 1), (True, 0), (False, 0)):  # one answer, twice or filled up
        both = {"boolean_value": pa.array([answer]), "integer_value": pa.array([number])}
        both |= {name: table[name] for name in ("subject_id", "prediction_time")}
        pq.write_table(pa.table(both), tmp_path / "in/labels/los.parquet")
        path = cohort("meds", tmp_path / "in")
        assert pq.read_table(path / "labels/los.parquet")["boolean_value"].to_pylist() == [answer]
        shutil.rmtree(path)
    table |= {"boolean_value": pa.nulls(1, pa.bool_())}
    pq.write_table(pa.table(table), tmp_path / "in/labels/los.parquet")
    path = cohort("meds", tmp_path / "in")
    assert pq.read_table(path / "labels/los.parquet")["float_value"].to_pylist() == [3.5]


def test_bad_rows_are_quarantined_by_row_number(tmp_path, cohort):
    rows = [(1, T0, "A", 1.0), (None, T0, "A", 1.0), (1, T0, None, 1.0), (1, T0, "A", float("inf"))]
    write_shard(tmp_path / "in/data/train/0.parquet", rows)
    path = cohort("meds", tmp_path / "in", max_rejected=1.0)
    rejected = pq.read_table(path / "metadata/rejected.parquet").to_pylist()
    assert [(r["line"], r["reason"]) for r in rejected] == [
        (2, "subject id is blank"),
        (3, "code is blank"),
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


def label_file(path, ids, answers, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {
        "subject_id": pa.array(ids, pa.int64()),
        "prediction_time": pa.array([T0] * len(ids), pa.timestamp("us")),
        "boolean_value": answers,
        **columns,
    }
    pq.write_table(pa.table(table), path)


def test_the_shards_of_a_task_are_one_task_named_by_its_folders(tmp_path, cohort):
    for i, split in enumerate(("train", "tuning", "held_out")):
        write_shard(tmp_path / f"in/data/{split}/0.parquet", [(i, T0, "A", 1.0)])
        file = tmp_path / f"in/labels/mortality/in_icu/first_24h/{split}/0.parquet"
        label_file(file, [i], [i == 1], float_value=pa.nulls(1, pa.float32()))
    folder = cohort("meds", tmp_path / "in") / "labels"
    assert [path.name for path in folder.iterdir()] == ["mortality-in_icu-first_24h.parquet"]
    rows = pq.read_table(folder / "mortality-in_icu-first_24h.parquet").to_pylist()
    assert [(r["subject_id"], r["boolean_value"]) for r in rows] == [
        (0, False),
        (1, True),
        (2, False),
    ]


@pytest.mark.parametrize(
    "answers",
    [
        pa.array([True, False, None]),
        pa.array(["True", "False", "None"]),
        pa.array([1.0, 0.0, float("nan")]),
        pa.array([1, 0, None]),
    ],
)
def test_answers_of_data_frames_are_read_for_what_they_say(tmp_path, cohort, answers):
    write_shard(tmp_path / "in/data/train/0.parquet", [(i, T0, "A", 1.0) for i in range(3)])
    label_file(tmp_path / "in/labels/sick.parquet", [0, 1, 2], answers)
    path = cohort("meds", tmp_path / "in")
    rows = pq.read_table(path / "labels/sick.parquet").to_pylist()
    assert [(r["subject_id"], r["boolean_value"]) for r in rows] == [(0, True), (1, False)]
    record = json.loads((path / "metadata/ingest.json").read_text())
    assert record["summary"]["labels"]["sick"]["unknown"] == 1


def test_an_answer_that_is_no_truth_value_is_refused_by_name(tmp_path, cohort):
    write_shard(tmp_path / "in/data/train/0.parquet", [(i, T0, "A", 1.0) for i in range(3)])
    label_file(tmp_path / "in/labels/sick.parquet", [0, 1, 2], [1, 2, 0])
    message = r"labels/sick\.parquet: row 2, column boolean_value: 2 is no truth value"
    with pytest.raises(InputError, match=message):
        cohort("meds", tmp_path / "in")


def test_parent_codes_live_on(tmp_path, cohort):
    rows = [(1, T0, "A", 1.0), (1, T0, "B", 1.0), (1, T0, "C", 1.0)]
    write_shard(tmp_path / "in/data/train/0.parquet", rows)
    (tmp_path / "in/metadata").mkdir()
    codes = pa.table(
        {"code": ["A", "B"], "description": [None, "b"], "parent_codes": [["X"], None]}
    )
    pq.write_table(codes, tmp_path / "in/metadata/codes.parquet")
    table = pq.read_table(cohort("meds", tmp_path / "in") / "metadata/codes.parquet")
    assert table["parent_codes"].to_pylist() == [["X"], None, None]
    assert table["description"].to_pylist() == [None, "b", None]


def split_table(folder, rows):
    (folder / "metadata").mkdir()
    table = {"subject_id": [i for i, _ in rows], "split": [split for _, split in rows]}
    pq.write_table(pa.table(table), folder / "metadata/subject_splits.parquet")


def test_subjects_that_the_table_of_splits_leaves_out_are_told(tmp_path):
    write_shard(tmp_path / "in/data/train/0.parquet", [(i, T0, "A", 1.0) for i in range(9)])
    split_table(tmp_path / "in", [(0, "train"), (1, "held_out")])
    summary = ingest("meds", tmp_path / "in", tmp_path / "out", cpus=1)
    line = "7 subjects have no split in the source: divided by hash, 0.8, 0.1, 0.1"
    assert line in str(summary)
    assert line in str(ingest("meds", tmp_path / "in", tmp_path / "out", cpus=1))


def test_a_subject_with_two_splits_or_in_the_folders_of_two_is_refused(tmp_path, cohort):
    write_shard(tmp_path / "a/data/train/0.parquet", [(5, T0, "A", 1.0)])
    split_table(tmp_path / "a", [(5, "train"), (5, "test")])
    with pytest.raises(InputError, match="1 subjects are in more than one split"):
        cohort("meds", tmp_path / "a", name="a")
    write_shard(tmp_path / "b/data/train/0.parquet", [(5, T0, "A", 1.0)])
    write_shard(tmp_path / "b/data/held_out/0.parquet", [(5, T0, "A", 1.0)])
    split_table(tmp_path / "b", [(5, "train")])
    with pytest.raises(InputError, match=r"1 subjects lie in the folders .* held_out and in train"):
        cohort("meds", tmp_path / "b", name="b")
    assert split_of(cohort("meds", tmp_path / "b", splits="all:train", name="c")) == {5: "train"}


def test_published_splits_are_kept_as_written(tmp_path):
    write_shard(tmp_path / "in/data/train/0.parquet", [(i, T0, "A", 1.0) for i in range(4)])
    table = tmp_path / "splits.csv"
    table.write_text("subject_id,split\n0,test\n1,val\n2,train\n3,train\n77,train\n")
    summary = ingest("meds", tmp_path / "in", tmp_path / "out", splits=str(table), cpus=1)
    assert split_of(tmp_path / "out") == {0: "held_out", 1: "tuning", 2: "train", 3: "train"}
    assert f"--splits {table}: test -> held_out, val -> tuning" in str(summary)
    assert f"--splits {table}: 1 of its subjects are not in the input" in str(summary)


def test_subjects_that_published_splits_leave_out_are_refused(tmp_path, cohort):
    write_shard(tmp_path / "in/data/train/0.parquet", [(i, T0, "A", 1.0) for i in range(4)])
    table = pa.table({"subject_id": [0, 1], "split": ["train", "tuning"]})
    pq.write_table(table, tmp_path / "s.parquet")
    with pytest.raises(InputError, match=r"s\.parquet: 2 subjects of the input have no split"):
        cohort("meds", tmp_path / "in", splits=str(tmp_path / "s.parquet"))


def test_the_origin_may_be_named_and_goes_with_the_cohort(tmp_path):
    hours = [T0 + timedelta(hours=h) for h in (-9, 0, 2, 5)]
    events = zip(hours, ("MEDS_BIRTH", "LAB", "STAY//ICU", "LAB"), strict=True)
    rows = [(1, time, code, 1.0) for time, code in events]
    write_shard(tmp_path / "in/data/train/0.parquet", rows)
    ingest("meds", tmp_path / "in", tmp_path / "out", origin="STAY", cpus=1)
    vocabulary = Vocabulary.from_table(pq.read_table(tmp_path / "out/metadata/codes.parquet"))
    (patient,) = read_patients(tmp_path / "out/data/train/0.parquet", vocabulary)
    assert patient.minute.tolist() == [-660.0, -120.0, 180.0]
    assert vocabulary.codes == ("LAB", "MEDS_BIRTH")


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ("VISIT", "--origin VISIT: no event of the input has such a code"),
        ("MEDS_BIRTH", "--origin MEDS_BIRTH: a birth is no time origin"),
        ("A,,B", "--origin 'A,,B': a code is blank"),
    ],
)
def test_an_origin_that_cannot_be_one_is_refused(tmp_path, origin, message):
    write_shard(tmp_path / "in/data/train/0.parquet", [(1, T0, "A", 1.0)])
    with pytest.raises(InputError, match=message):
        ingest("meds", tmp_path / "in", tmp_path / "out", origin=origin, cpus=1)


@pytest.mark.parametrize(("events", "labels"), [("UTC", None), (None, "Asia/Tokyo")])
def test_events_and_labels_are_both_with_a_zone_or_both_without(tmp_path, cohort, events, labels):
    rows = [(i, T0, "A", 1.0) for i in range(4)]
    write_shard(tmp_path / "in/data/0.parquet", rows, time_type=pa.timestamp("us", events))
    (tmp_path / "in/labels").mkdir()
    times = pa.array([T0], pa.timestamp("us", labels))
    table = pa.table({"subject_id": [1], "prediction_time": times, "boolean_value": [True]})
    pq.write_table(table, tmp_path / "in/labels/x.parquet")
    with pytest.raises(InputError, match=r"times with a zone, but none in .*give all times of ev"):
        cohort("meds", tmp_path / "in")
