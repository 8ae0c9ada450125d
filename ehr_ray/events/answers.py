"""The answers of label files as numbers: which column holds them says what kind of task it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.events.label_tasks import Kind
from ehr_ray.events.truth import NOT_KNOWN, UNKNOWN, read_truth

KINDS: Final[dict[str, Kind]] = {
    "boolean_value": "binary",
    "float_value": "regression",
    "integer_value": "regression",
    "categorical_value": "classes",
}
"""The columns of a MEDS label that can hold its answer."""
NO_CLASS: Final = tuple(sorted(UNKNOWN - {"none"}))
"""Classes, in lower case, that say nothing; `none` may be one that says something."""

Numbers = Sequence[int] | npt.NDArray[np.int64]
"""Of rows of a file, from 1."""


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of N rows."""

    kind: Kind
    value: npt.NDArray[Any]
    """bool, float64 or, of classes, their places int64, [N]; of no meaning where not known."""
    known: npt.NDArray[np.bool_]
    column: str
    """That they are in."""
    classes: tuple[str, ...] = ()
    """Names of the classes, sorted."""


def read_answers(
    tables: Sequence[tuple[Path, pa.Table]], rows: Sequence[Numbers] | None = None
) -> Answers:
    """Return the answers of a task's files, one after the other.

    `rows` are the numbers, from 1, that the rows of each table have in its file; None: they are all
    of it. Null, NaN and blanks are unknown. Raises `InputError` for a file without a column of
    answers, answers in several columns, and a cell that is none.
    """
    if rows is None:
        rows = [range(1, len(table) + 1) for _, table in tables]
    read = {
        (number, name): _cells(path, table[name], name, rows[number])
        for number, (path, table) in enumerate(tables)
        for name in KINDS
        if name in table.column_names
    }
    for number, (path, _) in enumerate(tables):
        if not any(place == number for place, _ in read):
            raise InputError(
                f"{path}: no column boolean_value, float_value, integer_value or "
                "categorical_value; labels have subject_id, prediction_time and one of these"
            )
    filled = {name: n for (n, name), (_, known) in reversed(read.items()) if known.any()}
    if len(filled) > 1:
        places = ", ".join(f"{name} of {tables[n][0]}" for name, n in sorted(filled.items()))
        raise InputError(f"answers in several columns: {places}; keep one, which is the task's")
    # Of files without any answer the first column there stands for the kind.
    name = next(iter(filled), None) or next(n for n in KINDS if any(m == n for _, m in read))
    parts = [read.get((n, name)) or _nothing(table, name) for n, (_, table) in enumerate(tables)]
    value, known = (np.concatenate(part) for part in zip(*parts, strict=True))
    if KINDS[name] != "classes":
        return Answers(KINDS[name], value, known, name)
    classes = np.unique(value[known].astype(str))
    place = np.asarray(np.searchsorted(classes, np.where(known, value, "").astype(str)), np.int64)
    return Answers("classes", place, known, name, tuple(classes.tolist()))


Cells = tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]
"""Answers [N] and which of them are known [N]."""


def _cells(path: Path, column: pa.ChunkedArray, name: str, rows: Numbers) -> Cells:
    kind = KINDS[name]
    if kind == "binary":
        truth = read_truth(column, str(path), name, rows)
        return truth > 0, truth != NOT_KNOWN
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    if pa.types.is_null(column.type):
        return _empty(len(column), kind)
    if kind == "regression":
        return _numbers(path, column, name, rows)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise InputError(f"{path}: {name} is {column.type}, which must be text")
    text = pc.utf8_trim_whitespace(column.cast(pa.string())).fill_null("")
    known = ~pc.is_in(pc.utf8_lower(text), value_set=pa.array(NO_CLASS)).to_numpy()
    return text.to_numpy(), known


def _numbers(path: Path, column: pa.ChunkedArray, name: str, rows: Numbers) -> Cells:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InputError(f"{path}: {name} is {column.type}, which must be numbers")
    value = column.cast(pa.float64(), safe=False).to_numpy()
    endless = np.flatnonzero(np.isinf(value))
    if len(endless):
        raise InputError(
            f"{path}: row {rows[endless[0]]}, column {name}: {value[endless[0]]} is no answer; "
            "leave it empty where the answer is unknown"
        )
    return value, ~np.isnan(value)


def _nothing(table: pa.Table, name: str) -> Cells:
    return _empty(len(table), KINDS[name])


def _empty(rows: int, kind: Kind) -> Cells:
    blank: dict[str, npt.NDArray[Any]] = {
        "binary": np.zeros(rows, bool),
        "regression": np.zeros(rows),
        "classes": np.full(rows, "", object),
    }
    return blank[kind], np.zeros(rows, bool)
