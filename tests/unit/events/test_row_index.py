import numpy as np
import pyarrow as pa
import pytest

from ehr_ray.events.row_index import RowIndex, read_index


@pytest.fixture
def index():
    """Of three shards, the second empty: 3, 0 and 2 rows in blocks of at most 2."""
    parts = [
        pa.table(
            {"label": pa.array([0.0, 1.0, 1.0], pa.float32()), "#x": [3, 0, 2], "#y": [1] * 3}
        ),
        pa.table({}),
        pa.table({"label": pa.array([1.0, 0.0], pa.float32()), "#x": [7, 9], "#y": [0, 4]}),
    ]
    blocks = [np.array(sizes, np.int64) for sizes in ([2, 1], [], [2])]
    return RowIndex.of(parts, blocks, np.array([10, 20, 30], np.int64))


def assert_same(found, index):
    for name in ("lengths", "block_sizes", "counts", "shard_blocks"):
        ours, theirs = getattr(found, name), getattr(index, name)
        assert ours.dtype == theirs.dtype == np.int64
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(found.column("label"), index.column("label"))


def test_what_is_known_of_rows_adds_up_over_shards(index):
    assert len(index) == 5
    assert index.lengths.tolist() == [4, 1, 3, 7, 13]
    assert index.block_sizes.tolist() == [2, 1, 2]
    assert (index.counts.tolist(), index.shard_blocks.tolist()) == ([2, 0, 1], [2, 1])
    assert index.column("label").dtype == np.float32


def test_a_file_gives_it_back_mapped_and_read_only(index, tmp_path):
    index.write(tmp_path / "train.index")
    before = pa.total_allocated_bytes()
    found = read_index(tmp_path / "train.index", [10, 20, 30])
    assert_same(found, index)
    assert pa.total_allocated_bytes() - before < 1000  # what is read is of the mapping
    assert not found.lengths.flags.writeable
    assert not found.lengths.flags.owndata


def test_of_no_rows_it_is_empty(tmp_path):
    none = RowIndex.of([pa.table({})], [np.zeros(0, np.int64)], np.array([5], np.int64))
    none.write(tmp_path / "train.index")
    found = read_index(tmp_path / "train.index", [5])
    assert len(found) == len(found.lengths) == len(found.column("label")) == 0
    assert (found.counts.tolist(), found.shard_blocks.tolist()) == ([0], [])


def test_a_file_of_others_or_a_damaged_one_counts_as_none(index, tmp_path):
    path = tmp_path / "train.index"
    assert read_index(path, [10, 20, 30]) is None
    index.write(path)
    assert read_index(path, [10, 20, 31]) is None
    assert read_index(path, [10, 20]) is None
    content = path.read_bytes()
    for size in (0, 7, len(content) // 2, len(content) - 3):
        path.write_bytes(content[:size])
        assert read_index(path, [10, 20, 30]) is None


def test_a_flipped_bit_is_seen_by_who_reads_all_of_it(index, tmp_path):
    path = tmp_path / "train.index"
    index.write(path)
    assert_same(read_index(path, [10, 20, 30], whole=True), index)
    content = bytearray(path.read_bytes())
    content[content.index(np.array([4, 1, 3, 7, 13]).tobytes()) + 8] ^= 2
    path.write_bytes(content)
    assert read_index(path, [10, 20, 30]) is not None
    assert read_index(path, [10, 20, 30], whole=True) is None
