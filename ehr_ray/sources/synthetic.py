"""Made-up ICU stays with real structure: severity drives values and outcome, values drift together.

Each patient has a severity s and a trend g, both N(0, 1). Illness at hour t is
x(t) = s + 0.6 g t / 24, capped in time at 48 h. A variable is its usual mean plus its spread times

    load * x(t) + 0.5 * factor(t) + 0.5 * own level + 0.35 * own noise(t)

where each of five factors (circulation, lungs, kidneys, blood, brain) and each variable's noise is
a stationary first-order autoregression, so values are correlated over time, with each other, and
with the outcome. The outcome is Bernoulli(sigmoid(2.4 s + 1.2 g + 0.02 (age - 62) - 1.2)): about
a third of patients, and an AUROC of about 0.9 at best. The number of visits is independent of it.

With `admissions` above 1 the visits are cut into up to so many admissions, with 1 + Exponential(20
exp(-0.8 s)) days between them: the ill come back soon, which makes a label at each discharge.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.cells import events_table, since_epoch
from ehr_ray.sources.parsing.labels import label_rows
from ehr_ray.sources.source import Chunk, Source, Unit

PATIENTS_PER_UNIT: Final = 1_000
BYTES_PER_PATIENT: Final = 15_000
ADMISSION, DISCHARGE, READMISSION = "HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE", "readmission_30d"
DAY: Final = 24 * 60.0
FACTORS: Final = ("circulation", "lungs", "kidneys", "blood", "brain")


@dataclass(frozen=True)
class Variable:
    """One measured quantity; `log` quantities have their mean and spread in logarithms."""

    name: str
    description: str
    factor: str
    mean: float
    spread: float
    load: float
    low: float
    high: float
    decimals: int
    log: bool = False


VITALS: Final = (
    Variable("HR", "Heart rate (bpm)", "circulation", 86, 14, 0.7, 30, 200, 0),
    Variable(
        "SysABP", "Systolic arterial pressure (mmHg)", "circulation", 122, 18, -0.6, 50, 230, 0
    ),
    Variable(
        "DiasABP", "Diastolic arterial pressure (mmHg)", "circulation", 62, 10, -0.5, 20, 130, 0
    ),
    Variable("MAP", "Mean arterial pressure (mmHg)", "circulation", 82, 12, -0.6, 30, 160, 0),
    Variable("RespRate", "Respiration rate (breaths/min)", "lungs", 19, 4, 0.6, 5, 50, 0),
    Variable("SaO2", "Oxygen saturation (%)", "lungs", 96.5, 1.8, -0.6, 60, 100, 0),
    Variable("Temp", "Temperature (degrees Celsius)", "blood", 37.0, 0.6, 0.3, 33, 41.5, 1),
    Variable("GCS", "Glasgow coma score (3-15)", "brain", 13.0, 2.2, -0.8, 3, 15, 0),
    Variable("Urine", "Urine output in the hour (mL)", "kidneys", 4.4, 0.6, -0.6, 0, 900, 0, True),
    Variable("FiO2", "Fractional inspired oxygen (0-1)", "lungs", 0.42, 0.12, 0.6, 0.21, 1, 2),
)
LABS: Final = (
    Variable("Creatinine", "Creatinine (mg/dL)", "kidneys", 0.1, 0.4, 0.7, 0.2, 15, 1, True),
    Variable("BUN", "Blood urea nitrogen (mg/dL)", "kidneys", 3.0, 0.45, 0.7, 3, 180, 0, True),
    Variable("Lactate", "Lactate (mmol/L)", "circulation", 0.5, 0.45, 0.8, 0.3, 20, 1, True),
    Variable("pH", "Arterial pH", "lungs", 7.38, 0.06, -0.5, 6.8, 7.7, 2),
    Variable("HCO3", "Bicarbonate (mmol/L)", "kidneys", 23.5, 3.5, -0.5, 5, 45, 0),
    Variable("WBC", "White blood cells (cells/nL)", "blood", 2.4, 0.4, 0.5, 0.5, 80, 1, True),
    Variable("HCT", "Hematocrit (%)", "blood", 31, 4.5, -0.3, 15, 55, 1),
    Variable("Platelets", "Platelets (cells/nL)", "blood", 5.2, 0.45, -0.4, 10, 900, 0, True),
    Variable("Na", "Sodium (mmol/L)", "kidneys", 139, 4, 0.1, 115, 165, 0),
    Variable("K", "Potassium (mmol/L)", "kidneys", 4.1, 0.5, 0.3, 2.2, 7.5, 1),
    Variable("Mg", "Magnesium (mmol/L)", "kidneys", 2.0, 0.3, 0.1, 0.8, 4.5, 1),
    Variable("Glucose", "Glucose (mg/dL)", "blood", 4.9, 0.3, 0.4, 40, 600, 0, True),
    Variable("Bilirubin", "Bilirubin (mg/dL)", "blood", -0.2, 0.7, 0.5, 0.1, 40, 1, True),
    Variable("Albumin", "Albumin (g/dL)", "blood", 3.0, 0.5, -0.5, 1, 5, 1),
    Variable("TroponinT", "Troponin T (ug/L)", "circulation", -2.3, 0.9, 0.5, 0.01, 20, 2, True),
)
VARIABLES: Final = VITALS + LABS


@dataclass(frozen=True)
class SyntheticOptions:
    """What to make up."""

    patients: int = field(default=500, metadata={"help": "how many patients"})
    min_visits: int = field(default=15, metadata={"help": "fewest hourly visits of a patient"})
    max_visits: int = field(default=50, metadata={"help": "most hourly visits of a patient"})
    missing_ratio: float = field(default=0.3, metadata={"help": "share of lab values missing"})
    label_hours: float = field(
        default=24.0, metadata={"help": "hours after admission at which the outcome is predicted"}
    )
    admissions: int = field(
        default=1,
        metadata={"help": "most admissions of a patient; above 1 with the label readmission_30d"},
    )
    data_seed: int = field(default=0, metadata={"help": "seed of the values (--seed: the splits)"})

    def __post_init__(self) -> None:
        """Refuse what cannot be made."""
        if self.patients < 1:
            raise InputError(f"--patients {self.patients}: at least 1 is needed")
        if not 1 <= self.min_visits <= self.max_visits:
            raise InputError(
                f"--min-visits {self.min_visits} --max-visits {self.max_visits}: "
                "need 1 <= min <= max"
            )
        if self.admissions < 1:
            raise InputError(f"--admissions {self.admissions}: at least 1 is needed")
        if not 0 <= self.missing_ratio <= 1:
            raise InputError(f"--missing-ratio {self.missing_ratio}: not between 0 and 1")
        if not self.label_hours >= 0:
            raise InputError(f"--label-hours {self.label_hours}: must be 0 or more")
        if self.data_seed < 0:
            raise InputError(f"--data-seed {self.data_seed}: must be 0 or more")


def units(path: Path, options: SyntheticOptions) -> list[Unit]:  # noqa: ARG001
    """Divide the patients into runs of 1,000."""
    return numbered_units(options.patients, PATIENTS_PER_UNIT, BYTES_PER_PATIENT)


def numbered_units(patients: int, each: int, bytes_each: int) -> list[Unit]:
    """Divide patients that are made up, numbered from 1, into runs of so many."""
    starts = range(1, patients + 1, each)
    stops = [min(start + each, patients + 1) for start in starts]
    return [
        Unit(start=start, stop=stop, size=(stop - start) * bytes_each)
        for start, stop in zip(starts, stops, strict=True)
    ]


def read(unit: Unit, options: SyntheticOptions) -> Iterator[Chunk]:
    """Yield the unit's patients; each depends on the seed and its number alone."""
    patients = [make_patient(number, options) for number in range(unit.start, unit.stop)]
    ids = np.arange(unit.start, unit.stop, dtype=np.int64)
    counts = [len(patient.minutes) for patient in patients]
    times, _ = since_epoch(np.concatenate([patient.minutes for patient in patients]), 1.0)
    names = pa.array(["Age", "Gender", *(v.name for v in VARIABLES), ADMISSION, DISCHARGE])
    events = events_table(
        np.repeat(ids, counts),
        times,
        names.take(pa.array(np.concatenate([patient.codes for patient in patients]))),
        np.concatenate([patient.values for patient in patients]),
    )
    outcomes = [patient.outcome for patient in patients]
    labels = {"outcome": label_rows(ids, outcomes, options.label_hours * 60)}
    if options.admissions > 1:
        labels[READMISSION] = _readmissions(ids, patients)
    yield Chunk(events=events, labels=labels, rows_read=len(events))


@dataclass(frozen=True, eq=False)
class MadePatient:
    """Events in time order; `minutes` is NaN for statics.

    `codes` index Age, Gender, VARIABLES, ADMISSION, DISCHARGE. `left` are the minutes of the
    discharges and `back` whether an admission follows within 30 days, where there are several.
    """

    minutes: npt.NDArray[np.float64]
    codes: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    outcome: bool
    left: npt.NDArray[np.float64]
    back: npt.NDArray[np.bool_]


def make_patient(number: int, options: SyntheticOptions) -> MadePatient:
    """Make one patient from (seed, number)."""
    rng = np.random.default_rng([options.data_seed, number])
    severity, trend = rng.standard_normal(2)
    age = float(np.clip(np.rint(rng.normal(62, 15)), 18, 95))
    gender = float(rng.integers(2))
    logit = 2.4 * severity + 1.2 * trend + 0.02 * (age - 62) - 1.2
    outcome = bool(rng.random() < 1 / (1 + np.exp(-logit)))
    visits = int(rng.integers(options.min_visits, options.max_visits + 1))
    minutes = np.arange(visits) * 60.0 + rng.integers(-30, 30, visits)
    minutes[0] = 0.0
    illness = severity + 0.6 * trend * np.minimum(minutes / 60, 48) / 24
    values = _values(rng, illness)
    seen = np.ones(values.shape, bool)
    seen[:, len(VITALS) :] = rng.random((visits, len(LABS))) >= options.missing_ratio
    visit, variable = np.nonzero(seen)
    came = left = np.zeros(0)
    back = np.zeros(0, bool)
    if options.admissions > 1:
        minutes, came, left, back = _admissions(rng, minutes, severity, options.admissions)
    time = np.r_[came, minutes[visit], left]
    # An admission before what was measured at its minute, a discharge after it.
    order = np.argsort(time, kind="stable")
    first = len(VARIABLES) + 2
    code = np.r_[np.full(len(came), first), variable + 2, np.full(len(left), first + 1)]
    value = np.r_[np.full(len(came), np.nan), values[visit, variable], np.full(len(left), np.nan)]
    return MadePatient(
        minutes=np.r_[np.nan, np.nan, time[order]],
        codes=np.r_[0, 1, code[order]],
        values=np.r_[age, gender, value[order]],
        outcome=outcome,
        left=left,
        back=back,
    )


def _admissions(
    rng: np.random.Generator, minutes: npt.NDArray[np.floating], severity: float, most: int
) -> tuple[npt.NDArray[Any], ...]:
    """Return the visits' minutes with gaps between admissions, their starts, ends and `back`."""
    count = int(rng.integers(1, min(most, len(minutes)) + 1))
    first = np.r_[0, np.sort(rng.choice(np.arange(1, len(minutes)), count - 1, replace=False))]
    gap = DAY * (1 + rng.exponential(20 * np.exp(-0.8 * severity), count - 1))
    admission = np.searchsorted(first, np.arange(len(minutes)), side="right") - 1
    minutes = minutes + np.floor(np.r_[0, np.cumsum(gap)])[admission]
    came, left = minutes[first], minutes[np.r_[first[1:], len(minutes)] - 1] + 1
    return minutes, came, left, np.r_[came[1:] - left[:-1] <= 30 * DAY, False]


def _readmissions(ids: npt.NDArray[np.int64], patients: list[MadePatient]) -> pa.Table:
    times, _ = since_epoch(np.concatenate([patient.left for patient in patients]), 1.0)
    subject = np.repeat(ids, [len(patient.left) for patient in patients])
    return label_rows(
        subject, np.concatenate([patient.back for patient in patients]), times=pa.array(times)
    )


_MEAN, _SPREAD, _LOAD, _LOW, _HIGH = (
    np.array([getattr(v, name) for v in VARIABLES])
    for name in ("mean", "spread", "load", "low", "high")
)
_LOG = np.array([v.log for v in VARIABLES])
_SCALE = 10.0 ** np.array([v.decimals for v in VARIABLES])
_FACTOR = np.array([FACTORS.index(v.factor) for v in VARIABLES])
# Pressures fall together while rate and demand rise: the sign of a factor follows the load.
_SIGN = np.sign(_LOAD)


def _values(rng: np.random.Generator, illness: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return values [visits, variables], rounded as an instrument would."""
    size = len(illness)
    factor = autoregression(rng, size, len(FACTORS), 0.9)[:, _FACTOR] * _SIGN
    noise = autoregression(rng, size, len(VARIABLES), 0.7)
    level = rng.standard_normal(len(VARIABLES))
    z = _LOAD * illness[:, None] + 0.5 * factor + 0.5 * level + 0.35 * noise
    values = _MEAN + _SPREAD * z
    values = np.where(_LOG, np.exp(np.where(_LOG, values, 0.0)), values)
    return np.clip(np.rint(values * _SCALE) / _SCALE, _LOW, _HIGH)


def autoregression(
    rng: np.random.Generator, size: int, width: int, memory: float
) -> npt.NDArray[np.float64]:
    """Return unit-variance series [size, width] whose lag-1 correlation is `memory`."""
    steps = rng.standard_normal((size, width))
    for t in range(1, size):
        steps[t] = memory * steps[t - 1] + np.sqrt(1 - memory**2) * steps[t]
    return steps


SOURCE: Final = Source(
    name="synthetic",
    description="made-up ICU stays whose outcome can be learned; needs no --input",
    options=SyntheticOptions,
    units=units,
    read=read,
    needs_input=False,
    descriptions={
        "Age": "Age (years)",
        "Gender": "Gender (0 female, 1 male)",
        **{v.name: v.description for v in VARIABLES},
    },
)
