import shutil
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr_ray.errors import InputError, MissingError
from ehr_ray.events import manifest
from ehr_ray.events.manifest import (
    FOLDER,
    MANIFEST,
    Manifest,
    counts_of,
    describe_shard,
    footer_hash,
    is_contradicted,
    read_manifest,
    write_manifest,
)
from ehr_ray.events.patients import splits_of
from ehr_ray.storage import sync

MINUTE = 60_000_000


def write(path, rows, **options):
    """Rows are (subject, minute or None, code), whole subjects together."""
    path.parent.mkdir(parents=True, exist_ok=True)
    subject, minute, code = zip(*rows, strict=True) if rows else ((), (), ())
    time = [None if m is None else m * MINUTE for m in minute]
    table = {
        "subject_id": pa.array(subject, pa.int64()),
        "time": pa.array(time, pa.int64()).cast(pa.timestamp("us")),
        "code": pa.array(code, pa.string()),
    }
    pq.write_table(pa.table(table), path, **options)
    return path


def described(cohort):
    """Give a cohort a manifest as ingest does."""
    rows = [
        describe_shard(path, path.relative_to(cohort).as_posix(), split)
        for split, paths in splits_of(cohort).items()
        for path in paths
    ]
    write_manifest(rows, cohort / FOLDER)
    return cohort


@pytest.fixture
def made(tmp_path):
    """A cohort of two shards of train and one of tuning."""
    write(tmp_path / "c/data/train/0.parquet", [(1, None, "SEX//F"), (1, 5, "HR"), (2, 3, "HR")])
    write(tmp_path / "c/data/train/1.parquet", [(3, None, "SEX//F"), (3, None, "HR")])
    write(tmp_path / "c/data/tuning/0.parquet", [(4, 9, "BP")])
    return described(tmp_path / "c")


def found(cohort):
    return read_manifest(cohort, splits_of(cohort))


def test_a_row_a_shard_tells_what_is_in_it(made):
    told = found(made)
    assert pq.read_schema(told.files[0]).equals(MANIFEST)
    assert told.column("shard", "train") == ["data/train/0.parquet", "data/train/1.parquet"]
    assert told.column("subjects") == [2, 1, 1]
    assert (told.total("subjects", "train"), told.total("events")) == (3, 6)
    assert told.column("min_time") == [datetime(1970, 1, 1, 0, 3), None, datetime(1970, 1, 1, 0, 9)]
    assert told.column("max_time")[0] == datetime(1970, 1, 1, 0, 5)
    assert told.column("bytes") == [(made / name).stat().st_size for name in told.column("shard")]
    columns = ["count", "num_subjects", "num_timed", "num_static"]
    assert told.by_code(columns, "train") == {"SEX//F": [2, 2, 0, 2], "HR": [3, 3, 2, 1]}
    assert told.by_code(["count"]) == {"SEX//F": [2], "HR": [3], "BP": [1]}


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from([None, 0, 7]), st.sampled_from("ABC")),
        max_size=30,
    ),
    size=st.integers(1, 40),
)
def test_subjects_are_counted_by_kind_wherever_a_chunk_ends(
    tmp_path_factory, in_chunks, rows, size
):
    rows = sorted(rows, key=lambda row: row[0])
    path = write(tmp_path_factory.mktemp("shard") / "0.parquet", rows)
    with in_chunks(size):
        row = describe_shard(path, "0.parquet", "train")
    assert row["subjects"].to_pylist() == [len({subject for subject, *_ in rows})]
    totals = {}
    for each in counts_of(row).to_pylist():
        one = totals.setdefault(each["code"], [0, 0, 0, 0])
        for place, name in enumerate(("count", "num_subjects", "num_timed", "num_static")):
            one[place] += each[name]
    assert totals == {
        code: [
            sum(row[2] == code for row in rows),
            *(
                len({who for who, minute, other in rows if other == code and kind(minute)})
                for kind in (lambda _: True, lambda m: m is not None, lambda m: m is None)
            ),
        ]
        for code in {row[2] for row in rows}
    }


def test_it_is_in_files_of_some_shards_and_row_groups_of_some_codes(made, monkeypatch):
    def told():
        now = [(found(made), split) for split in (None, "train", "tuning", "held_out")]
        return [
            (all_.column("footer", split), [c.to_pylist() for c in all_.counts(split)])
            for all_, split in now
        ]

    one = told()
    monkeypatch.setattr(manifest, "SHARDS_PER_FILE", 2)
    monkeypatch.setattr(manifest, "ROW_GROUP_CODES", 1)
    files = found(described(made)).files
    assert [path.name for path in files] == ["000000.parquet", "000001.parquet"]
    assert [pq.read_metadata(path).num_row_groups for path in files] == [2, 1]
    assert told() == one


def test_it_goes_with_its_cohort(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    assert found(tmp_path / "copy").column("subjects") == [2, 1, 1]


@pytest.mark.parametrize("change", ["replaced", "of the same size", "added", "removed", "moved"])
def test_it_is_not_believed_of_other_shards(made, change):
    shard = made / "data/train/1.parquet"
    if change == "replaced":
        write(shard, [(3, 1, "HR")])
    elif change == "of the same size":
        size = shard.stat().st_size
        write(shard, [(5, None, "SEX//F"), (5, None, "HR")])
        assert shard.stat().st_size == size
    elif change == "added":
        write(made / "data/held_out/0.parquet", [(7, 1, "HR")])
    elif change == "removed":
        shard.unlink()
    else:
        shard.rename(made / "data/tuning/1.parquet")
    assert found(made) is None
    assert is_contradicted(made, splits_of(made))
    assert not is_contradicted(made, {})


def test_one_split_is_contradicted_alone(made):
    write(made / "data/tuning/0.parquet", [(4, 9, "HR"), (4, 10, "HR")])
    shards = splits_of(made)
    assert not is_contradicted(made, {"train": shards["train"]})
    assert is_contradicted(made, {"tuning": shards["tuning"]})


def test_a_folder_of_another_maker_is_left_alone(made):
    pq.write_table(pa.table({"shard": ["a"]}), made / FOLDER / "000000.parquet")
    assert found(made) is None
    assert not is_contradicted(made, splits_of(made))
    shutil.rmtree(made / FOLDER)
    assert found(made) is None
    assert not is_contradicted(made, splits_of(made))


def test_a_damaged_file_is_named(made):
    path = made / FOLDER / "000000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"000000\.parquet: unreadable.*remove it"):
        found(made)


def test_the_same_rows_are_the_same_bytes(made):
    path = made / FOLDER / "000000.parquet"
    before = path.read_bytes()
    assert described(made)
    assert path.read_bytes() == before


def test_a_file_that_is_no_parquet_has_an_end_too(tmp_path):
    (tmp_path / "short").write_bytes(b"ab")
    (tmp_path / "long").write_bytes(b"\xff" * 100)
    assert footer_hash(tmp_path / "short") != footer_hash(tmp_path / "long")


def test_a_shard_that_is_gone_from_its_store_is_missing_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "copies"))
    folder = tmp_path / "expired-2020"
    folder.mkdir()
    (folder / "0.parquet").write_bytes(b"PAR1")
    listed = sync.fetch(f"file://{tmp_path}", listed=("expired-2020",)) / folder.name / "0.parquet"
    (folder / "0.parquet").unlink()
    with pytest.raises(MissingError, match=r"0\.parquet: gone; restore it"):
        footer_hash(listed)


def test_ingest_leaves_it(synthetic_cohort):
    told = found(synthetic_cohort)
    assert isinstance(told, Manifest)
    assert told.total("subjects") == 60
    assert told.column("shard")[0] == "data/train/0.parquet"


@pytest.mark.parametrize("kind", [pa.timestamp("ns"), pa.timestamp("us", tz="UTC"), pa.date32()])
def test_shards_of_other_types_are_counted(tmp_path, kind):
    day = 86_400_000_000
    table = {
        "subject_id": pa.array([1, 1, 2], pa.int32()),
        "time": pa.array([None, day, 2 * day], pa.timestamp("us")).cast(kind),
        "code": pa.array(["A", "A", "B"]).dictionary_encode(),
    }
    pq.write_table(pa.table(table), tmp_path / "0.parquet")
    row = describe_shard(tmp_path / "0.parquet", "0.parquet", "train")
    assert row["subjects"].to_pylist() == [2]
    assert row["min_time"].to_pylist() == [datetime(1970, 1, 2)]
    assert row["max_time"].to_pylist() == [datetime(1970, 1, 3)]
    told = [(c["code"], c["num_timed"], c["num_static"]) for c in counts_of(row).to_pylist()]
    assert told == [("A", 1, 1), ("B", 1, 0)]
