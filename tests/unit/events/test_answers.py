from pathlib import Path

import pyarrow as pa
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.answers import read_answers

NAN = float("nan")


def read(*tables):
    return read_answers([(Path(f"{n}.parquet"), pa.table(table)) for n, table in enumerate(tables)])


@pytest.mark.parametrize(
    ("column", "cells", "kind", "values", "known"),
    [
        ("boolean_value", [True, None, False], "binary", [True, False], [1, 0, 1]),
        ("float_value", [2.5, NAN, None], "regression", [2.5], [1, 0, 0]),
        ("integer_value", [3, None, -1], "regression", [3, -1], [1, 0, 1]),
        ("categorical_value", ["b", " ", "a ", None, "NaN"], "classes", [1, 0], [1, 0, 1, 0, 0]),
        (
            "categorical_value",
            ["b", "NA", "a", "N/A", "null"],
            "classes",
            [1, 0],
            [1, 0, 1, 0, 0],
        ),
    ],
)
def test_the_column_says_the_kind_and_blanks_are_unknown(column, cells, kind, values, known):
    found = read({column: pa.array(cells, from_pandas=False)})
    assert found.kind == kind
    assert found.known.tolist() == [bool(one) for one in known]
    assert found.value[found.known].tolist() == values
    assert found.classes == (("a", "b") if kind == "classes" else ())


def test_what_stands_for_no_value_is_no_class_but_none_may_be_one():
    cells = ["NA", "a", "n/a", "none", "NULL", "<NA>"]
    found = read({"categorical_value": cells})
    assert found.classes == ("a", "none")
    assert found.known.tolist() == [False, True, False, True, False, False]


def test_the_classes_of_several_files_are_those_of_all_and_other_columns_may_be_empty():
    empty = {"boolean_value": pa.nulls(1), "float_value": pa.array([NAN])}
    found = read(
        {**empty, "categorical_value": ["z"]},
        {"categorical_value": pa.array(["m", "a"]).dictionary_encode()},
        empty,
    )
    assert found.classes == ("a", "m", "z")
    assert found.value[:3].tolist() == [2, 1, 0]
    assert found.known.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (
            [{"boolean_value": [True]}, {"float_value": [1.0]}],
            r"boolean_value of 0\.parquet, float_value of 1\.parquet; keep one",
        ),
        ([{"boolean_value": [True], "float_value": [1.0]}], "answers in several columns"),
        ([{"float_value": [1.0]}, {"other": [1.0]}], r"1\.parquet: no column boolean_value, float"),
        ([{"float_value": [1.0, float("inf")]}], r"0\.parquet: row 2, column float_value: inf"),
        ([{"float_value": ["1.0"]}], "float_value is string, which must be numbers"),
        ([{"categorical_value": [1]}], "categorical_value is int64, which must be text"),
    ],
)
def test_what_is_no_answer_or_no_kind_is_refused_by_name(tables, said):
    with pytest.raises(InputError, match=said):
        read(*tables)


def test_files_without_any_answer_have_the_kind_of_their_column():
    assert read({"float_value": pa.array([None], pa.float32())}).kind == "regression"
