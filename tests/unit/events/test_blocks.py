import errno

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr_ray.errors import InputError, RunError
from ehr_ray.events.blocks import BlockStore, write_block


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


def test_no_rows_make_a_file_without_rows(tmp_path):
    assert write_block(tmp_path / "a" / "0.arrow", []) == 0
    assert len(BlockStore([tmp_path / "a" / "0.arrow"])) == 0
    assert len(BlockStore([])) == 0


def test_rows_of_scalars_have_length_zero(tmp_path):
    write_block(tmp_path / "0.arrow", [{"x": np.float32(1.5)}, {"x": np.float32(2.5)}])
    store = BlockStore([tmp_path / "0.arrow"])
    assert store.lengths.tolist() == [0, 0]
    assert float(store.row(1)["x"]) == 2.5


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "0.arrow"
    write_block(path, [{"x": np.arange(2)}])

    def rows():
        yield {"x": np.arange(5)}
        raise RuntimeError("shard is corrupt")

    with pytest.raises(RuntimeError, match="corrupt"):
        write_block(path, rows(), chunk=1)
    assert [p.name for p in tmp_path.iterdir()] == ["0.arrow"]
    assert BlockStore([path]).row(0)["x"].tolist() == [0, 1]


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


def test_a_block_that_vanishes_is_read_on_from_the_mapping(tmp_path):
    path = tmp_path / "0.arrow"
    write_block(path, [{"x": np.arange(5)}] * 3)
    store = BlockStore([path])
    path.unlink()
    assert [row["x"].tolist() for row in store.rows(range(3))] == [[0, 1, 2, 3, 4]] * 3


def test_a_full_disk_is_one_line_and_leaves_no_block(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pa, "OSFile", full)
    with pytest.raises(RunError, match=r"0\.arrow: No space left on device; free space there"):
        write_block(tmp_path / "0.arrow", [{"x": np.arange(5)}])
    assert list(tmp_path.iterdir()) == []
