"""Variables that clinicians compute from others, as in PaO2/FiO2: a table, and its events.

`lookups/derived_variables.csv` says of each variable how it is made (`kind`) and of which codes
(`of`, `by`; alternatives are parted by `|`, and a code stands for itself and for what begins with
it and `//`). A variable may have several rows, for cohorts of different codes:

- `ratio`: each value of `of`, divided by the last known value of `by`, static ones included;
- `sum`: of the last known values of all codes of `of`, whenever one of them is measured;
- `merge`: every value of any code of `of`;
- `presence`: 1 at every event of any code of `of`.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

TABLE: Final = Path(__file__).parent / "lookups" / "derived_variables.csv"
KINDS: Final = ("ratio", "sum", "merge", "presence")
Events = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Minutes, ascending, and values."""


@dataclass(frozen=True, eq=False)
class Rule:
    """A row of the table for the codes of one vocabulary of V codes."""

    variable: int
    """Place of its variable among the names."""
    kind: str
    of: tuple[NDArray[np.bool_], ...]
    """bool [V] of each code in `of` that is known."""
    by: NDArray[np.bool_]
    """bool [V], of all codes in `by`."""


def derivable(codes: Sequence[str]) -> tuple[list[str], list[Rule]]:
    """Return the variables that can be made of a vocabulary's codes, and how."""
    names: list[str] = []
    rules = []
    for variable, kind, of, by in derived_variables():
        columns = [_matching(codes, name) for name in of]
        known = [column for column in columns if column.any()]
        divisor = np.zeros(len(codes), bool)
        for name in by:
            divisor |= _matching(codes, name)
        whole = len(known) == len(columns) if kind == "sum" else bool(known)
        if not whole or (kind == "ratio" and not divisor.any()):
            continue
        if variable not in names:
            names.append(variable)
        rules.append(Rule(names.index(variable), kind, tuple(known), divisor))
    return names, rules


def derived_events(
    minute: NDArray[np.floating],
    code: NDArray[np.integer],
    value: NDArray[np.floating],
    static: NDArray[np.bool_],
    rules: Sequence[Rule],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Return minute, variable and value of the events that follow from one patient's, [D] each.

    Args:
        minute: float[E], since the origin; ignored for static events.
        code: int[E], vocabulary ids.
        value: float[E], NaN where the event has none.
        static: bool[E].
        rules: of `derivable`.
    """
    at = np.where(static, -np.inf, minute)
    order = np.argsort(at, kind="stable")
    at, code = at[order], code[order]
    x = value[order].astype(np.float64)
    valued = ~np.isnan(x)
    made: list[tuple[int, Events]] = []
    for rule in rules:
        masks = [column[code] for column in rule.of]
        if rule.kind == "sum":
            events = _sum([(at[m & valued], x[m & valued]) for m in masks])
        else:
            rows = np.logical_or.reduce(masks) & (valued | (rule.kind == "presence"))
            events = at[rows], x[rows]
        if rule.kind == "presence":
            events = events[0], np.ones(len(events[0]))
        elif rule.kind == "ratio":
            by = rule.by[code] & valued
            events = _ratio(events, (at[by], x[by]))
        made.append((rule.variable, events))
    times = np.concatenate([e[0] for _, e in made]) if made else np.zeros(0)
    values = np.concatenate([e[1] for _, e in made]) if made else np.zeros(0)
    variable = np.repeat([v for v, _ in made], [len(e[0]) for _, e in made]).astype(np.int64)
    kept = np.isfinite(times) & np.isfinite(values)  # of static values alone nothing happens
    return times[kept], variable[kept], values[kept]


def _ratio(top: Events, bottom: Events) -> Events:
    last = _last_known(bottom, top[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        return top[0], top[1] / last


def _sum(parts: Sequence[Events]) -> Events:
    times = np.unique(np.concatenate([part[0] for part in parts]))
    return times, np.sum([_last_known(part, times) for part in parts], axis=0)


def _last_known(events: Events, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the last value at or before each of `times`, NaN before the first."""
    place = np.searchsorted(events[0], times, side="right") - 1
    return np.append(events[1], np.nan)[place]


def _matching(codes: Sequence[str], name: str) -> NDArray[np.bool_]:
    return np.array([code == name or code.startswith(f"{name}//") for code in codes], bool)


@cache
def derived_variables() -> tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...]:
    """Return (name, kind, codes it is made of, codes it is divided by) of each derived variable."""

    def split(text: str) -> tuple[str, ...]:
        return tuple(text.split("|")) if text else ()

    with TABLE.open(newline="", encoding="utf-8") as file:
        return tuple(
            (row["variable"], row["kind"], split(row["of"]), split(row["by"]))
            for row in csv.DictReader(file)
        )
