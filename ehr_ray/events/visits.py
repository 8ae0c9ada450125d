"""Events to rows in time: an hour with observations, or an admission.

E events, R rows, F features, C statistics of a cell (row, feature), V codes, S static events. A
cell's statistics are told as they run: each event carries those of its cell up to and with itself,
so the last event of a cell has the cell's, and nothing is said before it is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from ehr_ray.events.options import Kind
from ehr_ray.events.patients import MICROSECONDS_PER_MINUTE, Patient
from ehr_ray.events.vocabulary import Vocabulary

Floats = npt.NDArray[np.float64]

STATISTICS: Final = {
    "hours": ("mean", "last", "count"),
    "visits": ("mean", "std", "min", "max", "count"),
}
"""What a cell says: `mean` is a sum for flows, `count` is log(1 + count)."""
STAY, GAP = "days in hospital", "days since the visit before"
"""Features of a visit that no code has: one is known at discharge, the other at the start."""
_DAY: Final = 24 * 60.0


@dataclass(frozen=True, eq=False)
class Features:
    """What is told of each row.

    Args:
        kind: what a row is.
        names: of the features, [F]: codes, and for visits `STAY` and `GAP` after them.
        place: feature of each code, int32 [V]; -1 where it is none.
        code: vocabulary id of each feature, int32 [F]; -1 where it is no code.
        center: location in train, float64 [F]; 0 of a flag.
        spread: scale in train, float64 [F]; 1 of a flag.
        flag: whether a feature has no values, so that its events count as 1, bool [F].
        flow: whether values of a cell are added up, bool [F].
        discharge: whether a code ends a visit, bool [V].
    """

    kind: Kind
    names: tuple[str, ...]
    place: npt.NDArray[np.int32]
    code: npt.NDArray[np.int32]
    center: Floats
    spread: Floats
    flag: npt.NDArray[np.bool_]
    flow: npt.NDArray[np.bool_]
    discharge: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Return F."""
        return len(self.names)


@dataclass(frozen=True, eq=False)
class Rows:
    """A patient's rows, sparse: only what was observed.

    Args:
        minute: minutes from the origin to the start of each row, float64 [R].
        row: row of each event, int32 [E], ascending.
        feature: its feature, int32 [E].
        value: statistics of its cell so far, float32 [E, C].
        static_feature: feature of each static event, int32 [S].
        static_value: its value, float32 [S].
    """

    minute: Floats
    row: npt.NDArray[np.int32]
    feature: npt.NDArray[np.int32]
    value: npt.NDArray[np.float32]
    static_feature: npt.NDArray[np.int32]
    static_value: npt.NDArray[np.float32]


@lru_cache(maxsize=8)
def choose_features(
    vocabulary: Vocabulary,
    kind: Kind,
    *,
    max_values: int,
    max_flags: int,
    outcomes: tuple[str, ...],
    flows: tuple[str, ...],
    discharges: tuple[str, ...],
) -> Features:
    """Choose the codes that make features: the most frequent in train, ordered by name.

    Args:
        vocabulary: codes with train statistics.
        kind: what a row is.
        max_values: most codes with values.
        max_flags: most codes without.
        outcomes: patterns of codes that are never a feature, whatever their case.
        flows: patterns of codes whose values are amounts, to be added up.
        discharges: patterns of codes that end a visit.
    """
    valued = vocabulary.valued
    usable = ~_matching(vocabulary.codes, outcomes)
    chosen = np.sort(
        np.concatenate(
            [
                _frequent(vocabulary, usable & valued, max_values),
                _frequent(vocabulary, usable & ~valued, max_flags),
            ]
        )
    )
    place = np.full(len(vocabulary), -1, np.int32)
    place[chosen] = np.arange(len(chosen))
    extra = 2 if kind == "visits" else 0
    flag = ~valued[chosen]
    none = np.zeros(extra, bool)
    return Features(
        kind=kind,
        names=(*(vocabulary.codes[i] for i in chosen), *(STAY, GAP)[:extra]),
        place=place,
        code=np.concatenate([chosen, np.full(extra, -1)]).astype(np.int32),
        center=np.concatenate([np.where(flag, 0.0, vocabulary.location[chosen]), np.zeros(extra)]),
        spread=np.concatenate([np.where(flag, 1.0, vocabulary.scale[chosen]), np.ones(extra)]),
        flag=np.concatenate([flag, none]),
        flow=np.concatenate([_matching(vocabulary.codes, flows)[chosen], none]),
        discharge=_matching(vocabulary.codes, discharges),
    )


def rows_of(patient: Patient, features: Features) -> Rows:
    """Return the hours with observations of a patient, or its admissions.

    Values are z-scores by `data.scale`, `asinh` of them so that a typing error weighs little and
    no order is lost. An hour begins at a whole number of hours from the origin. A visit reaches
    from its admission to the next one; a patient without admissions has one. Events before the
    origin are in no row.
    """
    place = features.place[patient.code] if len(features.place) else patient.code
    used = (place >= 0) & (features.flag[place] | np.isfinite(patient.value))
    value = np.where(features.flag[place], 1.0, patient.value.astype(np.float64))
    z = (value - features.center[place]) / features.spread[place]
    fixed = used & patient.static
    timed = used & ~patient.static & (patient.minute >= 0)
    if features.kind == "hours":
        hour = np.floor(patient.minute[timed] / 60)
        start, row = np.unique(hour, return_inverse=True)
        minute, feature, z_timed = start * 60, np.asarray(place[timed], np.int64), z[timed]
    else:
        minute, row, feature, z_timed = _visits(patient, features, place, z, timed)
    return Rows(
        minute=minute.astype(np.float64),
        row=row.astype(np.int32),
        feature=feature.astype(np.int32),
        value=_running(row, feature, z_timed, features),
        static_feature=place[fixed].astype(np.int32),
        static_value=np.arcsinh(z[fixed]).astype(np.float32),
    )


def _visits(
    patient: Patient,
    features: Features,
    place: npt.NDArray[np.integer],
    z: Floats,
    timed: npt.NDArray[np.bool_],
) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """Return start minutes [R] and events by time: row, feature and z-score [E].

    The length of a stay is an event of its discharge, the gap one of the admission after it.
    """
    begun = np.unique(patient.admitted)
    begun = begun if len(begun) else np.array([patient.origin], np.int64)
    ended = patient.time[~patient.static & features.discharge[patient.code]]
    of_end = np.searchsorted(begun, ended, side="right") - 1
    ended, of_end = ended[of_end >= 0], of_end[of_end >= 0]
    stay = (ended - begun[of_end]) / MICROSECONDS_PER_MINUTE / _DAY
    left = begun.copy()
    left[of_end] = ended  # the last discharge of a visit; without one, its admission
    gap = (begun[1:] - left[:-1]) / MICROSECONDS_PER_MINUTE / _DAY
    time = np.concatenate([begun[1:], patient.time[timed], ended])
    last = len(features) - 1
    feature = np.concatenate([np.full(len(gap), last), place[timed], np.full(len(ended), last - 1)])
    value = np.concatenate([np.log1p(gap.clip(min=0)), z[timed], np.log1p(stay)])
    order = np.argsort(time, kind="stable")
    row = np.searchsorted(begun, time[order], side="right") - 1
    minute = (begun - patient.origin) / MICROSECONDS_PER_MINUTE
    return minute, row, feature[order], value[order]


def _running(
    row: npt.NDArray[np.integer],
    feature: npt.NDArray[np.integer],
    z: Floats,
    features: Features,
) -> npt.NDArray[np.float32]:
    """Return the statistics of each event's cell up to it, float32 [E, C]."""
    import pandas as pd  # here: a config check, which imports this module, does without

    frame = pd.DataFrame({"z": z, "square": z * z})
    groups = frame.groupby(row * np.int64(len(features)) + feature, sort=False)
    count = groups.cumcount().to_numpy() + 1.0
    total, squares = (groups[name].cumsum().to_numpy() for name in ("z", "square"))
    mean = total / count
    # A sum of k values of z is the z-score of their sum once k - 1 centres are added.
    centers = (features.center / features.spread)[feature]
    level = np.where(features.flow[feature], total + (count - 1) * centers, mean)
    if features.kind == "hours":
        columns: Sequence[Floats] = (level, z)
    else:
        std = np.sqrt((squares / count - mean * mean).clip(min=0))
        low, high = (getattr(groups["z"], name)().to_numpy() for name in ("cummin", "cummax"))
        columns = (level, std, low, high)
    told = [np.arcsinh(column) for column in columns]
    return np.stack([*told, np.log1p(count)], axis=1).astype(np.float32)


def _matching(codes: Sequence[str], patterns: Sequence[str]) -> npt.NDArray[np.bool_]:
    lower = [pattern.lower() for pattern in patterns]
    return np.array(
        [any(fnmatchcase(code.lower(), pattern) for pattern in lower) for code in codes], bool
    )


def _frequent(
    vocabulary: Vocabulary, usable: npt.NDArray[np.bool_], most: int
) -> npt.NDArray[np.intp]:
    """Return the most frequent of the usable codes; of equal ones the first by name."""
    order = np.argsort(-vocabulary.count, kind="stable")
    return order[usable[order]][:most]
