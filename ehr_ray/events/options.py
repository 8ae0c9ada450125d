"""What a config says of events: rows in time, tokens, vital signs, modalities, outcomes.

Neither numpy nor pyarrow is imported here, so that an error in a config is told before them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field

Kind = Literal["hours", "visits"]
"""What a row in time is: an hour with observations, or an admission."""
Place = Literal["merged", "own", "none"]
"""Where a part of an event is told: in its token, in one of its own, or nowhere."""
MODALITIES: Final = ("clinical", "temporal", "pathological", "semantic", "spatial")
"""In the order of the tokens."""
MODALITY_CODES: Final[Mapping[str, tuple[str, ...]]] = {
    "clinical": ("CLINICAL//.*",),
    "temporal": ("BLOOD//.*", "TEMPORAL//.*"),
    "pathological": ("PATHOLOGY//.*", "PATHOLOGICAL//.*"),
    "semantic": ("ICD//.*", "SEMANTIC//.*"),
    "spatial": ("TMA//.*", "SPATIAL//.*"),
}
"""Codes of each modality, as regular expressions; those of outcomes are in none."""


@dataclass(frozen=True, kw_only=True)
class TokenOptions:
    """How an event becomes tokens."""

    values: Place = "merged"
    """A value joins its code's phrase ("Lab creatinine high"), follows as its own, or is left."""
    value_as: Literal["bin", "number"] = "bin"
    """A value as one of five bins, or as the number of one of `levels` quantiles of train."""
    levels: int = 16
    """Numbers a code has at most where values are numbers."""
    units: Place = "none"
    """The unit joins the value, follows as its own phrase, or is left out."""
    gaps: Place = "merged"
    """The time since the event before: added to the next token, its own phrase, or left out."""


@dataclass(frozen=True, kw_only=True)
class Vital:
    """One vital sign: which codes it is measured by, and what is believable."""

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    """Short name, as in `HR`."""
    codes: tuple[str, ...]
    """Codes of the cohort that measure it; the mean of all of them is taken."""
    low: float
    """Values below are dropped and counted."""
    high: float
    """Values above are dropped and counted."""
    carry_hours: Annotated[int, Field(ge=0)] = 6
    """Hours an observation fills after it."""
    unit: str = ""
    """For tables and figures."""
    fahrenheit: bool = False
    """Whether values above 60 are degrees Fahrenheit."""


def _vital(name: str, low: float, high: float, unit: str, *codes: str, **other: Any) -> Vital:
    return Vital(name=name, low=low, high=high, unit=unit, codes=codes, **other)


VITALS: Final = (
    _vital("HR", 25, 220, "bpm", "HR", "LAB//220045//bpm"),
    _vital(
        "SBP", 50, 260, "mmHg", "SBP", "SysABP", "NISysABP",
        "LAB//220050//mmHg", "LAB//220179//mmHg", "LAB//225309//mmHg",
    ),
    _vital(
        "DBP", 25, 150, "mmHg", "DBP", "DiasABP", "NIDiasABP",
        "LAB//220051//mmHg", "LAB//220180//mmHg", "LAB//225310//mmHg",
    ),
    _vital(
        "MAP", 30, 200, "mmHg", "MAP", "NIMAP",
        "LAB//220052//mmHg", "LAB//220181//mmHg", "LAB//225312//mmHg",
    ),
    _vital("RR", 6, 50, "/min", "RR", "RespRate", "LAB//220210//insp/min", "LAB//224690//insp/min"),
    _vital("SPO2", 55, 100, "%", "SPO2", "SaO2", "LAB//220277//%", carry_hours=4),
    _vital(
        "TEMP", 30, 43, "degC", "TEMP", "Temp", "LAB//223761//°F", "LAB//223762//°C",
        carry_hours=12, fahrenheit=True,
    ),
)  # fmt: skip
"""The usual seven, by the codes of PhysioNet 2012, MIMIC-IV in MEDS and the synthetic sources."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A binary question about a horizon, asked of the events after the prediction time."""

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    """Name of the task: labels are in `labels/<name>.parquet`."""
    event: tuple[str, ...]
    """Codes of the event (regular expressions); the first counts."""
    competing: tuple[str, ...] = ()
    """Codes after which the event cannot happen: death, where recurrence is asked for."""
    end: tuple[str, ...] = ("FOLLOW_UP//END",)
    """Codes that say how long a subject was followed; the last counts."""
    horizon_days: Annotated[float, Field(gt=0)]
    """Days from the prediction within which the event counts; one after them is a negative."""
    positive: Literal["event", "no event"] = "event"
    """Which answer the label calls true, and the model's probability is of."""
    competing_death: Literal["negative", "unknown"] = "negative"
    """What a competing event before the horizon makes of a subject: without the event for good, as
    in a cumulative incidence, or not known, as if it had been lost."""

    @property
    def describes(self) -> str:
        """Which class is positive, in words."""
        said = {"event": "within", "no event": "no event within"}[self.positive]
        codes = ", ".join(self.event)
        before = {"negative": "is without it", "unknown": "has no label"}[self.competing_death]
        other = f"; after {', '.join(self.competing)} a subject {before}" if self.competing else ""
        return f"true = {said} {self.horizon_days:g} days ({codes}){other}"


SURVIVAL_5Y: Final = Outcome(
    name="survival_5y",
    event=("MEDS_DEATH",),
    competing=("DEATH//OTHER_CAUSE",),
    horizon_days=5 * 365,
    positive="no event",
)
RECURRENCE_2Y: Final = Outcome(
    name="recurrence_2y",
    event=("RECURRENCE",),
    competing=("MEDS_DEATH", "DEATH//OTHER_CAUSE"),
    horizon_days=2 * 365,
)
