import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr_ray.errors import DamagedRowsError, InputError
from ehr_ray.events import blocks, brought
from ehr_ray.events.block_files import scanned, write_block
from ehr_ray.events.blocks import BlockStore


def make_row(rng, size, number):
    return {
        "subject_id": np.int64(number),
        "flag": np.bool_(number % 2),
        "code": rng.integers(0, 9, size).astype(np.int32),
        "value": rng.normal(size=size).astype(np.float32),
        "carried": rng.random(size) < 0.5,
        "grid": rng.normal(size=(size // 2, 3, 2)),
        "seen": rng.random((size // 2, 2)) < 0.5,
    }


def assert_same_row(found, row):
    assert list(found) == list(row)
    for name, value in row.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == np.shape(value), name
        np.testing.assert_array_equal(found[name], value)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=4), st.integers(1, 4))
def test_rows_survive_files_and_chunks(tmp_path_factory, files, chunk):
    folder, rng = tmp_path_factory.mktemp("blocks"), np.random.default_rng(0)
    rows, paths = [], []
    for i, sizes in enumerate(files):
        mine = [make_row(rng, size, len(rows) + j) for j, size in enumerate(sizes)]
        paths.append(folder / f"{i}.arrow")
        assert write_block(paths[-1], iter(mine), chunk=chunk) == len(mine)
        rows += mine
    store = BlockStore(paths)
    assert len(store) == len(rows) == store.block_sizes.sum()
    assert store.block_sizes.max(initial=0) <= chunk
    for index in rng.permutation(len(rows)):
        assert_same_row(store.row(int(index)), rows[index])
    expected = [sum(np.size(v) for v in row.values() if np.ndim(v)) for row in rows]
    assert store.lengths.tolist() == expected
    for name in ("code", "grid") if rows else ():
        assert store.sizes(name).tolist() == [np.size(row[name]) for row in rows]
    for found, row in zip(store.rows(range(len(rows))), rows, strict=True):
        assert_same_row(found, row)


def test_a_row_shares_the_memory_of_the_file_and_cannot_be_written(tmp_path):
    write_block(tmp_path / "0.arrow", [{"value": np.arange(3.0)}])
    row = BlockStore([tmp_path / "0.arrow"]).row(0)
    with pytest.raises(ValueError, match="read-only"):
        row["value"][0] = 1.0


def test_rows_of_scalars_have_length_zero(tmp_path):
    write_block(tmp_path / "0.arrow", [{"x": np.float32(1.5)}, {"x": np.float32(2.5)}])
    store = BlockStore([tmp_path / "0.arrow"])
    assert store.lengths.tolist() == [0, 0]
    assert float(store.row(1)["x"]) == 2.5


def test_a_block_cut_short_is_named_with_the_remedy(tmp_path):
    path = tmp_path / "0.arrow"
    write_block(path, [{"x": np.arange(50.0), "n": np.array(3)}] * 9, chunk=4)
    content = path.read_bytes()
    for size in (0, 5, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"0\.arrow: unreadable.*; remove it, and it is made"):
            BlockStore([path])
    path.unlink()
    with pytest.raises(InputError, match=r"0\.arrow: no such file; remove it"):
        BlockStore([path])


def test_a_flipped_bit_is_seen_when_its_rows_are_asked_for(tmp_path):
    path = tmp_path / "0.arrow"
    marks = np.arange(1000, 1050, dtype=np.float64)
    rows = [
        {"x": marks + 100 * i, "flag": np.array([True, False]), "n": np.array(i)} for i in range(8)
    ]
    write_block(path, rows, chunk=4)
    assert len(BlockStore([path]).rows(range(8))) == 8
    content = bytearray(path.read_bytes())
    content[content.index((marks + 500).tobytes()) + 7] ^= 1
    path.write_bytes(content)
    store = BlockStore([path])
    assert store.row(3)["n"] == 3
    for _ in range(2):
        with pytest.raises(InputError, match="its rows are not those that were written; remove"):
            store.row(7)


@pytest.fixture
def indexed(tmp_path):
    """Three files of five blocks together, and the index of them."""
    rng, paths = np.random.default_rng(0), []
    for number, count in enumerate((5, 0, 3)):
        paths.append(tmp_path / f"{number}.arrow")
        write_block(paths[-1], [make_row(rng, size, size) for size in range(count)], chunk=2)
    scanned(paths).write(tmp_path / "train.index")
    return paths, tmp_path / "train.index"


def test_with_an_index_no_block_is_looked_at_before_a_row_of_it_is_asked_for(indexed, monkeypatch):
    (paths, index), opened = indexed, []
    plain, open_file = BlockStore(paths), pa.ipc.open_file
    rows = plain.rows(range(8))
    monkeypatch.setattr(pa.ipc, "open_file", lambda file: opened.append(file) or open_file(file))
    store = BlockStore(paths, index)
    for name in ("lengths", "block_sizes", "shard_blocks"):
        np.testing.assert_array_equal(getattr(store, name), getattr(plain, name))
    assert store.sizes("code").tolist() == plain.sizes("code").tolist()
    assert store.column("subject_id").tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert len(opened) == 1  # the index
    assert_same_row(store.row(6), rows[6])
    assert_same_row(store.row(5), rows[5])
    assert len(opened) == 2  # both rows are of one block
    for found, row in zip(store.rows(range(8)), rows, strict=True):
        assert_same_row(found, row)
    assert len(opened) == 1 + len(store.block_sizes)


def test_few_blocks_are_kept_open_however_many_there_are(indexed, monkeypatch):
    monkeypatch.setattr(blocks, "OPEN_BLOCKS", 2)
    store = BlockStore(*indexed)
    order = np.random.default_rng(1).integers(0, 8, 60)
    found = [int(row["subject_id"]) for row in store.rows(order)]
    assert found == store.column("subject_id")[order].tolist()
    assert len(store._blocks) == 2


def test_an_index_of_other_files_is_not_believed(indexed):
    paths, index = indexed
    write_block(paths[1], [{"subject_id": np.int64(9), "x": np.arange(3)}])
    del paths[0]
    assert BlockStore(paths, index).column("subject_id").tolist() == [9, 0, 1, 2]
    paths[1].write_bytes(paths[1].read_bytes()[:-9])
    with pytest.raises(InputError, match=r"2\.arrow: unreadable.*; remove it"):
        BlockStore(paths, index)


def test_a_damaged_head_of_a_block_is_seen_when_its_rows_are_asked_for(indexed):
    paths, index = indexed
    content = bytearray(paths[0].read_bytes())
    content[-40:-12] = b"\xff" * 28
    paths[0].write_bytes(content)
    store = BlockStore(paths, index)
    assert len(store.row(7)) == 7
    with pytest.raises(DamagedRowsError, match=r"0\.arrow: unreadable.*; remove it"):
        store.row(0)


def test_a_file_that_vanishes_is_read_on_where_it_is_mapped_and_told_by_name_else(tmp_path):
    paths = [tmp_path / f"{i}.arrow" for i in range(2)]
    for path in paths:
        write_block(path, [{"x": np.arange(5)}] * 6, chunk=3)
    store = BlockStore(paths)
    assert store.row(0)["x"].tolist() == [0, 1, 2, 3, 4]
    for path in paths:
        path.unlink()
    assert [row["x"].tolist() for row in store.rows(range(6))] == [[0, 1, 2, 3, 4]] * 6
    with pytest.raises(DamagedRowsError, match=r"1\.arrow: no such file; remove it"):
        store.row(6)


def test_a_file_that_changes_under_a_store_is_told_by_name(tmp_path):
    path = tmp_path / "0.arrow"
    write_block(path, [{"x": np.arange(5)}] * 3)
    store = BlockStore([path])
    write_block(path, [{"x": np.arange(5)}] * 400)
    with pytest.raises(DamagedRowsError, match=r"0\.arrow: has changed while it was used"):
        store.row(0)


def test_an_index_of_other_rows_in_files_of_the_same_sizes_is_seen(tmp_path):
    path, index = tmp_path / "0.arrow", tmp_path / "index"
    write_block(path, [{"x": np.arange(n), "n": np.float64(np.nan)} for n in (3, 5, 4)])
    scanned([path]).write(index)
    size = path.stat().st_size
    write_block(path, [{"x": np.arange(n), "n": np.float64(np.nan)} for n in (4, 5, 3)])
    assert path.stat().st_size == size
    assert len(BlockStore([path]).row(0)["x"]) == 4
    with pytest.raises(DamagedRowsError, match=r"0\.arrow: its rows are not .*index tells of; rem"):
        BlockStore([path], index).row(0)


def test_no_file_is_mapped_before_a_row_of_it_is_asked_for(indexed, monkeypatch):
    """A process may map some 65,000 files, and a cohort may have more."""
    (paths, index), mapped = indexed, []
    monkeypatch.setattr(blocks, "mapped", lambda *a: mapped.append(a) or brought.mapped(*a))
    store = BlockStore(paths, index)
    assert mapped == []
    store.rows([6, 7])
    assert mapped == [(paths[2], paths[2].stat().st_size)]  # once, of two blocks
    paths[1].unlink()
    with pytest.raises(InputError, match=r"1\.arrow: no such file; remove it"):
        BlockStore(paths, index)
