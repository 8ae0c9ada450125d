import numpy as np
import pyarrow as pa
import pytest

from ehr_ray.errors import RunError
from ehr_ray.sources.building import keyed
from ehr_ray.sources.building.keyed import KeyedWriter, read_all, read_keys, rows_by_key

SCHEMA = pa.schema([pa.field("key", pa.int64()), pa.field("place", pa.string())])
KEYS = 100


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Return a table written by threes of pieces, and the same rows in memory."""
    monkeypatch.setattr(keyed, "BATCH_ROWS", 2500)

    def write(name, seed, pieces=10):
        folder = tmp_path / name
        folder.mkdir()
        rows = [
            pa.table([keys, [f"{name}-{n}-{i}" for i in range(len(keys))]], schema=SCHEMA)
            for n, keys in enumerate(np.random.default_rng(seed).integers(3, 90, (pieces, 1000)))
        ]
        with KeyedWriter(folder, "t", SCHEMA, KEYS) as writer:
            for piece in rows:
                writer.write(piece, piece["key"].to_numpy())
        return folder, pa.concat_tables([SCHEMA.empty_table(), *rows])

    return write


def test_rows_of_a_range_of_keys_keep_the_order_of_those_of_one_key(made):
    (one, first), (other, second) = made("a", 0), made("b", 1)
    every = pa.concat_tables([first, second])
    for low, high in ((0, 2), (3, 3), (40, 60), (0, KEYS - 1)):
        found = read_keys([one, other], "t", low, high, SCHEMA)
        keys = every["key"].to_numpy()
        wanted = every.filter(pa.array((keys >= low) & (keys <= high)))
        stable = [np.argsort(t["key"].to_numpy(), kind="stable") for t in (found, wanted)]
        assert found.take(pa.array(stable[0])).equals(wanted.take(pa.array(stable[1])))
    np.testing.assert_array_equal(
        rows_by_key(one, "t", KEYS), np.bincount(first["key"].to_numpy(), minlength=KEYS)
    )


def test_only_tables_with_rows_of_the_range_are_opened(made, monkeypatch):
    (one, _), (other, _) = made("a", 0, pieces=1), made("b", 1, pieces=1)
    with KeyedWriter(one, "few", SCHEMA, KEYS) as writer:
        writer.write(pa.table([[5], ["x"]], schema=SCHEMA), np.array([5]))
    with KeyedWriter(other, "few", SCHEMA, KEYS) as writer:
        writer.write(pa.table([[7], ["y"]], schema=SCHEMA), np.array([7]))
    opened = []
    real = pa.memory_map
    monkeypatch.setattr(keyed.pa, "memory_map", lambda path: opened.append(path) or real(path))
    found = read_keys([one, other], "few", 6, 9, SCHEMA)
    assert found["place"].to_pylist() == ["y"]
    assert [p for p in opened if p.endswith(".rows")] == [str(other / "few.rows")]


def test_rows_copied_piece_by_piece_are_the_same(made, monkeypatch):
    folders = [made(name, seed)[0] for seed, name in enumerate("abcde")]
    whole = read_keys(folders, "t", 10, 80, SCHEMA)
    for name, value in (("MAPPED_ROWS", 1), ("MAPPED_FILES", 2)):
        with monkeypatch.context() as patch:
            patch.setattr(keyed, name, value)
            assert read_keys(folders, "t", 10, 80, SCHEMA).equals(whole)
    assert len(whole) > 30_000


@pytest.mark.parametrize("pages", [3, 700, 1 << 20])
def test_a_store_is_asked_for_the_same_rows(made, monkeypatch, pages):
    monkeypatch.setattr(keyed, "PAGE_ROWS", pages)  # with 3 the index is longer than its first read
    monkeypatch.setattr(keyed, "MAPPED_FILES", 2)
    folders = [made(name, seed, pieces=3)[0] for seed, name in enumerate("abcde")]
    stored = [f"file://{folder}" for folder in folders]
    for low, high in ((0, 2), (3, 3), (40, 60), (0, KEYS - 1)):
        found = read_keys(stored, "t", low, high, SCHEMA)
        assert found.equals(read_keys(folders, "t", low, high, SCHEMA))
    assert [t for place in stored for t in read_all(place, "t", SCHEMA)] == [
        t for folder in folders for t in read_all(folder, "t", SCHEMA)
    ]


def test_pages_are_compressed_where_asked_for_and_hold_the_same(tmp_path):
    rows = pa.table([np.arange(9000) % KEYS, ["the same"] * 9000], schema=SCHEMA)
    for name, codec in (("plain", None), ("packed", "zstd")):
        with KeyedWriter(tmp_path, name, SCHEMA, KEYS, codec) as writer:
            writer.write(rows, rows["key"].to_numpy())
    plain, packed = (read_keys([tmp_path], n, 3, 70, SCHEMA) for n in ("plain", "packed"))
    assert plain.equals(packed)
    sizes = [(tmp_path / f"{name}.rows").stat().st_size for name in ("plain", "packed")]
    assert sizes[1] < sizes[0] / 3


def test_all_rows_come_a_batch_at_a_time(made):
    folder, rows = made("a", 0)
    batches = list(read_all(folder, "t", SCHEMA))
    assert len(batches) == 4
    assert sorted(pa.concat_tables(batches)["place"].to_pylist()) == sorted(
        rows["place"].to_pylist()
    )


@pytest.mark.parametrize("empty", [True, False])
def test_an_empty_table_and_none_have_no_rows(tmp_path, empty):
    if empty:
        with KeyedWriter(tmp_path, "t", SCHEMA, KEYS) as writer:
            writer.write(SCHEMA.empty_table(), np.empty(0, np.int64))
    assert read_keys([tmp_path], "t", 0, KEYS - 1, SCHEMA).equals(SCHEMA.empty_table())
    assert list(read_all(tmp_path, "t", SCHEMA)) == []
    assert rows_by_key(tmp_path, "t", KEYS).tolist() == [0] * KEYS


def test_a_table_that_failed_has_no_index(tmp_path):
    with pytest.raises(OSError, match="full"), KeyedWriter(tmp_path, "t", SCHEMA, KEYS):
        raise OSError("full")
    assert not (tmp_path / "t.index").exists()


def test_rows_that_are_gone_beside_their_index_are_told(made):
    folder, _ = made("a", 0, pieces=1)
    (folder / "t.rows").unlink()
    with pytest.raises(RunError, match=r"/a: another ingest into the same place has removed"):
        read_keys([folder], "t", 0, KEYS - 1, SCHEMA)
    with pytest.raises(RunError, match="has removed what this one had left there; wait"):
        [*read_all(folder, "t", SCHEMA)]
