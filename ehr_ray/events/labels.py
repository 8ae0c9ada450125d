"""Task labels of a cohort: who, when the prediction is made, and the answer.

A task is `labels/<task>.parquet`, or the files of a folder as ACES and MEDS-DEV write them,
`labels/<task>/<split>/<n>.parquet`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.answers import KINDS, Numbers, read_answers
from ehr_ray.events.label_tasks import Kind, canonical_task
from ehr_ray.events.schema import SPLIT_NAMES, is_zoned
from ehr_ray.storage import files, in_place
from ehr_ray.storage.listing import parquet_below

PREFERRED = "mortality"
REMEDY = "ingest the cohort again"

_KEYS: Final = ("subject_id", "prediction_time")
_BATCH_ROWS: Final = 1 << 18
"""Rows of a file that are read at a time."""
_SHARD: Final = re.compile(r"(?:(?:part|shard|chunk)[-_]?)?\d+(?:[-_.]\d+)*")
"""Names of the files that one table is written as."""
_UNNAMED: Final = "label"
"""The task whose files lie in `labels/` by split or number, without a name."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of one kind, sorted by (subject, prediction time); N rows."""

    task: str
    subject_id: npt.NDArray[np.int64]
    prediction_time: npt.NDArray[np.int64]
    """Microseconds since 1970: nothing later may reach a model."""
    value: npt.NDArray[Any]
    """bool, of a regression float64, of classes the place of each row's in `classes`, int64."""
    unknown: int = 0
    """Rows left out because they have no answer."""
    repeated: int = 0
    """Rows left out because they say again what another says."""
    kind: Kind = "binary"
    classes: tuple[str, ...] = ()
    column: str = ""
    """That the answers were in."""

    def cuts(self) -> dict[int, list[int]]:
        """Return the prediction times of each subject, ascending; some 200 bytes a subject."""
        result: dict[int, list[int]] = {}
        for subject, time in zip(
            self.subject_id.tolist(), self.prediction_time.tolist(), strict=True
        ):
            result.setdefault(subject, []).append(time)
        return result

    def of(self, subject_id: int) -> list[tuple[int, Any]]:
        """Return (prediction time, label) of a subject, in order of time."""
        start, stop = np.searchsorted(self.subject_id, [subject_id, subject_id + 1])
        times, values = self.prediction_time[start:stop], self.value[start:stop]
        return list(zip(times.tolist(), values.tolist(), strict=True))

    def look_up(
        self, subject_id: npt.NDArray[np.int64], prediction_time: npt.NDArray[np.int64]
    ) -> npt.NDArray[Any]:
        """Return the label of each (subject, prediction time), which must be one of these."""
        low, end = (np.searchsorted(self.subject_id, subject_id, s) for s in ("left", "right"))
        high = end.copy()  # the first of a subject's labels that is not earlier is in [low, high]
        while len(open_ := np.flatnonzero(low < high)):
            middle = (low[open_] + high[open_]) // 2
            earlier = self.prediction_time[middle] < prediction_time[open_]
            low[open_] = np.where(earlier, middle + 1, low[open_])
            high[open_] = np.where(earlier, high[open_], middle)
        there = low < end
        there[there] = self.prediction_time[low[there]] == prediction_time[there]
        if not there.all():
            raise InputError(
                f"task {self.task}: {np.count_nonzero(~there)} of {len(there)} rows have no label; "
                "the labels were changed while this ran, run it again"
            )
        return self.value[low]

    def only_binary(self, reader: str) -> "Labels":
        """Return these labels; `InputError` where they are of a kind that `reader` cannot read."""
        check_binary(self.task, self.kind, reader)
        return self

    def trained(self, kind: Kind, classes: Sequence[str]) -> "Labels":
        """Return these labels with the classes in the order a model knows them.

        Raises `InputError` for labels of another kind, or of a class that the model does not know.
        """
        check_kind(self.task, (self.kind, self.classes), (kind, classes))
        if kind != "classes":
            return self
        place = np.array([classes.index(name) for name in self.classes], np.int64)
        return replace(self, value=place[self.value], classes=tuple(classes))

    def notes(self) -> Iterator[str]:
        """Yield a line on what was left out, if anything was."""
        yield from left_out_lines(self.task, self.unknown, self.repeated)


def check_binary(task: str, kind: Kind, reader: str) -> None:
    """Raise `InputError` where labels are of a kind that `reader` cannot read."""
    if kind != "binary":
        raise InputError(
            f"task {task}: its labels are of the kind {kind}, and {reader} reads "
            "binary ones (boolean_value) alone; choose another task"
        )


def check_kind(
    task: str, found: tuple[Kind, Sequence[str]], wanted: tuple[Kind, Sequence[str]]
) -> None:
    """Raise `InputError` for labels of another kind than is wanted, or of a class that is not.

    Both are a kind and, of classes, their names.
    """
    (own, own_classes), (kind, classes) = found, wanted
    if own != kind:
        more = ""
        if own == "classes":
            names = ", ".join(f'"{name}"' for name in own_classes)
            more = f" 'task.classes=[{names}]'"
        raise InputError(
            f"task {task}: its labels are of the kind {own}, not {kind}; train with "
            f"task.kind={own}{more}, or give another task"
        )
    strange = [name for name in own_classes if name not in classes]
    if strange:
        raise InputError(
            f"task {task}: label {strange[0]!r} is none of task.classes "
            f"({', '.join(classes)}); add it there, or correct the labels"
        )


def left_out_lines(task: str, unknown: int, repeated: int) -> Iterator[str]:
    """Yield a line on the rows of a task that are left out, if any are."""
    parts = [
        f"{count:,} {what}"
        for count, what in ((unknown, "without an answer"), (repeated, "that repeat another"))
        if count
    ]
    if parts:
        yield f"task {task}: left out label rows: {', '.join(parts)}"


def task_name(parts: Sequence[str]) -> str:
    """Return the task of a label file from its path below `labels/`, without the suffix.

    Folders of splits and numbers of shards are no part of it; a slash becomes `-`, so that the
    name can be a file's.

    >>> task_name(["in-hospital", "mortality", "train", "0"])
    'in-hospital-mortality'
    """
    return "-".join(_task_parts(parts)) or _UNNAMED


def _task_parts(parts: Sequence[str]) -> tuple[str, ...]:
    kept = [part for part in parts if part not in SPLIT_NAMES]
    while kept and (len(kept) > 1 or len(parts) > 1) and _SHARD.fullmatch(kept[-1]):
        kept.pop()
    return tuple(kept)


def label_files(cohort: Path) -> dict[str, list[Path]]:
    """Return the label files of each task, by name; `InputError` where two have one name."""
    folder = Path(cohort) / "labels"
    found: dict[str, list[Path]] = {}
    origin: dict[str, tuple[str, ...]] = {}
    for path in sorted(folder.glob("**/*.parquet")):
        parts = path.relative_to(folder).with_suffix("").parts
        if any(part.startswith(".") for part in parts):
            continue
        name, key = task_name(parts), _task_parts(parts)
        if origin.setdefault(name, key) != key:
            raise InputError(
                f"{path}: its task would be called {name}, as that of {found[name][0]} is; "
                "rename one of them"
            )
        found.setdefault(name, []).append(path)
    return dict(sorted(found.items()))


def tasks_of(cohort: Path) -> list[str]:
    """Return the names of a cohort's tasks."""
    return list(label_files(cohort))


def choose_task(cohort: Path, wanted: str | None) -> str | None:
    """Return the task to evaluate: the wanted one, `mortality`, the first, None without labels.

    A task of nested folders may be asked for with slashes.
    """
    there = tasks_of(cohort)
    wanted = None if wanted is None else canonical_task(wanted)
    if wanted is not None and wanted not in there:
        known = ", ".join(there) if there else "none; --task none evaluates without labels"
        raise InputError(f"{cohort}: no labels for task {wanted!r}; it has {known}")
    if wanted is not None or not there:
        return wanted
    return PREFERRED if PREFERRED in there else there[0]


def read_labels(cohort: Path, task: str) -> Labels:
    """Return the labels of a task; one row for each (subject, prediction time).

    The one column with answers says of what kind the task is (`answers.KINDS`). Rows without an
    answer and exact repeats are left out and counted. Raises `InputError` for answers in several
    columns, one that is none, a row without subject or time, and two answers at one time.
    """
    return read_label_files(task, task_files(cohort, task))


def task_files(cohort: Path, task: str) -> list[Path]:
    """Return the label files of a task, whose times say a zone if those of the events do.

    Raises `InputError` where there are none, and where only the one or the other have a zone: they
    would be hours apart.
    """
    paths = label_files(cohort).get(canonical_task(task))
    if paths is None:
        raise InputError(f"{cohort}: no labels for task {task!r}; ingest the cohort again")
    shard = next(iter(parquet_below(Path(cohort) / "data")), None)
    events = None if shard is None else _zoned(shard, "time")
    for path in paths:
        labels = _zoned(path, "prediction_time")
        if None not in (events, labels) and events != labels:
            one, other = (path, shard) if labels else (shard, path)
            raise InputError(
                f"{one}: times with a zone, but none in {other}; give both with a zone, or none "
                "(the local clock)"
            )
    return paths


def _zoned(path: Path, name: str) -> bool | None:
    """Whether a column of times says a zone; None where there is no such column."""
    with files.reads(path, REMEDY), in_place.parquet(path) as file:
        schema = file.schema_arrow
    if name not in schema.names or not pa.types.is_temporal(schema.field(name).type):
        return None
    return is_zoned(schema.field(name).type)


def first_kind(paths: Sequence[Path]) -> Kind:
    """Return the kind of the first answer in a task's files, of which no more is read.

    Without any answer it is that of the first column that could hold one.
    """
    kinds: list[Kind] = []
    for path in paths:
        for start, table in _batches(path, REMEDY):
            found = read_answers([(path, table)], [range(start, start + len(table))])
            if found.known.any():
                return found.kind
            kinds.append(found.kind)
    return kinds[0]


def read_label_files(
    task: str,
    paths: Sequence[Path],
    subjects: npt.NDArray[np.int64] | None = None,
    remedy: str = REMEDY,
) -> Labels:
    """Return the labels of a task from its files; see `read_labels`.

    With `subjects`, ascending, int64 [S], the files are passed over and those of these subjects
    alone are held, which is what a shard needs. `remedy` is for a file that cannot be read.
    """
    read = [_rows_of(path, subjects, remedy) for path in paths]
    found = read_answers(
        [(p, table) for p, (_, table) in zip(paths, read, strict=True)], [rows for rows, _ in read]
    )
    subject = np.concatenate([_integers(table["subject_id"]) for _, table in read])
    time = np.concatenate([_microseconds(table["prediction_time"]) for _, table in read])
    del read
    known, value = found.known, found.value
    if not known.all():
        subject, time, value = subject[known], time[known], value[known]
    if not _ascending(subject, time):  # as ingest writes them; to sort takes several copies
        order = np.lexsort((value, time, subject))
        subject, time, value = subject[order], time[order], value[order]
    twice = np.zeros(len(subject), bool)
    twice[1:] = (subject[1:] == subject[:-1]) & (time[1:] == time[:-1])
    clash = int(np.sum(twice[1:] & (value[1:] != value[:-1])))
    if clash:
        raise InputError(
            f"{paths[0] if len(paths) == 1 else paths[0].parent}: two labels of one subject at one "
            f"prediction time, {clash} times; keep one of them"
        )
    if twice.any():
        subject, time, value = subject[~twice], time[~twice], value[~twice]
    left_out = int((~known).sum()), int(twice.sum())
    kind, classes, column = found.kind, found.classes, found.column
    return Labels(task, subject, time, value, *left_out, kind, classes, column)


def _ascending(subject: npt.NDArray[np.int64], time: npt.NDArray[np.int64]) -> bool:
    """Return whether each (subject, time) is after the one before it."""
    later = subject[1:] > subject[:-1]
    later |= (subject[1:] == subject[:-1]) & (time[1:] > time[:-1])
    return bool(later.all())


def _rows_of(
    path: Path, subjects: npt.NDArray[np.int64] | None, remedy: str
) -> tuple[Numbers, pa.Table]:
    """Return the rows of a label file, as their numbers from 1 and its columns that count."""
    end, rows, pieces = 1, [np.zeros(0, np.int64)], []
    for start, table in _batches(path, remedy):
        end = start + len(table)
        if subjects is not None:
            there = is_among(_integers(table["subject_id"]), subjects)
            table = table.filter(pa.array(there))
            rows.append(start + np.flatnonzero(there))
        pieces.append(table)
    whole = pa.concat_tables(pieces)
    return range(1, end) if subjects is None else np.concatenate(rows), whole


def _batches(path: Path, remedy: str) -> Iterator[tuple[int, pa.Table]]:
    """Yield the columns of a label file that count, some rows at a time, the first time none.

    With them comes the number of their first row, from 1.
    """
    with files.reads(path, remedy), files.open_parquet(path) as file:
        schema = file.schema_arrow
        _check_columns(path, schema)
        columns = [name for name in (*_KEYS, *KINDS) if name in schema.names]
        start = 1
        yield start, pa.schema([schema.field(name) for name in columns]).empty_table()
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
            _check_keys(path, batch, start)
            yield start, pa.Table.from_batches([batch]).select(columns)
            start += len(batch)


def is_among(ids: npt.NDArray[np.int64], known: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which ids, in any order, are among others, which are ascending; bool [N]."""
    if not len(known):
        return np.zeros(len(ids), bool)
    at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    found: npt.NDArray[np.bool_] = known[at] == ids
    return found


def _integers(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.int64]:
    return np.asarray(column.cast(pa.int64()).to_numpy())


def _microseconds(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return _integers(column.cast(pa.timestamp("us"), safe=False))


def _check_columns(path: Path, schema: pa.Schema) -> None:
    absent = [name for name in _KEYS if name not in schema.names]
    if absent:
        raise InputError(
            f"{path}: no column {absent[0]}; labels have subject_id, prediction_time and an answer"
        )
    subject, time = (schema.field(name).type for name in _KEYS)
    if not pa.types.is_integer(subject) or not pa.types.is_temporal(time):
        raise InputError(
            f"{path}: subject_id is {subject} and prediction_time {time}, which must be "
            "integers and timestamps; run `ehr-ray ingest --source meds`"
        )


def _check_keys(path: Path, batch: pa.RecordBatch, start: int) -> None:
    for name in _KEYS:
        missing = np.flatnonzero(batch[name].is_null().to_numpy(zero_copy_only=False))
        if len(missing):
            raise InputError(
                f"{path}: row {start + missing[0]}: no {name}; give one or drop the row"
            )
