"""`benchmark --only lvcf`: last value carried forward by arrays, and as a loop in pandas has it."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from ehr_ray.commands.benchmark.timing import Numbers, cpu_seconds
from ehr_ray.events.carry import carry_forward
from ehr_ray.events.patients import Patient, cohort_shards, read_patients
from ehr_ray.runtime.data.dataset import vocabulary_of

WINDOW: Final = 2880.0
"""Minutes that a value is carried."""


def lvcf(cohort: Path, place: Path) -> Numbers:  # noqa: ARG001
    """Tokens a CPU second of the array function beside a pandas one, on one core; equal output."""
    vocabulary = vocabulary_of(cohort, 1)
    patients = list(read_patients(cohort_shards(cohort, "train")[0], vocabulary))[:200]
    few = patients[:20]
    frames = [_frame(patient) for patient in few]
    fast, slow = _carry_all(few), [carry_in_pandas(frame, WINDOW) for frame in frames]
    for ours, theirs in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(ours.code, theirs["code"])
        np.testing.assert_allclose(ours.age, theirs["age"])
    tokens = sum(len(t.code) for t in _carry_all(patients))
    rate = tokens / cpu_seconds(lambda: _carry_all(patients), rounds=5)
    reference = sum(map(len, slow)) / cpu_seconds(
        lambda: [carry_in_pandas(frame, WINDOW) for frame in frames], rounds=1
    )
    return {
        "million tokens per CPU second": rate / 1e6,
        "pandas, million tokens per CPU second": reference / 1e6,
        "ratio": rate / reference,
    }


def carry_in_pandas(events: pd.DataFrame, window: float) -> pd.DataFrame:
    """Last value carried forward as it is usually written: a loop over minutes, in pandas."""
    parts, seen = [], pd.DataFrame()
    minute: Any  # pandas types it as any scalar
    for index, (minute, live) in enumerate(events.groupby("minute", sort=True)):
        live = live.drop_duplicates("code", keep="last").assign(last=minute)
        if len(seen):
            old = seen[~seen["code"].isin(live["code"])]
            fresh = old["static"] | (minute - old["last"] <= window)
            carried = old[fresh & (old["value"].notna() | old["static"])]
        else:
            old = carried = seen
        rows = pd.concat([live, carried]) if len(carried) else live
        parts.append(rows.assign(set_index=index, age=minute - rows["last"]).sort_values("code"))
        seen = pd.concat([old, live]) if len(old) else live
    return pd.concat(parts)


def _frame(patient: Patient) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "minute": patient.minute,
            "code": patient.code,
            "value": patient.value,
            "static": patient.static,
        }
    )


def _carry_all(patients: list[Patient]) -> list[Any]:
    return [carry_forward(p.minute, p.code, p.value, p.static, window=WINDOW) for p in patients]
