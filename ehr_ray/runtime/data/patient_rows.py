"""Patients as rows of Ray Data: one row a patient, in list columns, so that no batch cuts one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from ehr_ray.events.carry import PatientSets, Tokens
from ehr_ray.events.patients import Patient
from ehr_ray.runtime.data.rows import Cut

_EVENTS = ("time", "code", "value", "admitted")
_TOKENS = tuple(field.name for field in fields(Tokens))


@dataclass(frozen=True, eq=False)
class PatientRow:
    """A patient, when it is to be seen, and which rows of its split that makes."""

    patient: Patient | PatientSets
    cuts: Sequence[Cut] | None
    index: Sequence[int]


def as_table(rows: Sequence[PatientRow]) -> pa.Table:
    """Return patients as a table; all of them are events, or all are sets."""
    columns: dict[str, list[object]] = {
        "index": [np.array(row.index, np.int64) for row in rows],
        "cut": [None if row.cuts is None else [time for time, _ in row.cuts] for row in rows],
        "label": [None if row.cuts is None else [said for _, said in row.cuts] for row in rows],
        "subject_id": [row.patient.subject_id for row in rows],
    }
    patients = [row.patient for row in rows]
    if isinstance(patients[0], Patient):
        for name in ("origin", "first", *_EVENTS):
            columns[name] = [getattr(patient, name) for patient in patients]
    else:
        tokens = [patient.tokens for patient in patients if isinstance(patient, PatientSets)]
        for name in _TOKENS:
            columns[name] = [getattr(one, name) for one in tokens]
    types = {"cut": pa.list_(pa.int64()), "label": pa.list_(pa.float64()), "first": pa.int64()}
    return pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})


def from_table(table: pa.Table) -> Iterator[PatientRow]:
    """Yield the patients of a table."""
    names = table.column_names
    arrays = [name for name in dict.fromkeys((*_EVENTS, *_TOKENS)) if name in names]
    others = [name for name in names if name not in arrays]
    for batch in table.to_batches():
        lists = {name: batch[name] for name in arrays}
        plain = batch.select(others).to_pylist()
        for place, row in enumerate(plain):
            own = {name: _array(values[place]) for name, values in lists.items()}
            cuts = None if row["cut"] is None else list(zip(row["cut"], row["label"], strict=True))
            patient: Patient | PatientSets
            if "origin" in names:
                time, code, value, admitted = (own[name] for name in _EVENTS)
                patient = Patient(
                    row["subject_id"], row["origin"], time, code, value, admitted, row["first"]
                )
            else:
                patient = PatientSets(row["subject_id"], Tokens(**own))
            yield PatientRow(patient, cuts, row["index"])


def _array(value: pa.ListScalar) -> np.ndarray:
    return np.asarray(value.values.to_numpy(zero_copy_only=False))
