import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing import blocks as module
from ehr_ray.sources.parsing.blocks import check_columns, joined, read_blocks, read_whole
from ehr_ray.sources.parsing.tables import Table


class Kept:
    """Knows subjects 1 to 9 and keeps the odd ones."""

    table = "hosp/patients"

    def look_up(self, ids):
        known = (ids >= 1) & (ids <= 9)
        return known, known & (ids % 2 == 1)


THINGS = Table(
    "things", {"at": "time", "n": "number?", "word": "text?"}, never_done=("state", "Rewritten")
)
HEADER = "subject_id,at,n,word,state\n"


@pytest.fixture
def read(tmp_path):
    def run(text, table=THINGS, roster=None):
        (tmp_path / "things.csv").write_text(text)
        blocks = list(read_blocks(str(tmp_path), "things.csv", table, roster))
        columns = {
            name: [v for b in blocks for v in np.asarray(b.columns[name]).tolist()]
            for name in ("subject_id", "n", "word")
        }
        refused = [
            (row["line"], row["reason"]) for b in blocks for row in b.rejects.table().to_pylist()
        ]
        return columns, refused, blocks

    return run


def test_rows_come_typed_with_their_lines(read):
    columns, refused, blocks = read(HEADER + "1,2150-01-01,2.5,a,\n2,2150-01-02 03:00:00,4,,\n")
    assert columns == {"subject_id": [1, 2], "n": [2.5, 4.0], "word": ["a", "UNK"]}
    assert refused == []
    assert [b.lines.tolist() for b in blocks if len(b)] == [[2, 3]]
    assert sum(b.rows_read for b in blocks) == 2


def test_bad_rows_are_refused_with_line_and_reason(read):
    text = HEADER + "\n".join(
        [
            "1,2150-01-01,1,a,",
            "x,2150-01-01,1,a,",
            ",2150-01-01,1,a,",
            "3,yesterday,1,a,",
            "4,,1,a,",
            "5,2150-01-01,much,a,",
            "6,2150-01-01",
            "7,2150-01-01,,a,",
        ]
    )
    columns, refused, blocks = read(text + "\n")
    assert columns["subject_id"] == [1, 7]
    assert sorted(refused) == [
        (3, "subject_id 'x' is not a whole number"),
        (4, "subject_id is blank"),
        (5, "at 'yesterday' is not a time"),
        (6, "at is blank"),
        (7, "n 'much' is not a finite number"),
        (8, "2 cells where the header has 5: '6,2150-01-01'"),
    ]
    assert sum(b.rows_read for b in blocks) == 8


def test_subjects_left_out_are_passed_over_and_unknown_ones_refused(read):
    text = HEADER + "1,2150-01-01,1,a,\n2,garbage,1,a,\n77,garbage,1,a,\n3,2150-01-01,3,,\n"
    columns, refused, _ = read(text, roster=Kept())
    assert columns["subject_id"] == [1, 3]
    assert refused == [(4, "subject_id 77 is not in hosp/patients")]


def test_rows_never_carried_out_and_rows_without_their_value_are_passed_over(read):
    text = HEADER + "1,2150-01-01,1,a,Rewritten\n2,2150-01-01,,b,Done\n3,2150-01-01,3,c,\n"
    assert read(text)[0]["word"] == ["b", "c"]
    table = Table("things", THINGS.columns, present="n", never_done=("state", "Rewritten"))
    columns, refused, blocks = read(text, table)
    assert columns["word"] == ["c"]
    assert refused == []
    assert sum(b.rows_read for b in blocks) == 3


def test_a_status_column_need_not_be_there(read):
    text = "word,n,at,subject_id\na,1,2150-01-01,1\n"
    assert read(text)[0] == {"subject_id": [1], "n": [1.0], "word": ["a"]}


def test_lines_are_right_however_blocks_fall(read, monkeypatch):
    text = HEADER + "".join(
        f"{i % 9 + 1},{'x' * (i % 7 == 0)}2150-01-01,1,a,\n" for i in range(300)
    )
    _, whole, blocks = read(text, roster=Kept())
    monkeypatch.setattr(module, "BLOCK_BYTES", 100)
    _, pieces, many = read(text, roster=Kept())
    assert len(many) > 2 * len(blocks)
    assert pieces == whole
    assert len(whole) > 20


def test_a_missing_column_is_named_with_the_file(tmp_path):
    (tmp_path / "things.csv").write_text("Subject_ID,n\n")
    with pytest.raises(InputError, match=r"things\.csv: no column at; it has Subject_ID, n"):
        list(read_blocks(str(tmp_path), "things.csv", THINGS))
    assert check_columns(str(tmp_path), "things.csv", ["N"])["subject_id"] == "Subject_ID"


def test_a_parquet_file_and_other_capitals_give_the_same_rows(read, tmp_path):
    rows = "1,2150-01-01,2.5,a,\nx,2150-01-01,1,b,\n2,2150-01-02 03:00:00,,,\n"
    expected, refused, _ = read(HEADER.upper() + rows)
    assert str(expected) == str(read(HEADER + rows)[0])
    text = pa_csv.read_csv(
        tmp_path / "things.csv",
        convert_options=pa_csv.ConvertOptions(column_types={"SUBJECT_ID": pa.string()}),
    )
    pq.write_table(text, tmp_path / "things.parquet")
    found = list(read_blocks(str(tmp_path), "things.parquet", THINGS))
    kinds = {"subject_id": np.int64, "n": np.float64, "word": object}
    columns = {name: values.tolist() for name, values in joined(found, kinds).items()}
    assert str(columns) == str(expected)
    assert [r["line"] for b in found for r in b.rejects.table().to_pylist()] == [
        line for line, _ in refused
    ]


def test_a_damaged_table_that_is_wanted_whole_is_an_error(tmp_path):
    (tmp_path / "things.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match=r"things\.parquet"):
        read_whole(str(tmp_path), "things.parquet", THINGS, {"n": np.float64})
