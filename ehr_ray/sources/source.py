"""What a raw source is: a record of functions that turn an input into bounded chunks of events."""

import dataclasses
import difflib
import importlib
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.schema import EVENTS, ORIGIN_CODES, REJECTED
from ehr_ray.storage import sync

EPOCH: Final = datetime(2000, 1, 1)
"""Minute 0 of sources whose time is relative to admission."""

CHUNK_ROWS: Final = 1_000_000
"""Rows a reader holds before it yields them."""

FILES_PER_UNIT: Final = 2_000
"""Per-patient files read by one unit of work."""

SOURCES: Final = {
    "physionet2012": "ehr_ray.sources.physionet2012",
    "mimic-iv": "ehr_ray.sources.mimic_iv",
    "eicu": "ehr_ray.sources.eicu",
    "omop": "ehr_ray.sources.omop",
    "meds": "ehr_ray.sources.meds",
    "patient-parquet": "ehr_ray.sources.patient_parquet",
    "table": "ehr_ray.sources.table",
    "tokenised": "ehr_ray.sources.tokenised",
    "synthetic": "ehr_ray.sources.synthetic",
    "hourly-h5": "ehr_ray.sources.hourly_h5",
    "synthetic-vitals": "ehr_ray.sources.synthetic_vitals",
    "hancock": "ehr_ray.sources.hancock.reader",
    "modality-h5": "ehr_ray.sources.modality_h5",
    "embedded-pt": "ehr_ray.train.embedded_source",
}
"""Name on the command line -> module with a `SOURCE`; one that reads by torch stands above."""

LABEL_VALUES: Final = ("boolean_value", "float_value", "integer_value", "categorical_value")
"""The value columns of MEDS labels; a task has one of them."""


CHANGES: Final = pa.schema(
    [pa.field("code", pa.string()), pa.field("change", pa.string()), pa.field("count", pa.int64())]
)
"""What was read otherwise than it stood, and how often; no code where it is not about one."""

INEQUALITIES: Final = pa.schema([*EVENTS, pa.field("text_value", pa.string())])
"""Events whose value is a bound, such as `>100`: the number is their value, the text says so."""


@dataclass(frozen=True)
class Unit:
    """A deterministic, picklable piece of an input: what one task reads.

    Args:
        root: folder that `files` and `uses` are relative to, or the address of a database.
        files: what is read: files, or tables.
        kind: which of the source's readers reads it.
        split: the split its folder says, if any.
        start: first row group, byte or subject, where a unit is part of a file or of a count.
        stop: one past the last.
        line: of the file, from 1, that begins at the byte `start`.
        uses: files read besides, which other units may share.
        size: bytes, where there is no file to measure.
        state: what tells a database from a changed one, where there is no file to look at.
        packed: of a large compressed CSV file, which several tasks may read once it is unpacked:
            what stands between its cells, and its encoding.
        piece: the file of the staging folder that has the lines of the unit, unpacked.
    """

    root: str = ""
    files: tuple[str, ...] = ()
    kind: str = "events"
    split: str | None = None
    start: int = 0
    stop: int = 0
    line: int = 1
    uses: tuple[str, ...] = ()
    size: int = 0
    state: str = ""
    packed: tuple[str, str] | None = None
    piece: str = ""


@dataclass(frozen=True, eq=False)
class Chunk:
    """A bounded piece of what a unit holds.

    Args:
        events: the `EVENTS` columns and, where the source brings its own splits, a string
            column `split` (null = none said). Any order; ties of time keep it.
        labels: task -> `subject_id`, one column of `LABEL_VALUES`, `prediction_time` and `minute`.
            A null time means `minute` minutes after the subject's origin; both null, its end.
        rejects: what was refused (`REJECTED`); a null line means the whole file.
        rows_read: rows seen, refused ones included.
        files_read: files finished, refused ones included.
        subjects: `subject_id` and `file`, from sources with one file a subject.
        names: `subject_id` and `name`, one row for each spelling of an identifier.
        codes: `code` and `description`.
        changes: `CHANGES` rows.
        inequalities: `INEQUALITIES` rows.
        vectors: `VECTORS` rows, of codes whose events come embedded.
        lost_rows: rows of the unit's only file that is refused for damage: what the unit gave
            before is dropped, and all its rows count as refused.
    """

    events: pa.Table = field(default_factory=EVENTS.empty_table)
    labels: Mapping[str, pa.Table] = field(default_factory=dict)
    rejects: pa.Table = field(default_factory=REJECTED.empty_table)
    rows_read: int = 0
    files_read: int = 0
    subjects: pa.Table | None = None
    names: pa.Table | None = None
    codes: pa.Table | None = None
    changes: pa.Table | None = None
    inequalities: pa.Table | None = None
    vectors: pa.Table | None = None
    lost_rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything a raw format brings.

    Args:
        name: as on the command line.
        description: one line for `--help`.
        options: frozen dataclass; every field has a default and `metadata={"help": ...}`.
        units: (input, options) -> the work, in a fixed order.
        read: (unit, options) -> its chunks, in bounded memory.
        database_units: likewise of the address of a database, where one can be read.
        needs_input: whether `--input` is required.
        relative_time: whether time counts from `EPOCH`, so that every subject is given an
            `ADMISSION` there.
        descriptions: code -> what it is, for `codes.parquet`.
        describe: (a unit, codes) -> `code` and `description`, where a table of the input has words
            for codes: looked up once, at the end.
        split_table: input -> its own table of subject_id and split, which counts before the
            `split` of chunks.
        walks: folders of the input of which every file with a fitting name is read, "" for the
            input itself: a cohort in one of them would be read as a part of the input.
        positive: options -> task -> what its positive class is, for `tasks.json`.
        origin: codes of a subject's minute 0, unless `--origin` names others.
        limits: tables of plausible ranges and of units that are applied unless `--ranges` and
            `--units` say otherwise.
    """

    name: str
    description: str
    options: type
    units: Callable[[Path, Any], list[Unit]]
    read: Callable[[Unit, Any], Iterator[Chunk]]
    database_units: Callable[[str, Any], list[Unit]] | None = None
    needs_input: bool = True
    relative_time: Callable[[Any], bool] = lambda _: True
    descriptions: Mapping[str, str] = field(default_factory=dict)
    describe: Callable[[Unit, Collection[str]], pa.Table] | None = None
    split_table: Callable[[Path], Path | None] = lambda _: None
    walks: tuple[str, ...] = ()
    positive: Callable[[Any], Mapping[str, str]] | None = None
    origin: tuple[str, ...] = ORIGIN_CODES
    limits: tuple[str, str] = ("none", "none")


@dataclass(frozen=True)
class Option:
    """One `--flag` of a source."""

    flag: str
    name: str
    type: type
    choices: tuple[str, ...]
    default: Any
    help: str


def count_codes(codes: pa.ChunkedArray | pa.Array, change: str) -> pa.Table:
    """Return the `CHANGES` rows of one change that happened to events of these codes."""
    return changes_of(codes.value_counts(), change)


def changes_of(counts: pa.StructArray, change: str) -> pa.Table:
    """Return the `CHANGES` rows of one change, from the `value_counts` of codes."""
    names, numbers = counts.field("values"), counts.field("counts")
    return pa.table([names, pa.repeat(change, len(names)), numbers], schema=CHANGES)


def get_source(name: str) -> Source:
    """Return the source called `name`, or raise `InputError` naming those there are."""
    if name not in SOURCES:
        close = difflib.get_close_matches(name, SOURCES, 1)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(SOURCES)}"
        raise InputError(f"--source {name}: not available; {hint}")
    source: Source = importlib.import_module(SOURCES[name]).SOURCE
    return source


def options_of(source: Source) -> list[Option]:
    """List a source's options as command-line flags, in the order of its dataclass.

    `type` is what one cell of text converts to (int, float, str or Path); `choices` is empty
    unless the option is a closed list of words.
    """
    hints = typing.get_type_hints(source.options)
    return [
        Option(
            flag="--" + f.name.replace("_", "-"),
            name=f.name,
            type=_plain_type(hints[f.name]),
            choices=_choices(hints[f.name]),
            default=f.default,
            help=f.metadata["help"],
        )
        for f in dataclasses.fields(source.options)
    ]


def make_options(source: Source, given: Mapping[str, object]) -> Any:
    """Build a source's options from text or typed values; None means the default.

    A file at a URI is copied here.
    """
    known = {option.name: option for option in options_of(source)}
    values = {}
    for key, value in given.items():
        option = known.get(key.replace("-", "_"))
        if option is None:
            flags = ", ".join(o.flag for o in known.values()) or "none"
            flag = "--" + key.replace("_", "-")
            raise InputError(f"{flag}: no option of --source {source.name}; it has {flags}")
        if value is not None:
            values[option.name] = _convert(option, value)
    return source.options(**values)


def _convert(option: Option, value: object) -> object:
    if option.type is Path and isinstance(value, (str, Path)):
        value = sync.fetch(value)
    try:
        converted = option.type(value)
    except (TypeError, ValueError):
        kind = {int: "whole number", float: "number"}.get(option.type, option.type.__name__)
        raise InputError(f"{option.flag} {value}: not a {kind}") from None
    if option.choices and converted not in option.choices:
        raise InputError(f"{option.flag} {value}: choose from {', '.join(option.choices)}")
    return converted


def _plain_type(hint: Any) -> type:
    if isinstance(hint, types.UnionType):
        (hint,) = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    return str if typing.get_origin(hint) is Literal else typing.cast(type, hint)


def _choices(hint: Any) -> tuple[str, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
