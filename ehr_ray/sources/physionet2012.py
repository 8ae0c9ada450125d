"""PhysioNet/Computing in Cardiology Challenge 2012: one text file a stay, `Time,Parameter,Value`.

The value -1, or none, means missing in every parameter: no parameter is legitimately -1, since all
are masses, pressures, counts, concentrations or codes.
"""

import codecs
import csv
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.admissions import STAY, stay_day_labels
from ehr_ray.sources.parsing.cells import by_unique, events_table, since_epoch
from ehr_ray.sources.parsing.labels import label_rows
from ehr_ray.sources.parsing.quantities import PLAIN, quantities
from ehr_ray.sources.parsing.quarantine import UNRECORDED, Rejects
from ehr_ray.sources.source import FILES_PER_UNIT, Chunk, Source, Unit
from ehr_ray.storage.contents import walked

STATICS: Final = ("Age", "Gender", "Height", "ICUType")
"""Descriptors of the stay, written without a time. Weight is measured again and stays timed."""

LABEL_MINUTE: Final = 48 * 60.0
LONG_STAY_DAYS: Final = 3
COLUMNS: Final = ["Time", "Parameter", "Value"]
HEADER: Final = b"Time,Parameter,Value\n"
CHUNK_BYTES: Final = 8 << 20

_STAY: Final = re.compile(r"\d+\.txt")
_OUTCOMES: Final = re.compile(r"Outcomes.*\.txt")
_ARCHIVE: Final = re.compile(r".*\.(tar\.gz|tgz|tar)")
_CLOCK: Final = re.compile(r"([0-9]{1,3}):([0-5][0-9])")


@dataclass(frozen=True)
class Physionet2012Options:
    """Which outcomes are tasks."""

    tasks: str | None = field(
        default=None,
        metadata={
            "help": "tasks besides: `length_of_stay`, whose days are a number, and in classes "
            "length_of_stay_class; -1 is unknown, and a stay of less than two days had ended"
        },
    )

    def __post_init__(self) -> None:
        """Refuse a task that is none."""
        if self.tasks not in (None, STAY):
            raise InputError(f"--tasks {self.tasks}: {STAY} is what there is besides; give that")


def units(path: Path, options: Physionet2012Options) -> list[Unit]:  # noqa: ARG001
    """List archives, groups of stays of one folder, and files of outcomes, in order of name."""
    if path.is_file():
        found = _units_of(str(path.parent), "", [path.name])
    else:
        found = []
        for prefix, names in walked(path):
            found += _units_of(str(path), prefix, names)
    if not any(unit.kind != "outcomes" for unit in found):
        raise InputError(f"--input {path}: no <RecordID>.txt and no set-*.tar.gz in it")
    return found


def _units_of(root: str, prefix: str, files: list[str]) -> list[Unit]:
    found = [
        Unit(root, (prefix + name,), kind)
        for name in files
        for kind, pattern in (("archive", _ARCHIVE), ("outcomes", _OUTCOMES))
        if pattern.fullmatch(name)
    ]
    stays = [prefix + name for name in files if _STAY.fullmatch(name)]
    for start in range(0, len(stays), FILES_PER_UNIT):
        found.append(Unit(root, tuple(stays[start : start + FILES_PER_UNIT]), "stays"))
    return found


def read(unit: Unit, options: Physionet2012Options) -> Iterator[Chunk]:
    """Yield stays, about 500,000 rows at a time, and labels."""
    if unit.kind == "archive":
        files = _members(os.path.join(unit.root, unit.files[0]), unit.files[0])
    else:
        files = _files(unit)
    group: list[tuple[str, bytes]] = []
    size = 0
    for name, data in files:
        if _OUTCOMES.fullmatch(os.path.basename(name)):
            yield _outcomes(name, data, lengths=options.tasks is not None)
            continue
        group.append((name, data))
        size += len(data)
        if size >= CHUNK_BYTES:
            yield _stays(group)
            group, size = [], 0
    if group:
        yield _stays(group)


def _files(unit: Unit) -> Iterator[tuple[str, bytes]]:
    for name in unit.files:
        with open(os.path.join(unit.root, name), "rb") as file:
            yield name, file.read()


def _members(path: str, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield the stays and outcomes of an archive.

    A damaged archive is an `InputError`: it counts as one file but holds thousands of stays.
    """
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                base = os.path.basename(member.name)
                if member.isfile() and (_STAY.fullmatch(base) or _OUTCOMES.fullmatch(base)):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield f"{name}/{member.name.removeprefix('./')}", file.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise InputError(f"{path}: corrupt archive ({error}); fetch it again") from None


def _stays(files: list[tuple[str, bytes]]) -> Chunk:
    rejects = Rejects()
    names, blobs, lines = [], [], []
    for name, data in files:
        data = _clean(data)
        body = data[len(HEADER) :] if data.startswith(HEADER) else data
        if not body:
            rejects.file(name, "empty: no measurements")
            continue
        names.append(name)
        blobs.append(data)
        lines.append(data.count(b"\n"))
    rows = _parse(b"".join(blobs), names, np.array(lines, np.int64), rejects)
    events, subjects = rows if rows else (Chunk().events, None)
    return Chunk(
        events=events,
        **rejects.tables(),
        rows_read=sum(lines) - sum(blob.startswith(HEADER) for blob in blobs),
        files_read=len(files),
        subjects=subjects,
    )


def _clean(data: bytes) -> bytes:
    """Return the file without a mark of UTF-8, with Unix line ends and exactly one at its end."""
    data = data.removeprefix(codecs.BOM_UTF8)
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    data = data.rstrip(b"\n")
    return data + b"\n" if data else b""


def _parse(
    data: bytes, names: list[str], lines: np.ndarray, rejects: Rejects
) -> tuple[pa.Table, pa.Table] | None:
    """Return (events, subjects) of files joined end to end, `lines` rows each."""
    if not names:
        return None
    table, skipped = _cells(data)
    row = np.delete(np.arange(lines.sum()), [number - 1 for number, _ in skipped])
    ends = np.cumsum(lines)
    file = np.searchsorted(ends, row, side="right")
    line = row - (ends - lines)[file] + 1

    def place(number: int) -> tuple[str, int]:
        owner = int(np.searchsorted(ends, number, side="right"))
        return names[owner], number - int((ends - lines)[owner]) + 1

    for number, text in skipped:
        rejects.row(*place(number - 1), f"not Time,Parameter,Value: {text!r}")
    ids = np.array([int(os.path.basename(name)[:-4]) for name in names], np.int64)
    times, codes, values = (table[name].combine_chunks() for name in COLUMNS)
    header = (line == 1) & by_unique(times, lambda cell: cell == "Time", np.bool_)
    minute = by_unique(times, _minute, np.float64)
    code = by_unique(codes, _code, object)
    value, kinds = quantities(values)
    record = code == "RecordID"
    reasons = (
        (np.isnan(minute), lambda i: f"time {_show(times[i])} is not HH:MM"),
        (code == "", lambda i: f"parameter {_show(codes[i])} is not a name"),
        (record & (value != ids[file]), lambda i: f"RecordID {_show(values[i])} in another file"),
    )
    bad = header.copy()
    for mask, reason in reasons:
        rejects.rows(mask & ~bad, lambda i: place(int(row[i])), reason)
        bad |= mask
    missing = (value == -1) | (np.isnan(value) & (kinds == PLAIN))
    kept = ~bad & ~record & ~missing
    for name, count in Counter(code[~bad & ~record & missing]).items():
        rejects.change(UNRECORDED, count, name)
    seen = np.bincount(file[kept], minlength=len(names)) > 0
    for i in np.flatnonzero(~seen):
        rejects.file(names[i], "empty: no measurements")
    static = np.isin(code, STATICS)
    when, _ = since_epoch(np.where(static, np.nan, minute)[kept], 1.0)
    events = events_table(ids[file[kept]], when, pa.array(code[kept], pa.string()), value[kept])
    rejects.odd_values(events, kinds[kept])
    subjects = pa.table({"subject_id": ids[seen], "file": pa.array(np.array(names)[seen])})
    return events, subjects


def _cells(data: bytes) -> tuple[pa.Table, list[tuple[int, str]]]:
    """Return the rows of three cells, and (number from 1, text) of all others."""
    skipped: list[tuple[int, str]] = []
    if not data.isascii():
        data = data.decode(errors="replace").encode()  # else a bad row could not be shown

    def skip(row: Any) -> str:
        skipped.append((row.number, row.text))
        return "skip"

    table = pa_csv.read_csv(
        pa.BufferReader(data),
        read_options=pa_csv.ReadOptions(
            column_names=COLUMNS, block_size=len(data) + 1, use_threads=False
        ),
        parse_options=pa_csv.ParseOptions(
            quote_char=False, ignore_empty_lines=False, invalid_row_handler=skip
        ),
        convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string())),
    )
    return table, skipped


def _show(cell: pa.Scalar) -> str:
    return repr(cell.as_py())


def _minute(cell: str) -> float:
    match = _CLOCK.fullmatch(cell)
    return int(match[1]) * 60.0 + int(match[2]) if match else np.nan


def _code(cell: str) -> str:
    code = cell.strip()
    return "" if "\ufffd" in code else code


def _outcomes(name: str, data: bytes, *, lengths: bool) -> Chunk:
    """Return the labels of an `Outcomes-*.txt`; -1 is unknown and gives no label.

    With `lengths` the days of a stay are tasks too, of stays that last when they are asked.
    """
    rejects = Rejects()
    rows = list(csv.reader(_clean(data).decode(errors="replace").splitlines()))
    header = [cell.strip() for cell in rows[0]] if rows else []
    needed = ("RecordID", "Length_of_stay", "In-hospital_death")
    if missing := [column for column in needed if column not in header]:
        rejects.file(name, f"no column {missing[0]}")
        return Chunk(rejects=rejects.table(), files_read=1)
    places = [header.index(column) for column in needed]
    died: list[tuple[int, bool]] = []
    stayed: list[tuple[int, float]] = []
    for line, cells in enumerate(rows[1:], start=2):
        try:
            number, days, death = (float(cells[place]) for place in places)
            record = int(number)
            if death not in (-1, 0, 1) or record != number or not np.isfinite(days):
                raise ValueError(death)
        except (ValueError, IndexError, OverflowError):
            rejects.row(name, line, f"not a row of outcomes: {','.join(cells)!r}")
            continue
        if death >= 0:
            died.append((record, death == 1))
        if days >= 0:
            stayed.append((record, days))
    who = np.array([record for record, _ in stayed], np.int64)
    known = np.array([days for _, days in stayed], np.float64)
    dead = np.array(died, np.int64).reshape(-1, 2)
    labels = {
        "mortality": label_rows(dead[:, 0], dead[:, 1] == 1, LABEL_MINUTE),
        "length_of_stay_3d": label_rows(who, known > LONG_STAY_DAYS, LABEL_MINUTE),
    }
    if lengths:
        lasting = known * 24 * 60.0 >= LABEL_MINUTE
        labels |= stay_day_labels(who[lasting], known[lasting], LABEL_MINUTE)
    return Chunk(labels=labels, rejects=rejects.table(), rows_read=len(rows) - 1, files_read=1)


DESCRIPTIONS: Final = {
    "Age": "Age (years)",
    "Gender": "Gender (0 female, 1 male)",
    "Height": "Height (cm)",
    "ICUType": "1 coronary care, 2 cardiac surgery recovery, 3 medical, 4 surgical",
    "Weight": "Weight (kg)",
    "ALP": "Alkaline phosphatase (IU/L)",
    "ALT": "Alanine transaminase (IU/L)",
    "AST": "Aspartate transaminase (IU/L)",
    "Albumin": "Albumin (g/dL)",
    "BUN": "Blood urea nitrogen (mg/dL)",
    "Bilirubin": "Bilirubin (mg/dL)",
    "Cholesterol": "Cholesterol (mg/dL)",
    "Creatinine": "Serum creatinine (mg/dL)",
    "DiasABP": "Invasive diastolic arterial blood pressure (mmHg)",
    "FiO2": "Fractional inspired oxygen (0-1)",
    "GCS": "Glasgow coma score (3-15)",
    "Glucose": "Serum glucose (mg/dL)",
    "HCO3": "Serum bicarbonate (mmol/L)",
    "HCT": "Hematocrit (%)",
    "HR": "Heart rate (bpm)",
    "K": "Serum potassium (mmol/L)",
    "Lactate": "Lactate (mmol/L)",
    "MAP": "Invasive mean arterial blood pressure (mmHg)",
    "MechVent": "Mechanical ventilation (1 = on)",
    "Mg": "Serum magnesium (mmol/L)",
    "NIDiasABP": "Non-invasive diastolic arterial blood pressure (mmHg)",
    "NIMAP": "Non-invasive mean arterial blood pressure (mmHg)",
    "NISysABP": "Non-invasive systolic arterial blood pressure (mmHg)",
    "Na": "Serum sodium (mmol/L)",
    "PaCO2": "Partial pressure of arterial carbon dioxide (mmHg)",
    "PaO2": "Partial pressure of arterial oxygen (mmHg)",
    "Platelets": "Platelets (cells/nL)",
    "RespRate": "Respiration rate (breaths/min)",
    "SaO2": "Oxygen saturation in hemoglobin (%)",
    "SysABP": "Invasive systolic arterial blood pressure (mmHg)",
    "Temp": "Temperature (degrees Celsius)",
    "TroponinI": "Troponin I (ug/L)",
    "TroponinT": "Troponin T (ug/L)",
    "Urine": "Urine output (mL)",
    "WBC": "White blood cell count (cells/nL)",
    "pH": "Arterial pH",
}

SOURCE: Final = Source(
    name="physionet2012",
    description="PhysioNet Challenge 2012: folders or set-*.tar.gz of stays, and Outcomes-*.txt",
    options=Physionet2012Options,
    units=units,
    read=read,
    descriptions=DESCRIPTIONS,
    limits=("physionet2012", "none"),
)
