import errno

import numpy as np
import pyarrow as pa
import pytest

from ehr_ray.errors import RunError
from ehr_ray.events.block_files import (
    BlockFiles,
    block_rows,
    measured,
    measured_file,
    scanned,
    write_block,
)
from ehr_ray.events.blocks import BlockStore
from ehr_ray.storage.paths import local


def test_no_rows_make_a_file_without_rows(tmp_path):
    assert write_block(tmp_path / "a" / "0.arrow", []) == 0
    assert len(BlockStore([tmp_path / "a" / "0.arrow"])) == 0
    assert len(BlockStore([])) == 0


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


def test_a_full_disk_is_one_line_and_leaves_no_block(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pa, "OSFile", full)
    with pytest.raises(RunError, match=r"0\.arrow: No space left on device; free space there"):
        write_block(tmp_path / "0.arrow", [{"x": np.arange(5)}])
    assert list(tmp_path.iterdir()) == []


def test_rows_are_known_by_their_scalars_and_the_sizes_of_their_arrays(tmp_path):
    path = tmp_path / "0.arrow"
    rows = [{"x": np.arange(n), "y": np.zeros((n, 2)), "n": np.int64(n)} for n in (2, 0, 3)]
    write_block(path, rows, chunk=2)
    for told in (measured(rows), measured_file(path)):
        table = pa.ipc.open_stream(told).read_all()
        assert table.to_pydict() == {"#x": [2, 0, 3], "#y": [4, 0, 6], "n": [2, 0, 3]}
    index = scanned([path])
    assert (index.block_sizes.tolist(), index.counts.tolist()) == ([2, 1], [2])
    assert index.lengths.tolist() == [6, 0, 9]
    assert index.stamps.tolist() == [path.stat().st_size]
    assert pa.ipc.open_stream(measured([])).read_all().num_rows == 0


@pytest.mark.parametrize(
    ("count", "rows"), [(0, []), (1, [1]), (256, [256]), (257, [256, 1]), (512, [256, 256])]
)
def test_blocks_have_as_many_rows_as_are_written_in_one(tmp_path, count, rows):
    assert block_rows(count).tolist() == rows
    write_block(tmp_path / "0.arrow", [{"n": np.int64(n)} for n in range(count)])
    assert scanned([tmp_path / "0.arrow"]).block_sizes.tolist() == rows


def test_files_are_named_by_their_folder_here_or_in_their_store():
    uri = "s3://bucket/rows/train"
    found = BlockFiles(uri, ("a.arrow", "b.arrow", "c.arrow"))
    assert (len(found), found[1:].names) == (3, ("b.arrow", "c.arrow"))
    assert found[0] == local(uri) / "a.arrow"
    assert [str(path) for path in found] == found.texts()
    assert found.here().folder == str(local(uri))
    assert found.here().named() == found.named() == found
