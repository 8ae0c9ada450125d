"""Event rows of a cohort shard to patients: the unit everything downstream works on."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ehr_ray.errors import InputError
from ehr_ray.events.schema import RECORD, SPLITS, is_birth, is_origin, place_admitted_to
from ehr_ray.events.vocabulary import Vocabulary, as_float32
from ehr_ray.storage import files, in_place
from ehr_ray.storage.listing import texts_below

MICROSECONDS_PER_MINUTE = 60_000_000
REMEDY: Final = "ingest the cohort again"
_STATIC = np.iinfo(np.int64).min


@dataclass(frozen=True, eq=False)
class Patient:
    """All events of one subject, static first, then in time order.

    Args:
        subject_id: MEDS subject id.
        origin: minute 0, microseconds since 1970: the first admission, else the first timed event
            that is no birth.
        time: microseconds since 1970, int64 [E]; the smallest int64 for static events.
        code: vocabulary ids, int32 [E].
        value: numeric values, float32 [E]; NaN where an event has none.
        admitted: when each admission began, int64 [A], ascending, as `time`; to the place that the
            first one is to, so an ICU admission within a hospital's is none of its own.
        first: the first timed event that is no birth, as `origin`; None: the origin.
        seen_until: the prediction time it was cut at, as `time`; None: it is whole.
    """

    subject_id: int
    origin: int
    time: npt.NDArray[np.int64]
    code: npt.NDArray[np.int32]
    value: npt.NDArray[np.float32]
    admitted: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    first: int | None = None
    seen_until: int | None = None

    @cached_property
    def static(self) -> npt.NDArray[np.bool_]:
        """Whether an event has no time, [E]."""
        return self.time == _STATIC

    @cached_property
    def minute(self) -> npt.NDArray[np.float64]:
        """Minutes since the origin, [E]: negative before it, 0 for static events."""
        return np.where(self.static, 0, self.time - self.origin) / MICROSECONDS_PER_MINUTE

    @property
    def end_minute(self) -> float:
        """Minutes from the origin to the prediction time; of a whole patient to the last event."""
        end = self.seen_until
        if end is None:
            end = max(self.origin, int(self.time.max(initial=self.origin)))
        return (end - self.origin) / MICROSECONDS_PER_MINUTE

    def timed(self, vocabulary: Vocabulary) -> bool:
        """Whether any event has a time, a birth aside."""
        return bool((~self.static & ~vocabulary.births[self.code]).any())

    def until(self, prediction_time: int) -> "Patient":
        """Return the patient as known at `prediction_time` (microseconds since 1970), inclusive.

        Before the first admission nobody knows of it: the origin is then the first event.
        """
        known = self.time <= prediction_time
        origin = self.origin
        if prediction_time < origin:
            origin = min(origin if self.first is None else self.first, prediction_time)
        return Patient(
            self.subject_id,
            origin,
            self.time[known],
            self.code[known],
            self.value[known],
            self.admitted[self.admitted <= prediction_time],
            self.first,
            prediction_time,
        )


def without_events_line(count: int, rows: int) -> str:
    """Return a sentence on rows of which nothing but static values is known."""
    return (
        f"{count:,} of {rows:,} rows have no timed event that the model knows until their "
        "prediction time: their scores come from static values alone; see that the prediction "
        "times are not before the records"
    )


def cohort_shards(cohort: Path, split: str) -> list[Path]:
    """Return the shards of one split, in order of their number or name; [] if it has none."""
    return [*map(Path, _shards(cohort, split))]


def _shards(cohort: Path, split: str) -> list[str]:
    folder = Path(cohort) / "data"
    if not folder.is_dir():
        raise InputError(
            f"{cohort}: not a cohort (no data/ folder); make one with `ehr-ray ingest`"
        )
    found = sorted(texts_below(folder / split))
    found.sort(key=os.path.basename)
    found.sort(key=lambda path: len(os.path.basename(path)))
    _check_complete(Path(cohort), split, found)
    return found


def shard_names(cohort: Path, split: str, shards: Sequence[str | Path]) -> list[str]:
    """Return a file name, without suffix, for what is made of each shard of a split.

    Shards of a MEDS dataset may lie in folders: `a/0` and `b/0` are two. InputError for two whose
    names would be one.
    """
    folder = f"{Path(cohort) / 'data' / split}{os.sep}"
    paths = [os.path.splitext(str(path).removeprefix(folder))[0] for path in shards]
    names = [path.replace(os.sep, "-") for path in paths]
    if len(set(names)) < len(names):
        first: dict[str, str] = {}
        one, other = next(
            (o, p) for p, n in zip(paths, names, strict=True) if (o := first.setdefault(n, p)) != p
        )
        raise InputError(
            f"{folder}{other}.parquet: has the name of {one}.parquet where / is written -; "
            "rename one of them"
        )
    return names


def _check_complete(cohort: Path, split: str, found: list[str]) -> None:
    """Raise InputError for a shard that ingest wrote and that is gone.

    Its patients would be missed by nobody. A split whose folder is gone was taken away on purpose.
    """
    note = cohort / RECORD
    if not (cohort / "data" / split).is_dir() or not note.is_file():
        return
    with files.reads(note, "restore it, or ingest the cohort again"):
        try:
            written = json.loads(note.read_text()).get("shards", {}).get(split, [])
        except (ValueError, AttributeError) as error:
            raise OSError(f"not JSON as ingest writes it: {error}") from error
    gone = {str(name) for name in written} - {*map(os.path.basename, found)}
    if gone:
        raise InputError(
            f"{cohort / 'data' / split / min(gone)}: gone, {len(gone)} of {len(written)} shards "
            f"that ingest wrote; restore what is missing, or ingest the cohort again"
        )


def splits_of(cohort: Path) -> dict[str, list[Path]]:
    """Return the shards of every split that has any; a cohort with none is an error."""
    return {split: [*map(Path, paths)] for split, paths in texts_of(cohort).items()}


def texts_of(cohort: Path) -> dict[str, list[str]]:
    """Return `splits_of` with paths as text, which of many costs less."""
    shards = {split: _shards(cohort, split) for split in SPLITS}
    found = {split: paths for split, paths in shards.items() if paths}
    if not found:
        raise InputError(
            f"{cohort}: no shards under data/{{{','.join(SPLITS)}}}; "
            "run `ehr-ray ingest --source meds` to give it splits"
        )
    return found


def read_patients(
    path: Path, vocabulary: Vocabulary, *, batch_rows: int = 1 << 18
) -> Iterator[Patient]:
    """Yield the patients of a shard, whole, in file order, holding about `batch_rows` rows.

    A shard of a store that is not here is read where it lies, its columns by ranges of bytes.

    Admissions that only mark the origin are left out; codes the vocabulary does not know are too.
    Raises `InputError` naming the shard if it is corrupt, unsorted or cuts a subject in two.
    """
    done: set[int] = set()
    with files.reads(path, REMEDY), in_place.parquet(path, REMEDY) as file:
        for table in whole_subjects(file, path, _columns(file, path), batch_rows):
            yield from _split(table, vocabulary, path, done)


def whole_subjects(
    file: pq.ParquetFile, path: Path, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.Table]:
    """Yield the rows of a file, about `batch_rows` at a time, none of its subjects cut in two."""
    rest: pa.Table | None = None
    for batch in file.iter_batches(batch_rows, columns=list(columns)):
        table = pa.Table.from_batches([batch])
        table = table if rest is None else pa.concat_tables([rest, table])
        if batch["subject_id"].null_count:
            raise InputError(f"{path}: a row without subject_id; ingest the cohort again")
        subject = table["subject_id"].to_numpy()
        cut = len(subject) - int(np.argmax(np.append(subject[::-1] != subject[-1], True)))
        rest = table.slice(cut)
        if cut:
            yield table.slice(0, cut)
    if rest is not None and len(rest):
        yield rest


def patients_of(table: pa.Table, vocabulary: Vocabulary) -> Iterator[Patient]:
    """Yield the patients of `EVENTS` in memory, sorted as a shard is."""
    if len(table):
        yield from _split(table, vocabulary, Path("events"), set())


def _columns(file: pq.ParquetFile, path: Path) -> list[str]:
    names = set(file.schema_arrow.names)
    missing = {"subject_id", "time", "code"} - names
    if missing:
        raise InputError(
            f"{path}: no column {sorted(missing)}; a MEDS shard has subject_id, time, code"
        )
    return [n for n in ("subject_id", "time", "code", "numeric_value") if n in names]


def _split(
    table: pa.Table, vocabulary: Vocabulary, path: Path, done: set[int]
) -> Iterator[Patient]:
    subject = table["subject_id"].to_numpy()
    times = table["time"].cast(pa.timestamp("us")).cast(pa.int64())
    time = times.fill_null(int(_STATIC)).to_numpy()
    starts = np.flatnonzero(np.append(True, subject[1:] != subject[:-1]))
    ends = np.append(starts[1:], len(subject))
    if np.any((time[1:] < time[:-1]) & (subject[1:] == subject[:-1])):
        raise InputError(
            f"{path}: events are not sorted by time; run `ehr-ray ingest --source meds`"
        )
    encoded = table["code"].combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    indices = encoded.indices.to_numpy()
    code = vocabulary.encode(names)[indices]
    origins = [is_origin(name, vocabulary.origin) for name in names]
    origin_code = np.array(origins, bool)[indices]
    to_icu = np.array([place_admitted_to(name) == "icu" for name in names], bool)[indices]
    value = (
        as_float32(table["numeric_value"])
        if "numeric_value" in table.column_names
        else np.full(len(subject), np.nan, np.float32)
    )
    birth = np.array([is_birth(name) for name in names], bool)[indices]
    origin, first = _origins(time, origin_code, birth, starts)
    token = ~origin_code & (code >= 0)
    spans = zip(starts.tolist(), ends.tolist(), origin.tolist(), first.tolist(), strict=True)
    for start, end, at, begun in spans:
        who = int(subject[start])
        if who in done:
            raise InputError(
                f"{path}: the events of a subject are in two places; "
                "run `ehr-ray ingest --source meds`"
            )
        done.add(who)
        keep = token[start:end]
        rows = slice(start, end)
        admission = np.flatnonzero(origin_code[rows] & (time[rows] != _STATIC)) + start
        admitted = time[admission[to_icu[admission] == to_icu[admission[:1]]]]
        events = time[rows][keep], code[rows][keep], value[rows][keep]
        yield Patient(who, at, *events, admitted, begun)


def _origins(
    time: npt.NDArray[np.int64],
    admission: npt.NDArray[np.bool_],
    birth: npt.NDArray[np.bool_],
    starts: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return each subject's (origin, first timed event that is no birth), `starts` its first row.

    The origin is the first admission, else that event, else the birth, else 0.
    """
    timed = time != _STATIC
    row, none = np.arange(len(time)), len(time)
    found = [
        np.minimum.reduceat(np.where(rows & timed, row, none), starts)
        for rows in (admission, ~birth, birth)
    ]
    first = np.where(found[1] < none, found[1], found[2])
    origin = np.where(found[0] < none, found[0], first)
    padded = np.append(time, 0)
    return padded[origin], padded[first]
