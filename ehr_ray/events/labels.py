"""Task labels of a cohort: who, when the prediction is made, and the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from ehr_ray.errors import InputError
from ehr_ray.storage import files

PREFERRED = "mortality"


@dataclass(frozen=True, eq=False)
class Labels:
    """Binary labels, sorted by (subject, prediction time); N rows."""

    task: str
    subject_id: npt.NDArray[np.int64]
    prediction_time: npt.NDArray[np.int64]
    """Microseconds since 1970: nothing later may reach a model."""
    value: npt.NDArray[np.bool_]

    def cuts(self) -> dict[int, list[int]]:
        """Return the prediction times of each subject, ascending."""
        result: dict[int, list[int]] = {}
        for subject, time in zip(
            self.subject_id.tolist(), self.prediction_time.tolist(), strict=True
        ):
            result.setdefault(subject, []).append(time)
        return result

    def answers(self) -> dict[int, list[tuple[int, bool]]]:
        """Return (prediction time, label) of each subject, in order of time."""
        result: dict[int, list[tuple[int, bool]]] = {}
        rows = zip(
            self.subject_id.tolist(),
            self.prediction_time.tolist(),
            self.value.tolist(),
            strict=True,
        )
        for subject, time, value in rows:
            result.setdefault(subject, []).append((time, value))
        return result

    def look_up(
        self, subject_id: npt.NDArray[np.int64], prediction_time: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Return the label of each (subject, prediction time), which must be one of these."""
        known = zip(self.subject_id.tolist(), self.prediction_time.tolist(), strict=True)
        value = dict(zip(known, self.value.tolist(), strict=True))
        pairs = zip(subject_id.tolist(), prediction_time.tolist(), strict=True)
        found = [value.get(pair) for pair in pairs]
        if None in found:
            raise InputError(
                f"task {self.task}: {found.count(None)} of {len(found)} rows have no label; the "
                "labels were changed while this ran, run it again"
            )
        return np.array(found, bool)


def tasks_of(cohort: Path) -> list[str]:
    """Return the names of a cohort's label files."""
    return sorted(path.stem for path in (Path(cohort) / "labels").glob("*.parquet"))


def choose_task(cohort: Path, wanted: str | None) -> str | None:
    """Return the task to evaluate: the wanted one, `mortality`, the first, None without labels."""
    there = tasks_of(cohort)
    if wanted is not None and wanted not in there:
        known = ", ".join(there) if there else "none; --task none evaluates without labels"
        raise InputError(f"{cohort}: no labels for task {wanted!r}; it has {known}")
    if wanted is not None or not there:
        return wanted
    return PREFERRED if PREFERRED in there else there[0]


def read_labels(cohort: Path, task: str) -> Labels:
    """Return the boolean labels of a task; one row for each (subject, prediction time)."""
    path = Path(cohort) / "labels" / f"{task}.parquet"
    table = files.read_parquet(path, remedy="ingest the cohort again")
    _require(path, table.column_names, ("subject_id", "prediction_time", "boolean_value"))
    table = table.filter(pa.compute.is_valid(table["boolean_value"]))
    table = table.sort_by([("subject_id", "ascending"), ("prediction_time", "ascending")])
    time = table["prediction_time"].cast(pa.timestamp("us")).cast(pa.int64()).to_numpy()
    subject = table["subject_id"].to_numpy()
    twice = (subject[1:] == subject[:-1]) & (time[1:] == time[:-1])
    if twice.any():
        raise InputError(
            f"{path}: two labels of one subject at one prediction time, {int(twice.sum())} times; "
            "keep one of them"
        )
    value = table["boolean_value"].to_numpy(zero_copy_only=False).astype(bool)
    return Labels(task, subject, time, value)


def _require(path: Path, names: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InputError(
            f"{path}: no column {missing[0]}; binary tasks have subject_id, prediction_time and "
            "boolean_value"
        )
