"""Names and Arrow schemas of what a cohort holds: a MEDS dataset (meds >= 0.4) on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from ehr_ray.errors import InputError

SPLITS: Final = ("train", "tuning", "held_out")

RECORD: Final = Path("metadata") / "ingest.json"
"""What made a cohort, the counts of its summary, and the names of its shards by split."""

EVENTS: Final = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("time", pa.timestamp("us")),
        pa.field("code", pa.string(), nullable=False),
        pa.field("numeric_value", pa.float32()),
    ]
)
"""One row per event; sorted by subject, then time with nulls (static events) first."""

LABELS: Final = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("prediction_time", pa.timestamp("us"), nullable=False),
        pa.field("boolean_value", pa.bool_()),
    ]
)

SUBJECT_SPLITS: Final = pa.schema(
    [pa.field("subject_id", pa.int64(), nullable=False), pa.field("split", pa.string())]
)

REJECTED: Final = pa.schema(
    [pa.field("file", pa.string()), pa.field("line", pa.int64()), pa.field("reason", pa.string())]
)
"""Quarantine: what was bad and why; `line` is null where a whole file was refused."""

VECTORS: Final = pa.schema(
    [
        pa.field("code", pa.string(), nullable=False),
        pa.field("vector", pa.list_(pa.float32()), nullable=False),
    ]
)
"""The embedding of each code, in `VECTORS_FILE` of a cohort whose events came embedded."""
VECTORS_FILE: Final = Path("metadata") / "vectors.parquet"

EXPANDED: Final = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("variable", pa.string(), nullable=False),
        pa.field("value", pa.float32()),
        pa.field("time", pa.float64()),
        pa.field("set_index", pa.int32()),
        pa.field("age", pa.float64()),
        pa.field("is_carry", pa.bool_()),
    ]
)
"""Output of last-value-carry-forward; `time` and `age` in minutes, `value` z-scored."""

ORIGIN_CODES: Final = (
    "ADMISSION",
    "HOSPITAL_ADMISSION",
    "INPATIENT_ADMISSION",
    "ICU_ADMISSION",
    "UNIT_ADMISSION",
    "VISIT//IP",
    "VISIT//ERIP",
    "VISIT/IP",
    "VISIT/ERIP",
    "Visit/IP",
    "Visit/ERIP",
)
"""Codes, alone or before a slash, that set a subject's time origin and are never tokens.

The names that the common MEDS conversions (MIMIC-IV, eICU, OMOP, EHRSHOT) give to an admission; a
visit to the emergency department or to an outpatient clinic is none.
"""

BIRTH_CODES: Final = ("MEDS_BIRTH", "BIRTH", "DATE_OF_BIRTH", "SNOMED/3950001", "SNOMED//3950001")
"""Codes, alone or before a slash, of a birth, which is never a time origin."""

SPLIT_NAMES: Final = {
    "train": "train",
    "training": "train",
    "tuning": "tuning",
    "valid": "tuning",
    "validation": "tuning",
    "val": "tuning",
    "dev": "tuning",
    "held_out": "held_out",
    "test": "held_out",
    "testing": "held_out",
}
"""Names that datasets give to the three splits."""


def is_zoned(kind: pa.DataType) -> bool:
    """Whether times of a type say their zone, UTC or another."""
    return pa.types.is_timestamp(kind) and kind.tz is not None


def is_origin(code: str, names: Sequence[str] = ORIGIN_CODES) -> bool:
    """Whether `code` marks an admission: one of `names`, alone or as in `ICU_ADMISSION//MICU`."""
    return code.startswith(tuple(names)) and any(
        code == name or code.startswith(f"{name}/") for name in names
    )


def is_birth(code: str) -> bool:
    """Whether `code` marks a birth."""
    return is_origin(code, BIRTH_CODES)


def parse_origin(text: str, option: str) -> tuple[str, ...]:
    """Return the codes of a comma-separated list; `InputError` where one is a birth or blank."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise InputError(f"{option} {text!r}: a code is blank; write CODE or CODE,CODE")
    births = [name for name in names if is_birth(name)]
    if births:
        raise InputError(f"{option} {births[0]}: a birth is no time origin; name an admission")
    return names


def place_admitted_to(code: str) -> str:
    """Return where an admission is to: `icu`, or `hospital`, as a bare `ADMISSION` is too."""
    return "icu" if code.startswith(("ICU_", "UNIT_")) else "hospital"
