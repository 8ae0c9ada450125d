"""The trials of a search as one table, read from their run directories."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ehr_ray.family import Select
from ehr_ray.runtime.training.ranking import MEASURES
from ehr_ray.runtime.tuning.trial import known_progress, read_trial
from ehr_ray.train import history

FIRST = (
    "trial",
    "status",
    "score",
    "best_step",
    "collapsed",
    "untrained",
    "step",
    "epoch",
    "seconds",
    "error",
)


@dataclass(frozen=True)
class Sweep:
    """A search's trials, best first."""

    frame: pd.DataFrame
    """A row a trial: `FIRST`, the swept paths, then the metrics of the report that was kept."""
    paths: tuple[str, ...]
    select: Select
    curves: dict[int, pd.DataFrame]
    """Of each trial its measures: `step`, `epoch`, `score` (higher is better) and the rest."""

    @property
    def best(self) -> dict[str, Any] | None:
        """The best trial that is fit to be it; None where there is none.

        Its latent tells patients apart, and it beats one that trained to its end and is fit too:
        where all of those have collapsed, one that the scheduler stopped is only the least known.
        """
        frame = self.frame
        if not len(frame):
            return None
        fit = np.isfinite(frame["score"]) & ~frame["collapsed"] & ~frame["untrained"]
        if not (fit & (frame["status"] == "finished")).any():
            return None
        return {str(k): v for k, v in frame.iloc[0].items()}


def read_sweep(root: Path, select: Select) -> Sweep:
    """Return the trials of a search, best first; last those collapsed or untrained, or unscored.

    A trial is worth what it scored at the report whose checkpoint was kept, at `best_step`; `step`,
    `epoch` and `seconds` are how far it went.
    """
    rows, curves = [], {}
    paths: dict[str, None] = {}
    for folder in sorted((root / "trials").glob("[0-9]*")):
        record = read_trial(folder)
        if not record:
            continue
        number = int(record["trial"])
        paths |= dict.fromkeys(record["sample"])
        curves[number] = history.read(folder, file=MEASURES)
        rows.append(_row(folder, record, select))
    frame = pd.DataFrame(rows, columns=None if rows else list(FIRST))
    if len(frame):
        value = frame["score"].where(np.isfinite(frame["score"]), math.nan)
        order = pd.DataFrame(
            {
                "none": value.isna(),
                "collapsed": frame["collapsed"] | frame["untrained"],
                "value": value if select.mode == "min" else -value,
                "trial": frame["trial"],
            }
        ).sort_values(["none", "collapsed", "value", "trial"])
        frame = frame.loc[order.index].reset_index(drop=True)
    return Sweep(frame, tuple(paths), select, curves)


def _row(folder: Path, record: dict[str, Any], select: Select) -> dict[str, Any]:
    progress = known_progress(folder)
    reports = history.read(folder)
    last = _at(reports, None)
    kept = _at(reports, progress.best_step if progress else None)
    kept |= _at(history.read(folder, file=MEASURES), progress.best_step if progress else None)
    kept.pop("score", None)
    failed = record["status"] == "failed"
    row = {
        "trial": int(record["trial"]),
        "status": record["status"],
        "score": math.nan if failed else float(kept.get(select.metric, math.nan)),
        "best_step": int(kept.get("step", 0)),
        "collapsed": bool(kept.get("latent/collapsed", 0.0) >= 1.0),
        "untrained": bool(kept.get("latent/untrained", 0.0) >= 1.0),
        "step": progress.step if progress else int(last.get("step", 0)),
        "epoch": float(last.get("epoch", 0.0)),
        "seconds": progress.seconds if progress else float(last.get("seconds", 0.0)),
        "error": record.get("error", ""),
        **record["sample"],
    }
    names = ("val/", "latent/", "probe/")
    return row | {k: float(v) for k, v in kept.items() if k.startswith(names)}


def _at(reports: pd.DataFrame, step: int | None) -> dict[str, Any]:
    """Return the report of a step, or the last one where that is gone."""
    if not len(reports):
        return {}
    rows = reports[reports["step"] == step]
    row = (rows if len(rows) else reports).iloc[-1]
    return {str(k): v for k, v in row.items() if pd.notna(v)}
