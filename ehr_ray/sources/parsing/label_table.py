"""Labels from a CSV or Parquet table: an id column, answers, and perhaps prediction times."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.events.answers import NO_CLASS
from ehr_ray.events.truth import NOT_KNOWN, read_truth, truth_of
from ehr_ray.sources.parsing.cells import Mask, Times, flat, spelled
from ehr_ray.sources.parsing.csv_files import (
    COMMON,
    Dialect,
    csv_columns,
    encoding_hint,
    listed,
    read_csv,
)
from ehr_ray.sources.parsing.identifiers import subject_ids
from ehr_ray.sources.parsing.labels import label_rows
from ehr_ray.sources.parsing.parquet_files import READ_ERRORS
from ehr_ray.sources.parsing.quantities import Decimal, numbers
from ehr_ray.sources.parsing.quarantine import Rejects
from ehr_ray.sources.source import Chunk, Unit
from ehr_ray.storage import files

PARQUET: Final = ".parquet"

PLAIN_COLUMNS: Final = ("ts_id", "recordid", "id")
SUBJECT_COLUMNS: Final = ("subject_id", "patient_id", "person_id")
STAY_COLUMNS: Final = ("stay_id", "icustay_id", "hadm_id", "visit_id", "encounter_id")
"""Names, in lower case, that id columns have in label tables: of anything, a person, a stay."""

_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_TIME_WORDS: Final = frozenset(
    ("time", "timestamp", "datetime", "date", "day", "hour", "hours", "minute", "minutes")
)
_ASKED: Final = frozenset(
    ("prediction", "predicted", "predict", "index", "landmark", "cutoff", "anchor", "label")
)
_DATE: Final = (
    r"^\s*(\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}/\d{1,2}/\d{2,4}|\d{1,2}-\d{1,2}-\d{2,4}"
    r"|\d{1,2}\.\d{1,2}\.\d{2,4})([ T,].*)?$"
)
_NEVER_ASKED: Final = re.compile(r"birth|^dob$|death|died|^dod|disch", re.IGNORECASE)
"""Columns of dates at which nobody predicts."""

LABELS_HELP: Final = (
    "CSV or Parquet with an id column and one of truth values (0/1, true/false; blank = unknown); "
    "a column prediction_time or time says when, and a subject may have several rows"
)
COLUMNS_HELP: Final = (
    "its columns of truth values that are tasks, by comma (needed unless one alone holds these, or "
    "--label-numbers or --label-classes names the tasks)"
)
NUMBERS_HELP: Final = "columns of the labels, by comma, that are tasks of numbers (regression)"
CLASSES_HELP: Final = "columns of the labels, by comma, that are tasks of classes, by their texts"
MINUTE_HELP: Final = (
    "prediction time, minutes after admission, where the table has none (unless given: the last "
    "event)"
)

ReadTime = Callable[[pa.ChunkedArray, str], tuple[Times, Mask]]


@dataclass(frozen=True)
class LabelOptions:
    """How a source reads a label table.

    Args:
        id_column: the column of the ids that the events have.
        default_id: what `id_column` is unless the user names one.
        stays: whether an id may be one of a stay, where no column is named.
        time_columns: names of the column of prediction times, the first that is there counts;
            capitals, blanks and `_` do not matter.
        read_time: column and name -> times, and a mask of cells that are none.
        clock: whether these are dates with a clock, which may say their zone.
        tasks: columns of truth values, by comma; None: the only one there is, or none beside those
            of numbers and classes.
        numbers: columns of numbers that are tasks, by comma.
        classes: columns of texts that are tasks, by comma.
        decimal: decimal mark of numbers in text.
        minute: prediction time in minutes after the origin; None: the last event.
        dialect: how a CSV file is written.
    """

    id_column: str
    default_id: str
    stays: bool
    time_columns: tuple[str, ...]
    read_time: ReadTime
    clock: bool = False
    tasks: str | None = None
    numbers: str | None = None
    classes: str | None = None
    decimal: Decimal = "."
    minute: float | None = None
    dialect: Dialect = COMMON


@dataclass(frozen=True)
class LabelFields:
    """A table of labels beside the events, and how it is read."""

    labels: Path | None = field(default=None, metadata={"help": LABELS_HELP})
    label_columns: str | None = field(default=None, metadata={"help": COLUMNS_HELP})
    label_numbers: str | None = field(default=None, metadata={"help": NUMBERS_HELP})
    label_classes: str | None = field(default=None, metadata={"help": CLASSES_HELP})
    label_minute: float | None = field(default=None, metadata={"help": MINUTE_HELP})


def label_units(options: LabelFields) -> list[Unit]:
    """Return the unit that reads a label table, none without one.

    Raises `InputError` where it is not there, and where options say how to read one without it.
    """
    path = options.labels
    if path is None:
        for name in LabelFields.__dataclass_fields__:
            if (value := getattr(options, name)) is not None:
                raise InputError(f"--{name.replace('_', '-')} {value}: needs --labels FILE")
        return []
    if not path.is_file():
        raise InputError(f"--labels {path}: no such file; check the path")
    return [Unit(str(path.absolute().parent), (path.name,), "labels")]


def read_labels(unit: Unit, options: LabelOptions) -> Iterator[Chunk]:
    """Yield the labels of a table, one of each row and task; a blank answer is unknown.

    A row without an id is refused. Raises `InputError` by file, row, column and value for an answer
    that is none and a time that is none, and where it is not clear what is what.
    """
    name = unit.files[0]
    table, lines, refused = _read(os.path.join(unit.root, name), unit, options.dialect)
    key = _id_column(name, table.column_names, options)
    ids, blank, spelt = subject_ids(table[key])
    rejects = Rejects()
    rejects.rows(blank, lambda i: (name, int(lines[i])), lambda _: f"{key} is blank")
    time = _time_column(name, [c for c in table.column_names if c != key], options)
    times = None if time is None else _times(name, time, table, lines, options)
    if time is not None and times is not None and options.clock:
        rejects.zones(table[time], times, f"--labels {name}, column {time}")
    given = None if times is None else pa.array(times[~blank])
    labels = {}
    tasks = _tasks(name, table, {key, time}, options)
    if time is None and options.minute is None:
        _refuse_times(name, table.drop_columns([key, *tasks]))
    for task, column in tasks.items():
        values = _answers(name, task, column, table[task], lines, options.decimal)
        known = values.filter(pa.array(~blank))
        labels[task] = label_rows(ids[~blank], known, options.minute, times=given, column=column)
    found = rejects.tables()
    yield Chunk(
        labels=labels,
        rejects=pa.concat_tables([*refused, found["rejects"]]),
        changes=found["changes"],
        rows_read=len(table) + sum(map(len, refused)),
        files_read=1,
        names=spelt,
    )


def _read(
    path: str, unit: Unit, dialect: Dialect
) -> tuple[pa.Table, npt.NDArray[np.int64], list[pa.Table]]:
    """Return (table, the row of the file each row stands in, malformed rows)."""
    try:
        if path.endswith(PARQUET):
            table = files.open_parquet(path).read()
            return table, np.arange(1, len(table) + 1), []
        pieces = list(
            read_csv(unit.root, unit.files[0], csv_columns(path, dialect), dialect=dialect)
        )
    except READ_ERRORS as error:
        raise InputError(
            f"--labels {path}: not a readable table ({error}){encoding_hint(error)}"
        ) from None
    table = pa.concat_tables([piece for piece, _, _ in pieces]).combine_chunks()
    lines = np.concatenate([lines for _, lines, _ in pieces])
    return table, lines, [rejects.table() for _, _, rejects in pieces]


def _id_column(name: str, columns: Sequence[str], options: LabelOptions) -> str:
    """Return the column that labels are joined by."""
    if options.id_column in columns:
        return options.id_column
    found = [column for column in columns if _is_id(column)]
    fits: tuple[str, ...] = PLAIN_COLUMNS
    if options.id_column == options.default_id:  # nobody has named one
        fits += SUBJECT_COLUMNS + (STAY_COLUMNS if options.stays else ())
    if len(found) != 1 or found[0].lower() not in fits:
        has = f"it has {listed(found if len(found) > 1 else columns)}"
        raise InputError(
            f"--labels {name}: no column {options.id_column}, by which labels are joined with "
            f"events; {has}: name one by --id-column, or rename it"
        )
    return found[0]


def _is_id(column: str) -> bool:
    return column.lower() in PLAIN_COLUMNS + SUBJECT_COLUMNS + STAY_COLUMNS


def _time_column(name: str, columns: Sequence[str], options: LabelOptions) -> str | None:
    """Return the column of prediction times; capitals, blanks and `_` do not tell names apart."""
    for wanted in options.time_columns:
        found = [column for column in columns if _folded(column) == _folded(wanted)]
        if wanted in found:
            return wanted
        if len(found) > 1:
            raise InputError(
                f"--labels {name}: which of {', '.join(map(repr, found))} says when? remove one"
            )
        if found:
            return found[0]
    return None


def _folded(column: str) -> str:
    return re.sub(r"[\W_]+", "", column).casefold()


def _refuse_times(name: str, others: pa.Table) -> None:
    """Raise `InputError` where a column that is not read may say when predictions are made.

    Labels without a time stand at the last event: what came after the true time would be known.
    """
    for column in others.column_names:
        if _is_id(column) or _NEVER_ASKED.search(column):
            continue
        if _may_be_times(column, others[column]):
            raise InputError(
                f"--labels {name}: column {column!r} may be of times, and is not called "
                "prediction_time: rename it if it says when predictions are made, else remove it, "
                "or say --label-minute"
            )


def _may_be_times(name: str, column: pa.ChunkedArray) -> bool:
    words = {word.lower() for word in _WORD.findall(name)}
    if words & _ASKED and words & _TIME_WORDS:
        return True
    if not words <= _TIME_WORDS:  # los_hours is how long, died_within_24_hours an outcome
        return _holds_dates(column)
    return pa.types.is_nested(column.type) or bool(np.any(truth_of(column) < NOT_KNOWN))


def _holds_dates(column: pa.ChunkedArray) -> bool:
    """Whether most cells of a column that are not blank are dates, however they are written."""
    column = flat(column)
    if not pa.types.is_string(column.type):
        return pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)
    dates = pc.sum(pc.match_substring_regex(column, _DATE)).as_py() or 0
    blank = pc.sum(pc.equal(pc.utf8_trim_whitespace(column.fill_null("")), "")).as_py() or 0
    return bool(2 * dates > len(column) - blank)


def _times(
    name: str,
    column: str,
    table: pa.Table,
    lines: npt.NDArray[np.int64],
    options: LabelOptions,
) -> Times:
    if options.minute is not None:
        raise InputError(f"--label-minute {options.minute:g}: {name} has {column}; drop one")
    times, bad = options.read_time(table[column], column)
    bad = bad | np.isnat(times)
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"--labels {name}: row {lines[row]}, column {column}: no time, as in "
            f"{int(bad.sum()):,} rows; write times as those of the events are written"
        )
    return times


def _answers(
    name: str,
    task: str,
    kind: str,
    column: pa.ChunkedArray,
    lines: npt.NDArray[np.int64],
    decimal: Decimal,
) -> pa.Array:
    """Return the answers of a column as one of `LABEL_VALUES`, null where unknown."""
    if kind == "boolean_value":
        truth = read_truth(column, name, task, lines)
        return pa.array(truth > 0, mask=truth == NOT_KNOWN)
    if kind == "categorical_value":
        text = pc.utf8_trim_whitespace(spelled(flat(column), task))
        unknown = pc.is_in(pc.utf8_lower(text), value_set=pa.array(NO_CLASS))
        return pc.if_else(unknown, pa.scalar(None, pa.string()), text)
    values, bad = numbers(column, task, decimal)
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"--labels {name}: row {lines[row]}, column {task}: {column[row].as_py()!r} is no "
            f"number, as in {int(bad.sum()):,} rows; leave it empty where the answer is unknown"
        )
    return pa.array(values, mask=np.isnan(values))


def _tasks(
    name: str, table: pa.Table, taken: set[str | None], options: LabelOptions
) -> dict[str, str]:
    """Return the column of each task, and which of `LABEL_VALUES` it holds."""
    candidates = [column for column in table.column_names if column not in taken]
    found: dict[str, str] = {}
    for flag, columns, kind in (
        ("--label-columns", options.tasks, "boolean_value"),
        ("--label-numbers", options.numbers, "float_value"),
        ("--label-classes", options.classes, "categorical_value"),
    ):
        for column in () if columns is None else map(str.strip, columns.split(",")):
            if column not in candidates:
                raise InputError(f"{flag} {column}: {name} has {listed(candidates)}")
            if found.setdefault(column, kind) != kind:
                raise InputError(f"{flag} {column}: named as another kind of task too; drop one")
    return found or dict.fromkeys(_truth_column(name, table, taken, candidates), "boolean_value")


def _truth_column(
    name: str, table: pa.Table, taken: set[str | None], candidates: Sequence[str]
) -> Sequence[str]:
    """Return the one column that must hold truth values, where the user named no task."""
    found = []
    for column in candidates:
        if _is_id(column):
            continue
        truth = truth_of(table[column])
        if 2 * np.sum(truth >= 0) > np.sum(truth != NOT_KNOWN):
            found.append(column)
    if not found and len(candidates) == 1:
        return candidates  # no other can be meant: the cell that is no truth value is named
    if not found:
        raise InputError(
            f"--labels {name}: no column of truth values (0/1, true/false) beside "
            f"{', '.join(filter(None, taken))}; its columns are {listed(table.column_names)}; "
            "name the one that is meant by --label-columns"
        )
    if len(found) > 1:
        raise InputError(
            f"--labels {name}: {', '.join(found)} hold truth values; name the tasks by "
            "--label-columns, as not every such column is an outcome"
        )
    return found
