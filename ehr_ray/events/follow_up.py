"""What came after a moment of patients whose records are there: truth and simple features.

N rows, C codes, F features.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.errors import ConfigError
from ehr_ray.events.features import select_codes
from ehr_ray.events.patient_features import FeatureCodes, FeatureReader
from ehr_ray.events.patients import Patient, cohort_shards, read_patients
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.storage import sync

Array = NDArray[np.float64]

DAY_HOURS: Final = 24
_HOUR: Final = 3_600_000_000


@dataclass(frozen=True, eq=False)
class FollowUp:
    """Rows of a split at a moment each: those whose record goes on after it."""

    key: tuple[tuple[int, int], ...]
    """Subject and prediction time (microseconds), [N]; time 0: the end of the first 24 hours."""
    minute: Array
    """Of the moment, since the origin, [N]."""
    hours: Array
    """From it until each code comes next, strictly after it, or the record ends, [N, C]."""
    event: NDArray[np.bool_]
    """Whether the code comes, [N, C]."""
    features: NDArray[np.float32]
    """Simple features at the moment, [N, F]; F is 0 where they were not asked for."""


def followed_codes(asked: int | Sequence[str], vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Return the ids of the codes that are waited for, int64 [C].

    So many of the most frequent by patients of train, or those named, in their order. Raises
    ConfigError for a name that is no code of the cohort.
    """
    if isinstance(asked, int):
        return np.argsort(-vocabulary.subjects, kind="stable")[:asked]
    return _named("model.time_to_event_codes", asked, vocabulary)


def measured_codes(asked: int | Sequence[str], vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Return the ids of the codes whose values are asked, int64 [C].

    So many of the most frequent by patients of train among those with values, or those named, in
    their order. Raises ConfigError for a name that is no code of the cohort or has no values in
    train, and where no code has any.
    """
    option = "model.future_value_codes"
    if isinstance(asked, int):
        order = np.argsort(-vocabulary.subjects, kind="stable")
        found = order[vocabulary.valued[order]][:asked]
        if asked and not len(found):
            raise ConfigError(f"{option}: no code of the cohort's train split has values")
        return found
    found = _named(option, asked, vocabulary)
    bare = ~vocabulary.valued[found]
    if bare.any():
        raise ConfigError(
            f"{option}: {asked[int(np.argmax(bare))]!r} has no values in the cohort's train split; "
            "name codes that have"
        )
    return found


def _named(option: str, names: Sequence[str], vocabulary: Vocabulary) -> NDArray[np.int64]:
    found = vocabulary.encode(names).astype(np.int64)
    if (found < 0).any():
        raise ConfigError(
            f"{option}: {names[int(np.argmax(found < 0))]!r} is no code of the "
            "cohort's train split; metadata/codes.parquet has those there are"
        )
    return found


def follow_up(
    cohort: Path,
    split: str,
    vocabulary: Vocabulary,
    codes: NDArray[np.integer],
    times: Mapping[int, Sequence[int]],
    *,
    features: bool,
) -> FollowUp:
    """Read what came after the times of each subject; time 0 is the end of the first 24 hours."""
    simple = select_codes(vocabulary.subjects) if features else np.zeros(0, np.int64)
    reader = FeatureReader(vocabulary, FeatureCodes(tuple(simple.tolist())))
    keys, minutes, hours, events, rows = [], [], [], [], []
    for patient in _asked(cohort, split, vocabulary, times):
        for time in times[patient.subject_id]:
            at = time or patient.origin + DAY_HOURS * _HOUR
            found = next_occurrences(patient, at, codes)
            if found is None:
                continue
            known = patient.until(at)
            keys.append((patient.subject_id, time))
            minutes.append((at - known.origin) / 6e7)
            hours.append(found[0])
            events.append(found[1])
            rows.append(reader.simple(known, at) if features else np.zeros(0, np.float32))
    size = (len(keys), len(codes))
    return FollowUp(
        tuple(keys),
        np.array(minutes),
        np.array(hours).reshape(size),
        np.array(events, bool).reshape(size),
        np.array(rows, np.float32).reshape(len(keys), -1) if keys else np.zeros((0, 0), np.float32),
    )


def next_occurrences(
    patient: Patient, time: int, codes: NDArray[np.integer]
) -> tuple[Array, NDArray[np.bool_]] | None:
    """Return (hours [C], whether the code comes [C]) after a time; None where nothing follows."""
    later = patient.time > time
    if not later.any():
        return None
    hours = (patient.time[later] - time) / _HOUR
    here = patient.code[later] == np.asarray(codes)[:, None]
    first = np.where(here, hours, np.inf).min(1)
    came = np.isfinite(first)
    return np.where(came, first, hours.max()), came


def _asked(
    cohort: Path, split: str, vocabulary: Vocabulary, times: Mapping[int, Sequence[int]]
) -> Iterator[Patient]:
    for shard in cohort_shards(cohort, split):
        for patient in read_patients(sync.in_store(shard), vocabulary):
            if patient.subject_id in times:
                yield patient
