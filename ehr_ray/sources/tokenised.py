"""Tokenised records: `{train,tuning,held_out}/*.parquet|json|jsonl` with vocab.csv and labels.csv.

A record is one patient: `subject_id`, `tokens` (ids of vocab.csv) and `timestamps` (Unix seconds; 0
or null is static). Pickles are refused, since reading one runs whatever code it holds.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.phrases import LEVELS
from ehr_ray.sources.parsing.cells import events_table
from ehr_ray.sources.parsing.csv_files import whole_csv
from ehr_ray.sources.parsing.labels import label_rows
from ehr_ray.sources.parsing.parquet_files import READ_ERRORS
from ehr_ray.sources.parsing.split_folders import files_by_split
from ehr_ray.sources.source import Chunk, Source, Unit
from ehr_ray.storage import files

VOCABULARY: Final = "vocab.csv"
LABELS: Final = "labels.csv"
TASK: Final = "case"
SUFFIXES: Final = (".parquet", ".json", ".jsonl")
PICKLES: Final = (".pkl", ".pickle", ".pt", ".pth")
ENDS: Final = frozenset({"<start>", "<end>", "<pad>"})
MEASURED: Final = ("LAB//", "MEASUREMENT//", "MEDICAL//BMI", "MEDICAL//bp_")
PATIENTS: Final = 2_000
"""Records made to events at once."""
MONTH_SECONDS: Final = 30.4375 * 86_400
_NUMBER: Final = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")


@dataclass(frozen=True)
class TokenisedOptions:
    """How tokens become events, and when the prediction is made."""

    values: Literal["joined", "apart"] = field(
        default="joined",
        metadata={"help": "a value, bin or unit after a measurement: its event's, or an event"},
    )
    unlabelled: Literal["refuse", "keep"] = field(
        default="refuse", metadata={"help": "patients without a row in labels.csv"}
    )
    cutoff_months: float | None = field(
        default=None,
        metadata={
            "help": f"predict so long before cancerdate, of controls before the last event; above "
            f"0, and needed where there is a {LABELS}"
        },
    )


def units(path: Path, options: TokenisedOptions) -> list[Unit]:
    """List the record files of the split folders; each uses vocab.csv and labels.csv.

    `InputError` for labels without a cutoff: what is known at the label's own time tells it.
    """
    if not path.is_dir():
        raise InputError(f"--input {path}: must be a folder with train/ and {VOCABULARY}")
    if not (path / VOCABULARY).is_file():
        raise InputError(f"--input {path}: no {VOCABULARY} (columns token, str) in it")
    _words.cache_clear()  # the files may have been written anew since
    _labels.cache_clear()
    uses = [name for name in (VOCABULARY, LABELS) if (path / name).is_file()]
    if LABELS in uses and not (options.cutoff_months or 0) > 0:
        raise InputError(
            f"--cutoff-months {options.cutoff_months}: {path / LABELS} dates what is to be "
            "predicted, and a prediction then would read it; say how long before, as in 6"
        )
    found: list[Unit] = []
    for folder, split, names in files_by_split(path, (*SUFFIXES, *PICKLES), _is_of_records):
        for name in names if split else ():
            if name.lower().endswith(PICKLES):
                raise InputError(
                    f"--input {path / folder / name}: a pickle runs code when it is read; where "
                    "you trust it, convert it: pandas.DataFrame(pickle.load(open(F, 'rb')))"
                    ".to_parquet(...)"
                )
            found.append(Unit(str(path), (f"{folder}/{name}",), split=split, uses=tuple(uses)))
    if not found:
        raise InputError(f"--input {path}: no {', '.join(SUFFIXES)} in train/, tuning/, held_out/")
    return found


def _is_of_records(path: Path) -> bool:
    if path.suffix.lower() in PICKLES:
        return False
    try:
        first = next(_records(str(path), path.name), None)
    except InputError:
        return False
    return isinstance(first, dict) and {"tokens", "timestamps"} <= {*first}


def read(unit: Unit, options: TokenisedOptions) -> Iterator[Chunk]:
    """Yield the events and labels of a file, about 2,000 patients at a time."""
    words = _words(os.path.join(unit.root, VOCABULARY))
    labels = _labels(os.path.join(unit.root, LABELS)) if LABELS in unit.uses else None
    group: list[dict[str, Any]] = []
    for record in _records(os.path.join(unit.root, unit.files[0]), unit.files[0]):
        group.append(record)
        if len(group) == PATIENTS:
            yield _chunk(unit, group, words, labels, options)
            group = []
    if group:
        yield _chunk(unit, group, words, labels, options)
    yield Chunk(files_read=1)


def _records(path: str, name: str) -> Iterator[dict[str, Any]]:
    try:
        if path.lower().endswith(".parquet"):
            for batch in files.open_parquet(path).iter_batches(PATIENTS):
                yield from batch.to_pylist()
        elif path.lower().endswith(".jsonl"):
            with open(path, encoding="utf-8") as file:
                yield from (json.loads(line) for line in file if line.strip())
        else:
            found = json.loads(Path(path).read_text("utf-8"))
            yield from found if isinstance(found, list) else [found]
    except (*READ_ERRORS, ValueError) as error:
        raise files.unreadable(name, error, "write it again") from None


def _chunk(
    unit: Unit,
    records: list[dict[str, Any]],
    words: dict[int, str],
    labels: dict[int, tuple[bool, float | None]] | None,
    options: TokenisedOptions,
) -> Chunk:
    ids: list[int] = []
    codes: list[str] = []
    values: list[float] = []
    times: list[float] = []
    answers: list[tuple[int, bool, float]] = []
    for record in records:
        subject = _subject(unit, record)
        last = 0.0
        for code, value, second in _events(unit, record, words, options):
            ids.append(subject)
            codes.append(code)
            values.append(value)
            times.append(second)
            last = max(last, 0.0 if np.isnan(second) else second)
        if labels is None:
            continue
        if subject not in labels:
            if options.unlabelled == "refuse":
                raise InputError(
                    f"{unit.files[0]}: a subject has no row in {LABELS}; add it, or ingest "
                    "such patients without a label with --unlabelled keep"
                )
            continue
        case, when = labels[subject]
        at = (last if when is None else when) - (options.cutoff_months or 0) * MONTH_SECONDS
        answers.append((subject, case, at))
    split = pa.repeat(unit.split, len(ids))
    events = events_table(np.array(ids, np.int64), _stamps(times), pa.array(codes), _f64(values))
    given = {}
    if answers:
        who = np.array([answer[0] for answer in answers], np.int64)
        stamps = pa.array(_stamps([answer[2] for answer in answers]))
        given[TASK] = label_rows(who, [answer[1] for answer in answers], times=stamps)
    return Chunk(
        events=events.append_column("split", split.cast(pa.string())),
        labels=given,
        rows_read=sum(len(record["tokens"]) for record in records),
    )


def _subject(unit: Unit, record: dict[str, Any]) -> int:
    try:
        subject, tokens = int(record["subject_id"]), record["tokens"]
        if len(tokens) != len(record["timestamps"]):
            raise InputError(
                f"{unit.files[0]}: a subject has {len(tokens)} tokens and "
                f"{len(record['timestamps'])} timestamps; they must be as many"
            )
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{unit.files[0]}: a record without subject_id, tokens and timestamps; it needs all"
        ) from None
    return subject


def _events(
    unit: Unit,
    record: dict[str, Any],
    words: dict[int, str],
    options: TokenisedOptions,
) -> Iterator[tuple[str, float, float]]:
    """Yield (code, value or NaN, Unix second or NaN) of one patient."""
    known = []
    for token, second in zip(record["tokens"], record["timestamps"], strict=True):
        if token not in words:
            raise InputError(
                f"{unit.files[0]}: a subject has token id {token}, which {VOCABULARY} has "
                "not; give the vocabulary these tokens were made with"
            )
        if words[token] not in ENDS:
            known.append((words[token], _time(unit, second)))
    place = 0
    while place < len(known):
        code, second = known[place]
        value, place = np.nan, place + 1
        if options.values == "joined" and code.startswith(MEASURED) and place < len(known):
            follower = known[place][0]
            if _NUMBER.fullmatch(follower):
                value, place = float(follower), place + 1
                unit_text = known[place][0] if place < len(known) else "//"
                if "//" not in unit_text and not unit_text.startswith(("<", "AGE", "MEDS_")):
                    code, place = f"{code}//{unit_text}", place + 1
            elif follower.lower() in LEVELS:
                code, place = f"{code}//{follower.lower()}", place + 1
        yield code, value, second


def _time(unit: Unit, second: Any) -> float:
    """Return the Unix second of a timestamp, NaN where it is static."""
    try:
        found = float(second) if second else np.nan
    except (TypeError, ValueError):
        found = np.inf
    if np.isinf(found):
        raise InputError(
            f"{unit.files[0]}: the timestamp {str(second)!r} is no number; write Unix seconds, and "
            "0 for static"
        )
    return found


@lru_cache(maxsize=4)
def _words(path: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for row in whole_csv(path, ("token", "str")):
        try:
            token = int(row["token"])
        except ValueError as error:
            raise InputError(f"{path}: column token holds no whole number ({error})") from None
        if (other := found.setdefault(token, row["str"])) != row["str"]:
            raise InputError(
                f"{path}: token {token} is {other!r} and {row['str']!r}; keep one of them"
            )
    return found


@lru_cache(maxsize=4)
def _labels(path: str) -> dict[int, tuple[bool, float | None]]:
    """Return subject -> (is a case, Unix second of its date or None)."""
    found: dict[int, tuple[bool, float | None]] = {}
    for row in whole_csv(path, ("subject_id", "is_case")):
        if row["is_case"].strip() not in ("0", "1", "0.0", "1.0"):
            raise InputError(f"{path}: is_case {row['is_case']!r} of a subject is not 0 or 1")
        label = (float(row["is_case"]) == 1, _second(path, row.get("cancerdate") or ""))
        if found.setdefault(int(float(row["subject_id"])), label) != label:
            raise InputError(f"{path}: two labels of one subject; keep one of them")
    return found


def _second(path: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        day = date.fromisoformat(text.strip()[:10])
    except ValueError:
        raise InputError(f"{path}: cancerdate {text!r} is not a date as in 2020-01-31") from None
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


def _stamps(seconds: list[float]) -> np.ndarray:
    array = np.array(seconds, np.float64)
    whole = np.where(np.isnan(array), 0, array * 1e6).round().astype("datetime64[us]")
    return np.where(np.isnan(array), np.datetime64("NaT"), whole)


def _f64(values: list[float]) -> np.ndarray:
    return np.array(values, np.float64)


SOURCE: Final = Source(
    name="tokenised",
    description="{train,tuning,held_out}/*.parquet|json of token ids, with vocab.csv, labels.csv",
    options=TokenisedOptions,
    units=units,
    read=read,
    relative_time=lambda _: False,
)
