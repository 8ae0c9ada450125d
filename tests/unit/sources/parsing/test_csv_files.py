import gzip

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing import csv_files
from ehr_ray.sources.parsing.csv_files import csv_columns, read_csv


@given(st.lists(st.sampled_from(["1,2", "a,", "3", "4,5,6", "", '"x, y",7'])), st.integers(20, 80))
def test_every_row_has_its_line_however_blocks_fall(tmp_path_factory, rows, block):
    folder = tmp_path_factory.mktemp("csv")
    (folder / "f.csv").write_text("\n".join(["first,second", *rows]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_files, "BLOCK_BYTES", block)
        pieces = list(read_csv(str(folder), "f.csv", ["first", "second"]))
    good = {"1,2": ("1", "2"), "a,": ("a", ""), '"x, y",7': ("x, y", "7"), "": ("", "")}
    expected = {n: good[row] for n, row in enumerate(rows, start=2) if row in good}
    found = {}
    for table, lines, _ in pieces:
        found.update(
            zip(lines.tolist(), zip(*table.to_pydict().values(), strict=True), strict=True)
        )
    assert found == expected
    malformed = [r["line"] for _, _, rejects in pieces for r in rejects.table().to_pylist()]
    assert malformed == [n for n, row in enumerate(rows, start=2) if row in ("3", "4,5,6")]


def test_the_header_is_read_from_any_kind_of_file(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfid,"a,b"\n1,2\n')
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(b"id\tx\n"))
    assert csv_columns(str(tmp_path / "a.csv")) == ["id", "a,b"]
    assert csv_columns(str(tmp_path / "b.tsv.gz")) == ["id", "x"]


def test_tabs_separate_in_tsv(tmp_path):
    (tmp_path / "a.tsv").write_text("id\tx\n1\ta,b\n")
    table, _, _ = next(read_csv(str(tmp_path), "a.tsv", ["x"]))
    assert table["x"].to_pylist() == ["a,b"]
    assert pa.types.is_string(table["x"].type)


@pytest.mark.parametrize("data", [b"", b"\n"])
def test_a_file_without_header_is_refused(tmp_path, data):
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(InputError, match="empty, not even a header"):
        csv_columns(str(tmp_path / "a.csv"))


def test_a_file_that_is_no_gzip_is_refused(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(b"id,x\n")
    with pytest.raises(InputError, match="not a readable CSV"):
        csv_columns(str(tmp_path / "a.csv.gz"))
