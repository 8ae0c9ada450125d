"""What a model reads a risk from, by occlusion: predict again without a variable, or an hour.

Events are taken out of the record before the family's transform, so a value that would have been
carried forward is gone too, and any family can be asked.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.tasks.attribution import Attribution
from ehr_ray.events.patients import Patient
from ehr_ray.family import Batch
from ehr_ray.train.predictor import Predictor

MAP_CODES: Final = 10
"""Variables that are also hidden hour by hour: those with the largest effects."""
MAX_SPANS: Final = 48
"""Spans of hours at most; a longer record has longer spans."""
LogOdds = Callable[[Batch], NDArray[np.floating]]
"""What a model gave for B patients to the log odds of each, [B]."""


def occlude(predictor: Predictor, patient: Patient, log_odds: LogOdds) -> Attribution:
    """Return how much each variable, each hour and each variable in an hour moved a risk.

    `patient` is as known at the prediction time. Static events are in no hour.
    """
    width = _width(patient)
    span = np.where(patient.static, -1, np.maximum(patient.minute, 0) // (60 * width)).astype(int)
    codes, spans = np.unique(patient.code), np.unique(span[span >= 0])
    hidden = [patient.code == code for code in codes] + [span == at for at in spans]
    whole, *without = _risks(predictor, [patient, *_without(patient, hidden)], log_odds)
    effects = whole - np.array(without)
    by_code, by_hour = effects[: len(codes)], effects[len(codes) :]
    order = np.argsort(-np.abs(by_code), kind="stable")
    codes = codes[order]
    masks = [[(patient.code == c) & (span == at) for at in spans] for c in codes[:MAP_CODES]]
    there = np.array([[mask.any() for mask in row] for row in masks], bool)
    cells = np.full((len(masks), len(spans)), np.nan)
    if there.any():
        hidden = [mask for row in masks for mask in row if mask.any()]
        cells[there] = whole - _risks(predictor, _without(patient, hidden), log_odds)
    return Attribution(
        float(whole), codes.astype(np.int64), by_code[order], spans * width, width, by_hour, cells
    )


def _width(patient: Patient) -> int:
    """Return the hours of a span: 1, or as many as keep the record within `MAX_SPANS`."""
    last = float(np.max(patient.minute, initial=0)) / 60
    return max(1, math.ceil((math.floor(last) + 1) / MAX_SPANS))


def _without(patient: Patient, hidden: Iterable[NDArray[np.bool_]]) -> list[Patient]:
    """Return the patient without each of the sets of events, bool [E]."""
    return [
        replace(patient, **{n: getattr(patient, n)[~mask] for n in ("time", "code", "value")})
        for mask in hidden
    ]


def _risks(
    predictor: Predictor, patients: Iterable[Patient], log_odds: LogOdds
) -> NDArray[np.float64]:
    parts = [log_odds(outputs) for outputs in predictor.over_patients(patients)]
    return np.concatenate(parts).astype(np.float64)
