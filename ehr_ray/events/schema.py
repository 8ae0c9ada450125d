"""Names and Arrow schemas of what a cohort holds: a MEDS dataset (meds >= 0.4) on disk."""

from pathlib import Path
from typing import Final

import pyarrow as pa

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

ORIGIN_CODES: Final = ("ADMISSION", "ICU_ADMISSION", "HOSPITAL_ADMISSION")
"""Codes (alone or before `//`) that set a subject's time origin and are never tokens."""


def is_origin(code: str) -> bool:
    """Whether `code` marks an admission: `ADMISSION`, or MEDS style `ICU_ADMISSION//MICU`."""
    return code.split("//", 1)[0] in ORIGIN_CODES


def place_admitted_to(code: str) -> str:
    """Return where an admission is to: `icu`, or `hospital`, as a bare `ADMISSION` is too."""
    return "icu" if code.startswith("ICU_") else "hospital"
