"""`history.parquet`: a row per report, rewritten whole so that it is never half there."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa

from ehr_ray.storage import files

HISTORY = "history.parquet"


def append(run: Path, row: Mapping[str, float], file: str = HISTORY) -> None:
    """Add one report; a row of the same or a later step (from before a kill) is replaced."""
    kept = read(run, before=int(row["step"]), file=file)
    frame = pd.concat([kept, pd.DataFrame([dict(row)])], ignore_index=True)
    frame = frame.astype({"step": "int64", "epoch": "float64"})
    files.write_parquet(pa.Table.from_pandas(frame, preserve_index=False), run / file)


def read(run: Path, *, before: int | None = None, file: str = HISTORY) -> pd.DataFrame:
    """Return the reports of a run (those of steps below `before`); empty if it has none."""
    path = run / file
    if not path.is_file():
        return pd.DataFrame()
    remedy = "restore it, or remove it to go on without its earlier reports"
    frame = files.read_parquet(path, remedy=remedy).to_pandas()
    return frame if before is None else frame[frame["step"] < before]
