"""Made-up hospital stays of 31 days with hourly vital signs of known structure, sparsely measured.

Each patient belongs to one of four courses and has a level for each vital sign, a daily rhythm, a
slow wander and noise. With x(t) the strain at hour t after admission, a vital sign is

    mean + spread * (level + rhythm * sin(2 pi (t + phase) / 24) + load * x(t) + wander(t)) + noise

- stable (40 %): no strain; recovering (25 %): strain that decays within days of admission;
- deteriorating (20 %): strain that sets in at a hidden hour between day 3 and day 20, with a faint
  beginning before it; relapsing (15 %): strain that rises and falls twice.

Levels share two factors, wander is an autoregression with a memory of half a day shared by half
between vital signs. Visits are frequent in the first three days, then rare, and measure most vital
signs together: a tenth of all cells. Death, the label `mortality` at hour 48, is likelier in the
deteriorating and the strained. The course is the label `course` (0 to 3), for judging clusters.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.cells import events_table, since_epoch
from ehr_ray.sources.parsing.labels import label_rows
from ehr_ray.sources.source import Chunk, Source, Unit
from ehr_ray.sources.synthetic import autoregression, numbered_units

PATIENTS_PER_UNIT: Final = 500
BYTES_PER_PATIENT: Final = 8_000
FIRST_HOUR, NUM_HOURS = -24, 745
COURSES: Final = ("stable", "recovering", "deteriorating", "relapsing")
_SHARES: Final = (0.40, 0.25, 0.20, 0.15)
_MORTALITY_LOGIT: Final = (-3.0, -1.8, 0.4, -1.2)


@dataclass(frozen=True)
class VitalSign:
    """One vital sign and how strain and the time of day move it, in units of its spread."""

    code: str
    description: str
    mean: float
    spread: float
    load: float
    rhythm: float
    low: float
    high: float
    decimals: int
    share: float
    """Chance that a visit measures it."""


VITAL_SIGNS: Final = (
    VitalSign("HR", "Heart rate (bpm)", 84, 14, 1.0, 0.35, 25, 220, 0, 0.97),
    VitalSign("SBP", "Systolic pressure (mmHg)", 124, 17, -0.9, 0.30, 50, 260, 0, 0.92),
    VitalSign("DBP", "Diastolic pressure (mmHg)", 68, 11, -0.7, 0.25, 25, 150, 0, 0.92),
    VitalSign("MAP", "Mean pressure (mmHg)", 87, 12, -0.8, 0.30, 30, 200, 0, 0.92),
    VitalSign("RR", "Respiration rate (/min)", 18, 3.5, 0.9, 0.15, 6, 50, 0, 0.90),
    VitalSign("SPO2", "Oxygen saturation (%)", 96, 1.8, -0.8, 0.10, 55, 100, 0, 0.95),
    VitalSign("TEMP", "Temperature (degC)", 37.0, 0.5, 0.5, 0.40, 30, 43, 1, 0.45),
)
_MEAN, _SPREAD, _LOAD, _RHYTHM, _LOW, _HIGH, _SHARE = (
    np.array([getattr(v, name) for v in VITAL_SIGNS])
    for name in ("mean", "spread", "load", "rhythm", "low", "high", "share")
)
_SCALE = 10.0 ** np.array([v.decimals for v in VITAL_SIGNS])


@dataclass(frozen=True)
class SyntheticVitalsOptions:
    """What to make up."""

    patients: int = field(default=500, metadata={"help": "how many patients"})
    observed: float = field(default=0.10, metadata={"help": "share of cells measured, about"})
    data_seed: int = field(default=0, metadata={"help": "seed of the values (--seed: the splits)"})

    def __post_init__(self) -> None:
        """Refuse what cannot be made."""
        if self.patients < 1:
            raise InputError(f"--patients {self.patients}: at least 1 is needed")
        if not 0 < self.observed <= 0.5:
            raise InputError(f"--observed {self.observed}: not above 0 and at most 0.5")
        if self.data_seed < 0:
            raise InputError(f"--data-seed {self.data_seed}: must be 0 or more")


def units(path: object, options: SyntheticVitalsOptions) -> list[Unit]:  # noqa: ARG001
    """Divide the patients into runs of 500."""
    return numbered_units(options.patients, PATIENTS_PER_UNIT, BYTES_PER_PATIENT)


def read(unit: Unit, options: SyntheticVitalsOptions) -> Iterator[Chunk]:
    """Yield the unit's patients; each depends on the seed and its number alone."""
    patients = [make_patient(number, options) for number in range(unit.start, unit.stop)]
    ids = np.arange(unit.start, unit.stop, dtype=np.int64)
    cells = [np.nonzero(p.seen) for p in patients]
    minutes = np.concatenate(
        [p.minutes[hour] for p, (hour, _) in zip(patients, cells, strict=True)]
    )
    which = np.concatenate([vital for _, vital in cells])
    values = np.concatenate([p.values[p.seen] for p in patients])
    times, _ = since_epoch(minutes, 1.0)
    names = pa.array([v.code for v in VITAL_SIGNS])
    events = events_table(
        np.repeat(ids, [len(vital) for _, vital in cells]),
        times,
        names.take(pa.array(which)),
        values,
    )
    labels = {
        "mortality": label_rows(ids, [p.died for p in patients], 48 * 60),
        "course": label_rows(ids, [p.course for p in patients], 48 * 60, column="integer_value"),
    }
    yield Chunk(events=events, labels=labels, rows_read=len(events))


@dataclass(frozen=True, eq=False)
class MadePatient:
    """`values` and `seen` [745, 7], the minute each hour is visited [745], course and outcome."""

    values: npt.NDArray[np.floating]
    clean: npt.NDArray[np.floating]
    """Without wander and noise: what there is to know."""
    seen: npt.NDArray[np.bool_]
    minutes: npt.NDArray[np.floating]
    course: int
    died: bool


def make_patient(number: int, options: SyntheticVitalsOptions) -> MadePatient:
    """Make one patient from (seed, number)."""
    rng = np.random.default_rng([options.data_seed, number, 745])
    hours = np.arange(NUM_HOURS) + float(FIRST_HOUR)
    course = int(rng.choice(len(COURSES), p=_SHARES))
    strain = _strain(rng, course, hours)
    level = 0.6 * rng.standard_normal(len(VITAL_SIGNS))
    level += rng.standard_normal(2) @ (np.stack([np.sign(_LOAD), np.ones(len(_LOAD))]) * 0.45)
    rhythm = (
        _RHYTHM
        * rng.lognormal(0, 0.5)
        * np.sin(2 * np.pi * (hours[:, None] + rng.normal(0, 2.5)) / 24)
    )
    shared, own = _wander(rng, 1), _wander(rng, len(VITAL_SIGNS))
    clean = level + rhythm + _LOAD * strain[:, None]
    z = clean + 0.25 * shared * np.sign(_LOAD) + 0.25 * own
    z = z + 0.3 * rng.standard_normal(z.shape)
    values = np.clip(np.rint((_MEAN + _SPREAD * z) * _SCALE) / _SCALE, _LOW, _HIGH)
    early = np.clip(strain, 0, 3)[(hours >= 0) & (hours < 48)].mean()
    logit = _MORTALITY_LOGIT[course] + 0.7 * early + 0.5 * (level @ np.sign(_LOAD)) / 3
    died = bool(rng.random() < 1 / (1 + np.exp(-logit)))
    visit = rng.random(NUM_HOURS) < np.minimum(_visit_rate(hours) * options.observed, 1.0)
    seen = visit[:, None] & (rng.random(z.shape) < _SHARE)
    minutes = hours * 60 + rng.integers(0, 60, NUM_HOURS)
    return MadePatient(values, _MEAN + _SPREAD * clean, seen, minutes, course, died)


def _strain(
    rng: np.random.Generator, course: int, hours: npt.NDArray[np.floating]
) -> npt.NDArray[np.floating]:
    """Return the strain of a course at each hour."""
    size = rng.uniform(1.2, 2.8)
    if course == 1:
        return size * np.exp(-np.maximum(hours + 24, 0) / rng.uniform(30, 90))
    if course == 2:
        onset, width = rng.uniform(72, 480), rng.uniform(12, 48)
        faint = 0.35 * size / (1 + np.exp(-(hours - 12) / 12))
        return faint + size / (1 + np.exp(-(hours - onset) / width))
    if course == 3:
        starts = (rng.uniform(24, 200), rng.uniform(320, 560))
        waves = [np.exp(-(((hours - at) / rng.uniform(30, 60)) ** 2)) for at in starts]
        return np.asarray(size * np.sum(waves, axis=0))
    return np.zeros(len(hours))


def _visit_rate(hours: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return how often an hour has a visit, over the share of cells asked for."""
    return np.where((hours >= 0) & (hours < 72), 3.5, np.where(hours < 0, 1.0, 0.9))


def _wander(rng: np.random.Generator, width: int) -> npt.NDArray[np.floating]:
    """Return unit-variance series [745, width] that forget within half a day."""
    return autoregression(rng, NUM_HOURS, width, np.exp(-1 / 12))


SOURCE: Final = Source(
    name="synthetic-vitals",
    description="made-up 31-day stays of sparse hourly vital signs; needs no --input",
    options=SyntheticVitalsOptions,
    units=units,
    read=read,
    needs_input=False,
    descriptions={v.code: v.description for v in VITAL_SIGNS},
)
