import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError
from ehr_ray.sources.building import ranges
from ehr_ray.sources.building.ranges import (
    check_folders,
    check_range,
    check_subjects,
    merged,
    plan_ranges,
    tasks_of,
)
from ehr_ray.sources.building.staging import Plan, scatter
from ehr_ray.sources.parsing.labels import label_rows
from ehr_ray.sources.source import Chunk, Source, Unit
from ehr_ray.sources.splits import SplitPolicy


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Return what the jobs of several ranges find in the parts of units, and these parts."""
    monkeypatch.setattr(ranges, "RANGE_ROWS", 1)

    def run(*units):
        plan = Plan("made", None, SplitPolicy(), tmp_path)
        read = lambda unit, options: iter(units[unit.start])  # noqa: E731, ARG005
        source = Source(name="made", description="", options=object, units=None, read=read)
        monkeypatch.setattr("ehr_ray.sources.building.staging.get_source", lambda _: source)
        for i in range(len(units)):
            scatter(plan, i, Unit(start=i))
        jobs = plan_ranges(plan, len(units))
        assert len(jobs) > 1
        checked = [check_range(plan, len(units), buckets) for buckets in jobs]
        return checked, [plan.part(i) for i in range(len(units))]

    return run


def test_one_subject_in_two_files_is_an_error(found):
    one, other = (pa.table({"subject_id": [5, 6], "file": [f"{n}/5", "6"]}) for n in "ab")
    checked, _ = found([Chunk(subjects=one)], [Chunk(subjects=other)])
    with pytest.raises(InputError, match="one subject is in a/5 and in b/5: remove one of them"):
        check_subjects(checked)


def test_two_names_of_one_id_are_an_error(found):
    one, other = (pa.table({"subject_id": [5, 5], "name": [n, "5.0"]}) for n in ("ann", "bob"))
    checked, _ = found([Chunk(names=one)], [Chunk(names=other)])
    with pytest.raises(InputError, match="1 times two names of subjects hash to one id"):
        check_subjects(checked)


def test_spellings_of_all_parts_are_counted(found):
    names = [("7", "8"), ("7.0", " 8"), ("7", "8.0")]
    chunks = ([Chunk(names=pa.table({"subject_id": [7, 8], "name": n}))] for n in names)
    checked, _ = found(*chunks)
    check_subjects(checked)
    assert sum(each.harmless for each in checked) == 2


def test_a_subject_in_the_folders_of_two_splits_is_named():
    checked = [
        ranges.Checked(folders=1, folder=(9, "train", "tuning")),
        ranges.Checked(folders=2, folder=(3, "tuning", "held_out")),
    ]
    with pytest.raises(InputError, match=r"3 subjects .* in held_out and in tuning: give"):
        check_folders(checked)


def test_two_types_of_value_in_one_task_are_refused(found):
    ids = np.array([1, 2])
    boolean, number = label_rows(ids, [True, None]), label_rows(ids, [1, 2], column="float_value")
    _, parts = found([Chunk(labels={"t": boolean, "u": number})], [Chunk(labels={"t": boolean})])
    assert tasks_of(parts) == {"t": "boolean_value", "u": "float_value"}
    _, mixed = found(*[[]] * 2, [Chunk(labels={"t": number})])
    with pytest.raises(InputError, match="labels of task t have values of several types"):
        tasks_of(mixed)


def test_files_are_merged_by_subject_a_few_rows_at_a_time(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    ids = np.sort(random.integers(0, 200, 3000))
    table = pa.table({"subject_id": ids, "row": np.arange(3000)})
    for n in range(5):
        pq.write_table(table.filter(pa.array(ids % 5 == n)), tmp_path / f"{n}.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    monkeypatch.setattr(ranges, "BATCH_ROWS", 7)
    pieces = list(merged(sorted(tmp_path.glob("*.parquet"))))
    assert pa.concat_tables(pieces).equals(table)
    assert max(map(len, pieces)) <= 7 * 5


def test_a_cohort_of_many_ranges_is_that_of_one(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(3):
        ids = random.integers(1, 80, 400)
        names = [f"{i}.0" if i % 9 == n else f"P-{i}" if i % 2 else str(i) for i in ids]
        rows = [f"{name},{random.integers(99)},HR,{random.integers(50, 90)}" for name in names]
        (folder / f"{n}.csv").write_text("\n".join(["subject_id,time,code,numeric_value", *rows]))
    answers = [f"P-{i},{(0, 1, '')[i % 3]},{i / 7}" for i in [*range(1, 90, 2), *range(1, 20, 2)]]
    answers += ["1000,1,0.5", "P-1,1,0.14285714285714285"]
    (tmp_path / "l.csv").write_text("\n".join(["subject_id,died,days", *answers]))
    options = {
        "time_unit": "hours",
        "labels": tmp_path / "l.csv",
        "label_columns": "died",
        "label_numbers": "days",
    }

    def made(name):
        summary = ingest("table", folder, tmp_path / name, options=options, cpus=1)
        paths = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        return summary, {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in paths}

    summary, one = made("one")
    monkeypatch.setattr(ranges, "RANGE_ROWS", 50)
    monkeypatch.setattr(ranges, "BATCH_ROWS", 3)
    again, many = made("many")
    assert many == one
    assert again.labels == summary.labels
    assert {"metadata/subject_ids.parquet", "labels/died.parquet"} <= set(one)
    assert summary.labels_without_subject > 0
    assert min(summary.labels["died"].unknown, summary.labels["died"].repeated) > 0


@pytest.mark.parametrize("rows", [1, 10**9])
def test_whom_a_division_leaves_out_is_counted_over_all_ranges(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(ranges, "RANGE_ROWS", rows)
    lines = [f"{i},{i % 50},HR,70" for i in range(40)]
    lines += [f"{i},,SITE//{i % 7}," for i in range(30)]
    source = tmp_path / "in.csv"
    source.write_text("\n".join(["subject_id,time,code,numeric_value", *lines]))
    table = tmp_path / "splits.csv"
    said = [f"{i},{'train' if i % 3 else 'tuning'}" for i in range(45)]
    table.write_text("\n".join(["subject_id,split", *said]))

    def notes(name, **how):
        options = {"time_unit": "hours"}
        return ingest("table", source, tmp_path / name, options=options, cpus=1, **how).notes

    assert notes("a", splits=str(table)) == (
        f"--splits {table}: 5 of its subjects are not in the input",
    )
    (first, *_) = notes("b", split_by="SITE")
    assert first == "--split-by SITE: 10 subjects have no value of it: divided by hash"


def test_whom_a_table_of_splits_leaves_out_is_refused_or_dropped_with_labels_and_names(tmp_path):
    rows = [f"p{i},{hour},HR,70" for i in range(40) for hour in (1, 2)]
    (tmp_path / "in.csv").write_text("\n".join(["subject_id,time,code,numeric_value", *rows]))
    told = [f"p{i},{i % 2}" for i in range(40)]
    (tmp_path / "labels.csv").write_text("\n".join(["subject_id,died", *told]))
    table = tmp_path / "splits.csv"
    said = [f"p{i},{'train' if i % 3 else 'tuning'}" for i in range(37)]
    table.write_text("\n".join(["subject_id,split", *said]))
    options = {"time_unit": "hours", "labels": str(tmp_path / "labels.csv")}
    how = {"options": options, "cpus": 1, "splits": str(table)}
    source = tmp_path / "in.csv"
    with pytest.raises(InputError, match=r"3 subjects of the input .* by --unlisted drop"):
        ingest("table", source, tmp_path / "refused", **how)
    made = ingest("table", source, tmp_path / "kept", unlisted="drop", **how)
    assert (sum(made.subjects.values()), made.events, made.left_out) == (
        37,
        37 * 3,
        3,
    )  # an admission each besides
    assert made.labels["died"].labels == 37
    assert made.labels_without_subject == 0
    assert made.notes == (
        f"--splits {table}: 3 subjects of the input have no split there and are left out "
        "(--unlisted drop)",
    )
    assert len(pq.read_table(tmp_path / "kept" / "metadata" / "subject_ids.parquet")) == 37
    again = ingest("table", source, tmp_path / "kept", unlisted="drop", **how)
    assert (again.reused, again.left_out) == (True, 3)
    table.write_text("subject_id,split\nP1,train\n")
    with pytest.raises(InputError, match="of 40 subjects of the input none is in it; are ids"):
        ingest("table", source, tmp_path / "none", unlisted="drop", **how)
    for bad, more in (("keep", how), ("drop", {**how, "splits": None})):
        with pytest.raises(InputError, match=f"--unlisted {bad}: "):
            ingest("table", source, tmp_path / "bad", unlisted=bad, **more)
