"""Patient to rows, rows to a batch that holds only what was observed.

B patients, T rows, F features, C statistics of a cell, E observed cells.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ehr_ray.errors import ConfigError
from ehr_ray.events.blocks import RowStore
from ehr_ray.events.follow_up import followed_codes, measured_codes
from ehr_ray.events.normalize import z_score
from ehr_ray.events.patients import Patient
from ehr_ray.events.schema import ORIGIN_CODES
from ehr_ray.events.visits import Features, choose_features, rows_of
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.jepa.config import JEPAConfig
from ehr_ray.family import Batch, Row


def features_of(config: JEPAConfig, vocabulary: Vocabulary) -> Features:
    """Return what the rows of an experiment tell; raises ConfigError if no code is left to."""
    features = choose_features(
        vocabulary,
        config.rows,
        max_values=config.max_values,
        max_flags=config.max_flags,
        outcomes=config.outcomes,
        flows=config.flows,
        discharges=config.discharges,
    )
    if not (features.code >= 0).any():
        raise ConfigError(
            f"model.outcomes: {list(config.outcomes)} with max_values={config.max_values} and "
            f"max_flags={config.max_flags} leave none of {len(vocabulary):,} codes as a feature; "
            "exclude fewer"
        )
    return features


def predictable(store: RowStore) -> NDArray[np.bool_]:
    """Return which patients have a row to predict and another to predict it from."""
    return store.sizes("minute") >= 2


def remedy(config: JEPAConfig) -> str:
    """Return what to do where nobody has."""
    if config.rows == "hours":
        return "a row is an hour with observations: give longer stays"
    return (
        f"a row is an admission, which begins at a code {', '.join(ORIGIN_CODES)} (alone or before "
        "//): give patients with several, or use model.rows=hours"
    )


def transform(patient: Patient, config: JEPAConfig, vocabulary: Vocabulary) -> Row:
    """Return the hours or visits of a patient, events with the statistics of their cell so far.

    With a time-to-event head also when each followed code came, and when the record ends; with one
    of future values what each asked code was measured at.
    """
    features = features_of(config, vocabulary)
    rows = rows_of(patient, features)
    return {
        "subject_id": np.array(patient.subject_id),
        "num_features": np.array(len(features)),
        **vars(rows),
        **(_followed(patient, config, vocabulary) if config.followed else {}),
        **(_measured(patient, config, vocabulary) if config.measured else {}),
    }


def _followed(patient: Patient, config: JEPAConfig, vocabulary: Vocabulary) -> Row:
    slot, timed = _slots(patient, followed_codes(config.followed, vocabulary))
    here = slot >= 0
    return {
        "followed_minute": patient.minute[here].astype(np.float64),
        "followed_code": slot[here].astype(np.int32),
        "end": np.array(patient.minute[timed].max(initial=0.0), np.float64),
    }


def _measured(patient: Patient, config: JEPAConfig, vocabulary: Vocabulary) -> Row:
    slot, _ = _slots(patient, measured_codes(config.measured, vocabulary))
    here = (slot >= 0) & np.isfinite(patient.value)
    scaled = np.arcsinh(z_score(patient.value[here], patient.code[here], vocabulary))
    return {
        "measured_minute": patient.minute[here].astype(np.float64),
        "measured_code": slot[here].astype(np.int32),
        "measured_value": scaled.astype(np.float16),
    }


def _slots(
    patient: Patient, codes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the place of each event's code among some, -1 for none and what no row has.

    And which events happened since the origin, both [E].
    """
    timed = ~patient.static & (patient.minute >= 0)
    order = np.argsort(codes, kind="stable")
    slot = order[np.searchsorted(codes[order], patient.code).clip(max=len(codes) - 1)]
    return np.where(timed & (codes[slot] == patient.code), slot, -1), timed


def collate(rows: Sequence[Row], config: JEPAConfig) -> Batch:
    """Return the latest rows of each patient; a patient without any has one that is empty.

    `minute` [B, T] of each row, `mask` [B, T] and the places of the real ones in B * T, `place`
    [N]; `cell` [E], the place of an observed cell in [B, T, F], and its `value` [E, C]; `static`,
    `static_seen` [B, F]; `subject_id` [B]. With a time-to-event head `followed_minute` (infinity:
    none) and `followed_code` [B, N], `end` [B]; with one of future values `measured_minute` (the
    same), `measured_code`, `measured_value`.
    """
    found = np.array([len(row["minute"]) for row in rows])
    kept = found if config.max_rows is None else found.clip(max=config.max_rows)
    shape = len(rows), int(max(1, kept.max()))
    mask = np.arange(shape[1]) < kept.clip(min=1)[:, None]
    minute = np.zeros(shape)
    width = int(rows[0]["num_features"])
    static, seen = np.zeros((len(rows), width), np.float32), np.zeros((len(rows), width), bool)
    cells = []
    for index, row in enumerate(rows):
        first = found[index] - kept[index]
        minute[index, : kept[index]] = row["minute"][first:]
        static[index, row["static_feature"]] = row["static_value"]
        seen[index, row["static_feature"]] = True
        place = row["row"].astype(np.int64) - first
        cells.append(np.where(place < 0, -1, (index * shape[1] + place) * width + row["feature"]))
    cell = np.concatenate(cells)
    # Of the events of a cell the last one has its statistics: it is the first one backwards.
    unique, backwards = np.unique(cell[::-1], return_index=True)
    last = len(cell) - 1 - backwards[unique >= 0]
    value = np.concatenate([row["value"] for row in rows])[last]
    return {
        "subject_id": torch.tensor([int(row["subject_id"]) for row in rows]),
        "minute": torch.from_numpy(minute),
        "mask": torch.from_numpy(mask),
        "place": torch.from_numpy(np.flatnonzero(mask)),
        "cell": torch.from_numpy(cell[last]),
        "value": torch.from_numpy(value),
        "static": torch.from_numpy(static),
        "static_seen": torch.from_numpy(seen),
        **(_collated_followed(rows) if "end" in rows[0] else {}),
        **(_listed(rows, "measured", ("code", "value")) if "measured_minute" in rows[0] else {}),
    }


def _collated_followed(rows: Sequence[Row]) -> Batch:
    end = torch.tensor([float(row["end"]) for row in rows], dtype=torch.float64)
    return {**_listed(rows, "followed", ("code",)), "end": end}


def _listed(rows: Sequence[Row], name: str, parts: Sequence[str]) -> Batch:
    """Return lists of events, padded: minutes with infinity, other parts with zeros, [B, N] all."""
    kinds = {"minute": np.float64, "code": np.int64, "value": np.float32}
    most = max(1, *(len(row[f"{name}_minute"]) for row in rows))
    found = {}
    for part in ("minute", *parts):
        table = np.full((len(rows), most), np.inf if part == "minute" else 0, kinds[part])
        for index, row in enumerate(rows):
            table[index, : len(row[f"{name}_{part}"])] = row[f"{name}_{part}"]
        found[f"{name}_{part}"] = torch.from_numpy(table)
    return found
