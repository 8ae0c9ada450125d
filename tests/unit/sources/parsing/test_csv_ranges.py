import gzip
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ehr_ray.sources.parsing import csv_ranges
from ehr_ray.sources.parsing.csv_files import ALL_LINES, Dialect, Lines, count_rows, read_csv
from ehr_ray.sources.parsing.csv_ranges import piece_name, split_lines, unpack
from ehr_ray.sources.source import Unit

UNIT = Unit(files=("f.csv",))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in (("RANGE_BYTES", 40), ("SCAN_BYTES", 16), ("LONGEST_LINE", 60)):
        monkeypatch.setattr(csv_ranges, name, value)


def cut(folder, content, dialect=None):
    (folder / "f.csv").write_bytes(content)
    units = split_lines(Unit(str(folder), ("f.csv",)), dialect or Dialect())
    return [Lines(unit.start, unit.stop, unit.line) for unit in units]


def cut_packed(folder, packed, dialect=None):
    """Return the lines of a compressed file, of which pieces are new files, and these."""
    (folder / "f.csv.gz").write_bytes(packed)
    (unit,) = split_lines(Unit(str(folder), ("f.csv.gz",)), dialect or Dialect())
    if unit.packed is None:
        return [ALL_LINES], set()
    pieces = Path(tempfile.mkdtemp(dir=folder))
    ranges = unpack(unit, pieces)
    parts = [Lines(*each, str(pieces / piece_name(i))) for i, each in enumerate(ranges)]
    return parts or [ALL_LINES], {*map(str, pieces.iterdir())}


def rows(folder, parts, dialect=None, name="f.csv"):
    """Return (line, cells) of all rows and (line, reason) of the malformed ones."""
    good, bad = [], []
    for part in parts:
        for table, lines, rejects in read_csv(
            str(folder), name, ["a", "b"], dialect=dialect or Dialect(), one_line=True, part=part
        ):
            good += zip(lines.tolist(), map(tuple, map(dict.values, table.to_pylist())))  # noqa: B905
            bad += rejects.table().to_pylist()
    return good, sorted(bad, key=lambda row: row["line"])


def same(folder, content, dialect=None):
    """Return the number of ranges, whose rows are those of the whole file, compressed or not."""
    parts = cut(folder, content, dialect)
    whole, total = rows(folder, [ALL_LINES], dialect), count_rows(str(folder / "f.csv"))
    assert rows(folder, parts, dialect) == whole
    assert sum(count_rows(str(folder / "f.csv"), part) for part in parts) == total
    half = len(content) // 2
    packed, pieces = cut_packed(
        folder, gzip.compress(content[:half]) + gzip.compress(content[half:]), dialect
    )
    if parts == [ALL_LINES]:
        assert (packed, pieces) == (parts, set())
        return 1
    assert [Lines(p.start, p.stop, p.first) for p in packed] == parts
    assert {part.piece for part in packed} == pieces
    assert sum(count_rows(str(folder / "f.csv.gz"), part) for part in packed) == total
    good, bad = rows(folder, packed, dialect, "f.csv.gz")
    assert (good, [{**row, "file": "f.csv"} for row in bad]) == whole
    return len(parts)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_ranges_give_the_rows_and_the_lines_of_the_whole_file(tmp_path, end, last):
    lines = [
        b"a,b",
        *(b"%d,x%d" % (n, n) for n in range(40)),
        b"1,2,3",
        b"",
        b'"7","8,""9"""',
        b"z",
    ]
    content = end.join(lines * 3) + (end if last else b"")
    assert same(tmp_path, content) > 5


def test_a_file_in_latin_1_is_cut_and_one_in_utf_16_is_not(tmp_path):
    text = "a;b\n" + "größe;ß\n" * 30
    assert same(tmp_path, text.encode("latin-1"), Dialect(";", "latin-1")) > 3
    assert same(tmp_path, text.encode("utf-8-sig"), Dialect(";")) > 3
    assert same(tmp_path, text.encode("utf-16"), Dialect(";", "utf-16")) == 1


@pytest.mark.parametrize(
    "odd",
    [
        b'"two\nlines",1',
        b'1,"never closed',
        b'x"y,"z',
        b'"a","b" "c"',
        b"1\r2,3",
        b"gr\xf6sse,1",
        b"1," + b"9" * 70,
    ],
)
def test_a_file_whose_rows_are_not_its_lines_stays_whole(tmp_path, odd):
    content = b"a,b\n" + b"1,2\n" * 30
    assert len(cut(tmp_path, content)) > 2
    text = content + odd + b"\n" + content
    assert cut(tmp_path, text) == [ALL_LINES]
    assert cut_packed(tmp_path, gzip.compress(text)) == ([ALL_LINES], set())


def test_small_files_and_none_stay_whole(tmp_path):
    small = b"a,b\n1,2\n"
    assert cut(tmp_path, small) == [ALL_LINES]
    assert cut_packed(tmp_path, gzip.compress(small)) == ([ALL_LINES], set())
    assert cut_packed(tmp_path, b"") == ([ALL_LINES], set())
    for name in ("not there.csv", "not there.csv.gz"):
        unit = Unit(str(tmp_path), (name,))
        assert split_lines(unit, Dialect()) == [unit]


@pytest.mark.parametrize("damage", ["short", "plain", "more", "wrong sum"])
def test_a_damaged_compressed_file_stays_whole(tmp_path, damage):
    text = b"a,b\n" + b"".join(b"%d,x\n" % n for n in range(2000))
    packed = gzip.compress(text)
    assert len(cut_packed(tmp_path, packed)[0]) > 50
    damaged = {
        "short": packed[: len(packed) // 2],
        "plain": text,
        "more": packed + b"and more",
        "wrong sum": packed[:-8] + b"abcd" + packed[-4:],
    }[damage]
    assert cut_packed(tmp_path, damaged) == ([ALL_LINES], set())


def test_a_disk_that_refuses_a_piece_is_no_damage_of_the_file(tmp_path):
    text = b"a,b\n" + b"1,2\n" * 99
    (tmp_path / "f.csv.gz").write_bytes(gzip.compress(text))
    (unit,) = split_lines(Unit(str(tmp_path), ("f.csv.gz",)), Dialect())
    with pytest.raises(FileNotFoundError, match="not there"):
        unpack(unit, tmp_path / "not there")


def test_random_text_gives_the_same_in_ranges(tmp_path):
    """That what is cut is read alike, with quotes, line breaks and delimiters anywhere."""
    random = np.random.default_rng(0)
    pieces = ["a", "b", ",", '"', '""', "\n", "\r\n", '"x,y"', '"x""y"', ",,", '"\n', "1,2\n"]
    shares = np.array([4, 4, 6, 0.1, 0.3, 4, 2, 1, 1, 1, 0.02, 6])
    several = 0
    for _ in range(300):
        text = "".join(random.choice(pieces, 60, p=shares / shares.sum()))
        try:
            several += same(tmp_path, f"a,b\n{text}\n".encode()) > 1
        except pa.ArrowInvalid:
            assert cut(tmp_path, f"a,b\n{text}\n".encode()) == [ALL_LINES]
    assert several > 50
