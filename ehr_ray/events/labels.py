"""Task labels of a cohort: who, when the prediction is made, and the answer.

A task is `labels/<task>.parquet`, or the files of a folder as ACES and MEDS-DEV write them,
`labels/<task>/<split>/<n>.parquet`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.answers import Kind, read_answers
from ehr_ray.events.schema import SPLIT_NAMES
from ehr_ray.storage import files

PREFERRED = "mortality"
REMEDY = "ingest the cohort again"

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

    def cuts(self) -> dict[int, list[int]]:
        """Return the prediction times of each subject, ascending."""
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
        pairs = zip(subject_id.tolist(), prediction_time.tolist(), strict=True)
        found = [self._answers.get(pair) for pair in pairs]
        if None in found:
            raise InputError(
                f"task {self.task}: {found.count(None)} of {len(found)} rows have no label; the "
                "labels were changed while this ran, run it again"
            )
        return np.array(found, self.value.dtype)

    @cached_property
    def _answers(self) -> dict[tuple[int, int], Any]:
        known = zip(self.subject_id.tolist(), self.prediction_time.tolist(), strict=True)
        return dict(zip(known, self.value.tolist(), strict=True))

    def only_binary(self, reader: str) -> "Labels":
        """Return these labels; `InputError` where they are of a kind that `reader` cannot read."""
        if self.kind != "binary":
            raise InputError(
                f"task {self.task}: its labels are of the kind {self.kind}, and {reader} reads "
                "binary ones (boolean_value) alone; choose another task"
            )
        return self

    def trained(self, kind: Kind, classes: Sequence[str]) -> "Labels":
        """Return these labels with the classes in the order a model knows them.

        Raises `InputError` for labels of another kind, or of a class that the model does not know.
        """
        if self.kind != kind:
            more = ""
            if self.kind == "classes":
                names = ", ".join(f'"{name}"' for name in self.classes)
                more = f" 'task.classes=[{names}]'"
            raise InputError(
                f"task {self.task}: its labels are of the kind {self.kind}, not {kind}; train with "
                f"task.kind={self.kind}{more}, or give another task"
            )
        strange = [name for name in self.classes if name not in classes]
        if strange:
            raise InputError(
                f"task {self.task}: label {strange[0]!r} is none of task.classes "
                f"({', '.join(classes)}); add it there, or correct the labels"
            )
        if kind != "classes":
            return self
        place = np.array([classes.index(name) for name in self.classes], np.int64)
        return replace(self, value=place[self.value], classes=tuple(classes))

    def notes(self) -> Iterator[str]:
        """Yield a line on what was left out, if anything was."""
        parts = [
            f"{count:,} {what}"
            for count, what in (
                (self.unknown, "without an answer"),
                (self.repeated, "that repeat another"),
            )
            if count
        ]
        if parts:
            yield f"task {self.task}: left out label rows: {', '.join(parts)}"


def task_name(parts: Sequence[str]) -> str:
    """Return the task of a label file from its path below `labels/`, without the suffix.

    Folders of splits and numbers of shards are no part of it; a slash becomes `-`, so that the
    name can be a file's.

    >>> task_name(["in-hospital", "mortality", "train", "0"])
    'in-hospital-mortality'
    """
    return "-".join(_task_parts(parts)) or _UNNAMED


def canonical_task(name: str) -> str:
    """Return the name of a task that may be written as its folders, with slashes."""
    return name.strip("/").replace("/", "-")


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
    paths = label_files(cohort).get(canonical_task(task))
    if paths is None:
        raise InputError(f"{cohort}: no labels for task {task!r}; ingest the cohort again")
    return read_label_files(task, paths)


def read_label_files(task: str, paths: Sequence[Path]) -> Labels:
    """Return the labels of a task from its files; see `read_labels`."""
    tables = [(path, files.read_parquet(path, remedy=REMEDY)) for path in paths]
    keys = [_keys(path, table) for path, table in tables]
    subject, time = (np.concatenate(column) for column in zip(*keys, strict=True))
    found = read_answers(tables)
    known = found.known
    order = np.lexsort((found.value[known], time[known], subject[known]))
    subject, time, value = (a[known][order] for a in (subject, time, found.value))
    twice = np.zeros(len(subject), bool)
    twice[1:] = (subject[1:] == subject[:-1]) & (time[1:] == time[:-1])
    clash = int(np.sum(twice[1:] & (value[1:] != value[:-1])))
    if clash:
        raise InputError(
            f"{paths[0] if len(paths) == 1 else paths[0].parent}: two labels of one subject at one "
            f"prediction time, {clash} times; keep one of them"
        )
    kept = ~twice
    return Labels(
        task,
        subject[kept],
        time[kept],
        value[kept],
        int((~known).sum()),
        int(twice.sum()),
        found.kind,
        found.classes,
    )


def _keys(path: Path, table: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    absent = [n for n in ("subject_id", "prediction_time") if n not in table.column_names]
    if absent:
        raise InputError(
            f"{path}: no column {absent[0]}; labels have subject_id, prediction_time and an answer"
        )
    subject, time = table["subject_id"], table["prediction_time"]
    if not pa.types.is_integer(subject.type) or not pa.types.is_temporal(time.type):
        raise InputError(
            f"{path}: subject_id is {subject.type} and prediction_time {time.type}, which must be "
            "integers and timestamps; run `ehr-ray ingest --source meds`"
        )
    for name in ("subject_id", "prediction_time"):
        missing = np.flatnonzero(table[name].is_null().to_numpy())
        if len(missing):
            raise InputError(f"{path}: row {missing[0] + 1}: no {name}; give one or drop the row")
    return (
        subject.cast(pa.int64()).to_numpy(),
        time.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy(),
    )
