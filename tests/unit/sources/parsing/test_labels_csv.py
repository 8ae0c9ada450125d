import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.labels_csv import labels_unit, read_labels


@pytest.fixture
def read(tmp_path):
    def run(text, columns=None, minute=None):
        (tmp_path / "l.csv").write_text(text)
        (chunk,) = read_labels(labels_unit(tmp_path / "l.csv"), columns, minute)
        return chunk

    return run


def pairs(table):
    return list(
        zip(table["subject_id"].to_pylist(), table["boolean_value"].to_pylist(), strict=True)
    )


@pytest.mark.parametrize("name", ["ts_id", "RecordID", "anything"])
def test_the_id_column_is_known_by_name_or_first(read, name):
    chunk = read(f"{name},died\n1,1\n2.0,no\n3,\n4,FALSE\n5,nan\n")
    assert pairs(chunk.labels["died"]) == [(1, True), (2, False), (4, False)]


def test_a_known_id_column_need_not_be_first(read):
    assert pairs(read("died,ts_id\n1,7\n").labels["died"]) == [(7, True)]


def test_columns_of_truth_values_are_tasks_and_others_are_not(read):
    chunk = read("id,died,age,back,site\n1,0,61,1,a\n2,1,44,,b\n")
    assert sorted(chunk.labels) == ["back", "died"]


def test_named_columns_are_the_tasks(read):
    assert list(read("id,died,back\n1,0,1\n", columns="back").labels) == ["back"]
    with pytest.raises(InputError, match=r"--label-columns age: l\.csv has died, back"):
        read("id,died,back\n1,0,1\n", columns="age")


def test_bad_cells_are_rejected_by_line(read):
    chunk = read("id,died\n1,0\n,1\n2,maybe\n3,1,1\n4,1\n5,0\n")
    assert pairs(chunk.labels["died"]) == [(1, False), (4, True), (5, False)]
    assert sorted((r["line"], r["reason"]) for r in chunk.rejects.to_pylist()) == [
        (3, "id is blank"),
        (4, "died 'maybe' is not 0 or 1"),
        (5, "3 cells where the header has 2: '3,1,1'"),
    ]
    assert chunk.rows_read == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "empty, not even a header"), ("id,age\n1,33\n2,44\n", "no column of 0/1 beside id")],
)
def test_a_csv_without_labels_is_refused(read, text, message):
    with pytest.raises(InputError, match=message):
        read(text)


def test_a_missing_csv_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--labels .*no\.csv: no such file"):
        labels_unit(tmp_path / "no.csv")
