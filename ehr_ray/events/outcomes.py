"""Outcomes with a horizon and censoring: what is known, what is not, and what a row then weighs.

N subjects. A subject is followed until the event, until something makes it impossible (a competing
event), or until it is lost from sight. At a horizon it has had the event, has not had it, or, lost
before, is unknown: unknown rows are never negatives.
"""

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ehr_ray.events.options import Outcome

CENSORED: Final = 0
EVENT: Final = 1
COMPETING: Final = 2
UNKNOWN: Final = -1

Floats = npt.NDArray[np.float64]
States = npt.NDArray[np.int8]


def follow(day: Floats, code: Sequence[str], outcome: Outcome) -> tuple[float, int]:
    """Return (days followed, state) of one subject from the days and codes of its events.

    Days count from the prediction; an event at day 0 is an event, not something known before it.
    NaN days: nothing says that it was followed at all.
    """
    found = {
        kind: [d for d, c in zip(day, code, strict=True) if _fits(c, patterns)]
        for kind, patterns in (
            (EVENT, outcome.event),
            (COMPETING, outcome.competing),
            (CENSORED, outcome.end),
        )
    }
    if found[EVENT]:
        return float(min(found[EVENT])), EVENT
    if found[COMPETING]:
        return float(min(found[COMPETING])), COMPETING
    return (float(max(found[CENSORED])) if found[CENSORED] else np.nan), CENSORED


def had_event(days: Floats, state: States, outcome: Outcome) -> npt.NDArray[np.int8]:
    """Return 1 for an event within the horizon, 0 for none, -1 where that is not known, [N].

    >>> had_event(np.array([90.0, 900, 90, 900]), np.array([1, 1, 0, 0], np.int8), RECURRENCE_2Y)
    array([ 1,  0, -1,  0], dtype=int8)
    """
    days, state = np.asarray(days, np.float64), np.asarray(state)
    answer = np.full(len(days), UNKNOWN, np.int8)
    within = days <= outcome.horizon_days
    answer[within & (state == EVENT)] = 1
    answer[days >= outcome.horizon_days] = 0
    answer[(state == EVENT) & (days == outcome.horizon_days)] = 1
    if outcome.competing_death == "negative":
        answer[within & (state == COMPETING)] = 0
    else:
        answer[within & (state == COMPETING)] = UNKNOWN
    return answer


def labels_at(days: Floats, state: States, outcome: Outcome) -> npt.NDArray[np.int8]:
    """Return `had_event` as the label has it: 1 is the positive class of the outcome, [N]."""
    answer = had_event(days, state, outcome)
    if outcome.positive == "event":
        return answer
    return np.where(answer == UNKNOWN, UNKNOWN, 1 - answer).astype(np.int8)


def kaplan_meier(
    days: Floats, event: npt.NDArray[np.bool_], *, last_of_day: bool = False
) -> tuple[Floats, Floats]:
    """Return (times of events, survival just after each) by the product-limit estimate.

    A row without the event is at risk through its last day. With `last_of_day` events come after
    all else of their day: such a row is then not at risk of an event on its last day.
    """
    known = np.isfinite(days)
    days, event = days[known], np.asarray(event, bool)[known]
    times, count = np.unique(days[event], return_counts=True)
    at_risk = len(days) - np.searchsorted(np.sort(days), times, side="left")
    if last_of_day:
        others = np.sort(days[~event])
        at_risk -= np.searchsorted(others, times, "right") - np.searchsorted(others, times, "left")
    survival: Floats = np.cumprod(1 - count / np.maximum(at_risk, 1)).astype(np.float64)
    return times, survival


def step(times: Floats, survival: Floats, at: Floats, *, before: bool = False) -> Floats:
    """Return the value of a survival curve at times, or just before them."""
    place = np.searchsorted(times, at, side="left" if before else "right")
    return np.concatenate([[1.0], survival])[place]


def censoring(days: Floats, state: States, outcome: Outcome) -> tuple[Floats, Floats]:
    """Return the Kaplan-Meier curve of not being lost from sight, of the rows it is fitted on.

    Who has the event on a day cannot be lost on it: of equal days, losses are the later.
    """
    lost = np.asarray(state) == CENSORED
    if outcome.competing_death == "unknown":
        lost |= np.asarray(state) == COMPETING
    return kaplan_meier(np.asarray(days, np.float64), lost, last_of_day=True)


def censoring_weights(
    days: Floats, state: States, outcome: Outcome, curve: tuple[Floats, Floats]
) -> Floats:
    """Return the inverse-probability-of-censoring weight of each row, 0 where unknown, [N].

    A row counts for those lost before its status was known: 1 / G(t-) for an event at t, 1 / G(h-)
    for a row followed through the horizon (Graf et al. 1999). G is at least 0.05.
    """
    known = had_event(days, state, outcome) != UNKNOWN
    until = np.minimum(np.nan_to_num(days, nan=outcome.horizon_days), outcome.horizon_days)
    share = step(*curve, until, before=True)
    return np.where(known, 1 / np.maximum(share, 0.05), 0.0)


def _fits(code: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, code) for pattern in patterns)
