"""Vital signs on a regular hourly grid: V vitals, H hours, E observations, N patients.

Hour h is the interval [h, h + 1) hours after the patient's origin. A cell is the mean of its
observations; a cell without any is imputed, and its tier says how.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ehr_ray.events.options import Vital
from ehr_ray.events.patients import MICROSECONDS_PER_MINUTE, Patient
from ehr_ray.events.vocabulary import Vocabulary

OBSERVED, CARRIED, PATIENT_MEAN, COHORT_MEAN = 1, 2, 3, 4
"""Imputation tiers of a cell: its own value, the last one, the patient's mean, the cohort's."""

MICROSECONDS_PER_HOUR: Final = 60 * MICROSECONDS_PER_MINUTE
_FAHRENHEIT_ABOVE: Final = 60.0


@dataclass(frozen=True, eq=False)
class Observations:
    """What a patient's grid is made of, in time order.

    Args:
        hour: column of the grid, int32 [E]; 0 is the first hour.
        vital: place in the list of vitals, int32 [E].
        value: in the vital's unit, float32 [E].
        refused: values outside the vital's range.
    """

    hour: npt.NDArray[np.int32]
    vital: npt.NDArray[np.int32]
    value: npt.NDArray[np.float32]
    refused: int


def observations(
    patient: Patient,
    vitals: Sequence[Vital],
    vocabulary: Vocabulary,
    *,
    first_hour: int,
    num_hours: int,
    origin: str = "admission",
) -> Observations:
    """Return a patient's vital signs within the window; others are never read.

    `origin` is `admission`, the patient's own, or `first_vital`, the hour of the first vital sign.
    """
    which = vital_of_code(vitals, vocabulary)
    vital = which[patient.code] if len(which) else np.zeros(0, np.int32)
    timed = (vital >= 0) & ~patient.static & np.isfinite(patient.value)
    vital, time = vital[timed], patient.time[timed]
    value = patient.value[timed]
    zero = int(time[0]) if origin == "first_vital" and len(time) else patient.origin
    hour = (time - zero) // MICROSECONDS_PER_HOUR - first_hour
    inside = (hour >= 0) & (hour < num_hours)
    vital, hour, value = vital[inside], hour[inside], value[inside]
    hot = np.array([v.fahrenheit for v in vitals], bool)[vital] & (value > _FAHRENHEIT_ABOVE)
    value = np.where(hot, (value - 32) / 1.8, value).astype(np.float32)
    low, high = (np.array([getattr(v, end) for v in vitals]) for end in ("low", "high"))
    good = (value >= low[vital]) & (value <= high[vital])
    return Observations(hour[good].astype(np.int32), vital[good], value[good], int(np.sum(~good)))


def vital_of_code(vitals: Sequence[Vital], vocabulary: Vocabulary) -> npt.NDArray[np.int32]:
    """Return the vital each code of the vocabulary measures, int32 [codes]; -1 for none."""
    which = np.full(len(vocabulary), -1, np.int32)
    for index, vital in enumerate(vitals):
        ids = vocabulary.encode(vital.codes)
        which[ids[ids >= 0]] = index
    return which


def scales(
    vitals: Sequence[Vital], vocabulary: Vocabulary
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return each vital's centre and spread in train, [V]: of all its codes, weighted by count.

    Those of a code are the vocabulary's location and scale. A vital the cohort lacks has the
    middle and a sixth of its range.
    """
    centre, spread = np.zeros(len(vitals)), np.ones(len(vitals))
    for index, vital in enumerate(vitals):
        ids = vocabulary.encode(vital.codes)
        ids = ids[ids >= 0]
        mean, std = vocabulary.location[ids], vocabulary.scale[ids]
        weight = vocabulary.count[ids].astype(np.float64)
        if vital.fahrenheit:
            hot = mean > _FAHRENHEIT_ABOVE
            mean, std = np.where(hot, (mean - 32) / 1.8, mean), np.where(hot, std / 1.8, std)
        if weight.sum() == 0:
            mean, std = np.array([(vital.low + vital.high) / 2]), np.array([0.0])
            std += (vital.high - vital.low) / 6
            weight = np.ones(1)
        weight /= weight.sum()
        centre[index] = weight @ mean
        spread[index] = np.sqrt(weight @ (std**2 + (mean - centre[index]) ** 2))
    return centre, spread


def to_grid(
    row: npt.NDArray[Any], hour: npt.NDArray[Any], vital: npt.NDArray[Any], value: npt.NDArray[Any],
    shape: tuple[int, int, int],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:  # fmt: skip
    """Return hourly means, 0 where there is none, and the mask of observed cells, [N, H, V]."""
    cell = (row.astype(np.int64) * shape[1] + hour) * shape[2] + vital
    size = int(np.prod(shape))
    count = np.bincount(cell, minlength=size)
    total = np.bincount(cell, weights=value, minlength=size)
    mean = (total / np.maximum(count, 1)).astype(np.float32)
    return mean.reshape(shape), (count > 0).reshape(shape)


def hours_since(observed: npt.NDArray[np.bool_], first_hour: int) -> npt.NDArray[np.float32]:
    """Return hours since the last observation, 0 where observed, [N, H, V].

    Before the first one it is hours since the window began, plus one and the hours it began
    before the origin: index + 25 in a window from hour -24.
    """
    hour = np.arange(observed.shape[1], dtype=np.float32)[None, :, None]
    start = float(min(first_hour, 0) - 1)
    last = np.maximum.accumulate(np.where(observed, hour, start), axis=1)
    return (hour - last).astype(np.float32)


def imputed(
    value: npt.NDArray[np.float32],
    observed: npt.NDArray[np.bool_],
    carry_hours: npt.NDArray[Any],
    cohort_mean: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
    """Fill every cell, [N, H, V], and say by which tier: last value, patient's or cohort's mean.

    Args:
        value: hourly means; cells not observed are ignored.
        observed: which cells are.
        carry_hours: hours an observation fills after it, [V].
        cohort_mean: mean of each vital in train, [V].
    """
    hour = np.arange(value.shape[1])[None, :, None]
    last = np.maximum.accumulate(np.where(observed, hour, -1), axis=1)
    carried = ~observed & (last >= 0) & (hour - last <= carry_hours)
    forward = np.take_along_axis(value, np.maximum(last, 0), axis=1)
    count = observed.sum(1, keepdims=True)
    mean = (value * observed).sum(1, keepdims=True) / np.maximum(count, 1)
    mean = np.where(count > 0, mean, cohort_mean)
    tier = np.where(np.broadcast_to(count > 0, value.shape), PATIENT_MEAN, COHORT_MEAN)
    tier = np.where(carried, CARRIED, np.where(observed, OBSERVED, tier)).astype(np.int8)
    filled = np.where(observed | carried, forward, mean)
    return filled.astype(np.float32), tier
