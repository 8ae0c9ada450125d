"""`history.parquet`: a row per report, rewritten whole so that it is never half there."""

import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

HISTORY = "history.parquet"


def append(run: Path, row: Mapping[str, float], file: str = HISTORY) -> None:
    """Add one report; a row of the same or a later step (from before a kill) is replaced."""
    kept = read(run, before=int(row["step"]), file=file)
    frame = pd.concat([kept, pd.DataFrame([dict(row)])], ignore_index=True)
    frame = frame.astype({"step": "int64", "epoch": "float64"})
    partial = run / f".{file}.{os.getpid()}"
    frame.to_parquet(partial, index=False)
    os.replace(partial, run / file)


def read(run: Path, *, before: int | None = None, file: str = HISTORY) -> pd.DataFrame:
    """Return the reports of a run (those of steps below `before`); empty if it has none."""
    path = run / file
    if not path.is_file():
        return pd.DataFrame()
    frame = pd.read_parquet(path)
    return frame if before is None else frame[frame["step"] < before]
