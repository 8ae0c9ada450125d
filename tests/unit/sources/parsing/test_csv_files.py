import gzip

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing import csv_files
from ehr_ray.sources.parsing.csv_files import Dialect, count_rows, csv_columns, read_csv
from ehr_ray.storage.paths import STAGING
from ehr_ray.storage.sync import outline


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


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz"])
def test_a_column_given_twice_is_refused_by_its_name(tmp_path, name):
    text = "id,x,x\n1,2,3\n"
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(text.replace(",", "\t").encode()))
    else:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=rf"{name}: two columns are called x; rename or remove"):
        csv_columns(str(tmp_path / name))


@pytest.mark.parametrize(
    "content",
    # Compressed bytes hold the time of day, so they can't name a case: workers would disagree.
    [
        pytest.param(b"id,x\n1,2\n", id="no_gzip"),
        pytest.param(gzip.compress(b"id,x\n")[:10] + b"\xff" * 20, id="damaged"),
    ],
)
@pytest.mark.parametrize("stored", [False, True])
def test_a_damaged_gzip_is_no_fault_of_its_store(tmp_path, monkeypatch, content, stored):
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "a.csv.gz").write_bytes(content)
    root = outline(f"file://{folder}") if stored else folder
    with pytest.raises(InputError, match=r"a.csv.gz: not a readable CSV"):
        csv_columns(str(root / "a.csv.gz"))


def test_trailing_commas_of_a_header_are_no_columns(tmp_path):
    (tmp_path / "a.csv").write_text("id,x,,\n")
    assert csv_columns(str(tmp_path / "a.csv")) == ["id", "x", "", ""]


@pytest.mark.parametrize("end", ['"', ""])
def test_a_quote_that_is_never_closed_refuses_every_line_it_swallows(tmp_path, end):
    lines = ["id,x", "1,2", f'3,"4{end}' if end else '3,"4', "5,6", "7,8"]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    pieces = list(read_csv(str(tmp_path), "a.csv", ["id", "x"], one_line=True))
    kept = [row for table, _, _ in pieces for row in table["id"].to_pylist()]
    refused = [row for _, _, rejects in pieces for row in rejects.table()["line"].to_pylist()]
    assert (kept, refused) == ((["1", "3", "5", "7"], []) if end else (["1"], [3, 3, 3]))


def test_other_encodings_and_delimiters_are_read_where_they_are_said(tmp_path):
    dialect = Dialect(";", "latin-1")
    (tmp_path / "a.csv").write_bytes("id;größe\n1;groß\n".encode("latin-1"))
    assert csv_columns(str(tmp_path / "a.csv"), dialect) == ["id", "größe"]
    table, _, _ = next(read_csv(str(tmp_path), "a.csv", ["größe"], dialect=dialect))
    assert table["größe"].to_pylist() == ["groß"]
    with pytest.raises(InputError, match="if it is not UTF-8, say which by --encoding"):
        csv_columns(str(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((";;",), "--delimiter ';;': not one character"),
        ((";", "utf-9"), "--encoding utf-9: not kn"),
    ],
)
def test_a_dialect_that_there_is_not_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Dialect(*arguments)


def test_rows_are_counted_as_far_as_a_file_can_be_read(tmp_path):
    data = gzip.compress(b"id\n" + b"".join(b"%d\n" % i for i in range(20000)))
    (tmp_path / "a.csv.gz").write_bytes(data)
    assert count_rows(str(tmp_path / "a.csv.gz")) == 20000
    (tmp_path / "a.csv.gz").write_bytes(data[: len(data) // 2])
    assert 1000 < count_rows(str(tmp_path / "a.csv.gz")) < 20000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("token,str\n1,HR\n2,Glucose, serum\n", "v.csv: row 2 has more cells than the header; put"),
        ("token,str,str\n1,HR,SBP\n", "v.csv: two columns are called str"),
    ],
)
def test_a_small_file_in_which_it_is_not_clear_what_is_what_is_refused(tmp_path, text, message):
    (tmp_path / "v.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        csv_files.whole_csv(str(tmp_path / "v.csv"), ("token", "str"))
    (tmp_path / "v.csv").write_text("token,str\n1,HR,\n")
    assert csv_files.whole_csv(str(tmp_path / "v.csv"), ("token", "str"))[0]["str"] == "HR"
