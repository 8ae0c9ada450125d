"""Last value carried forward (LVCF): a patient's events to one set per distinct minute."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Tokens:
    """The sets of one patient, T tokens sorted by (set, code) in S sets; minutes are whole.

    Args:
        set_index: rank of the token's minute, int32 [T].
        code: code id, int32 [T].
        value: last observed value in original units, float32 [T]; NaN for a value-less code.
        age: minutes since that observation, float64 [T]; 0 where it is live.
        is_carry: whether it was observed before and carried, bool [T].
        minute: minute of each set, ascending, 0 or later, float64 [S].
    """

    set_index: npt.NDArray[np.int32]
    code: npt.NDArray[np.int32]
    value: npt.NDArray[np.float32]
    age: npt.NDArray[np.float64]
    is_carry: npt.NDArray[np.bool_]
    minute: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PatientSets:
    """A patient whose values are carried forward and z-scored already, as `expand` wrote them.

    Args:
        subject_id: MEDS subject id.
        tokens: its sets, whose `value` is z-scored, 1 for a value-less code.
    """

    subject_id: int
    tokens: Tokens


def carry_forward(
    minute: npt.NDArray[np.float64],
    code: npt.NDArray[np.int32],
    value: npt.NDArray[np.float32],
    static: npt.NDArray[np.bool_],
    *,
    window: float,
    always: npt.NDArray[np.bool_] | None = None,
) -> Tokens:
    """Expand one patient's events, in time order, to sets with carried values.

    At each distinct minute (whole, rounded down) the variables observed there are live; those
    observed before are carried while `minute - last observation <= window`, or for ever if static
    or in `always`. Of several values at a minute the last in order wins. A value-less observation
    is live only (and ends what was carried of that code) unless it is static. Sets before minute
    0 are left out; what is carried from then makes a set at minute 0 if nothing else does. Work
    is proportional to the tokens made, not to sets times codes: many rare codes stay cheap.

    Args:
        minute: minutes since the origin, negative before it, ascending but for the static events,
            which come first with minute 0, [E].
        code: code ids, not negative, [E].
        value: values, NaN where an event has none, [E].
        static: events without a time, which come at minute 0, [E].
        window: longest age carried, in minutes, inclusive.
        always: codes carried whatever their age, bool [number of codes].
    """
    minute = np.floor(minute)
    early = len(minute) > 0 and minute.min() < 0
    if early:  # static events, at minute 0, stand before those
        order = np.argsort(minute, kind="stable")
        minute, code, value, static = minute[order], code[order], value[order], static[order]
    set_minute, set_of, start_set = _sets(minute, early)
    num_sets, has_value = len(set_minute), ~np.isnan(value)
    seen = _last_of_each(code, set_of, has_value, num_sets)

    # An observation is in a run of sets: from its own to that of the next one of its code, or until
    # it is too old, whichever comes first.
    start, seen_code = set_of[seen], code[seen]
    end = np.full(len(seen), num_sets)
    same = seen_code[1:] == seen_code[:-1]
    end[:-1][same] = start[1:][same]
    forever = static[seen] if always is None else static[seen] | always[seen_code]
    # Minutes are whole, so that the sum is exact once the window is.
    beyond = np.searchsorted(set_minute, minute[seen] + np.floor(window), side="right")
    expiry = np.where(forever, num_sets, beyond)
    # Without a value it ends with its own set, and has still ended the run before it.
    expiry = np.where(has_value[seen] | static[seen], expiry, start + 1)
    start = np.maximum(start, start_set)  # what is carried from before minute 0 begins there
    length = (np.minimum(end, expiry) - start).clip(min=0)

    observation, set_index = _by_set(start, length, num_sets)
    event = seen[observation]
    # Where nothing was carried into minute 0, and nothing observed, there is no such set.
    start_set += int(early and (not len(set_index) or set_index[0] > start_set))
    return Tokens(
        set_index=set_index - np.int32(start_set),
        code=code[event].astype(np.int32, copy=False),
        value=value[event],
        age=set_minute[set_index] - minute[event],
        is_carry=set_of[event] != set_index,
        minute=set_minute[start_set:],
    )


def _sets(
    minute: npt.NDArray[np.float64], early: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], int]:
    """Return the minute of each set, the set of each event and, if some are `early`, where 0 is."""
    first = np.empty(len(minute), bool)
    first[:1] = True
    np.not_equal(minute[1:], minute[:-1], out=first[1:])
    set_minute = minute[first]
    set_of = np.cumsum(first) - 1
    if not early:
        return set_minute, set_of, 0
    start_set = int(np.searchsorted(set_minute, 0.0))
    if start_set == len(set_minute) or set_minute[start_set] > 0:
        set_minute = np.insert(set_minute, start_set, 0.0)
        set_of += set_of >= start_set
    return set_minute, set_of, start_set


def _last_of_each(
    code: npt.NDArray[np.int32],
    set_of: npt.NDArray[np.int64],
    has_value: npt.NDArray[np.bool_],
    num_sets: int,
) -> npt.NDArray[np.intp]:
    """Return the event that counts of each code in each set, ascending by code and set.

    It is the last with a value, or the last where none has one.
    """
    # Having a value is the lowest digit and the sort is stable: the last of a group is wanted.
    key = (code.astype(np.int64) * max(num_sets, 1) + set_of) * 2 + has_value
    order = np.argsort(key, kind="stable")
    group = key[order] >> 1
    last = np.ones(len(order), bool)
    np.not_equal(group[1:], group[:-1], out=last[:-1])
    return order[last]


def _by_set(
    start: npt.NDArray[np.int64], length: npt.NDArray[np.int64], num_sets: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return the observation and the set of each token, by set and then as observations are.

    An observation is in `length` sets, from `start` on.
    """
    observation = np.repeat(np.arange(len(start), dtype=np.int32), length)
    run_start = np.cumsum(length) - length
    within = np.arange(len(observation)) - np.repeat(run_start - start, length)
    # A stable sort by set keeps the codes of a set ascending; on 16-bit keys it is a radix sort.
    narrow = within.astype(np.uint16 if num_sets <= 1 << 16 else np.int32)
    observation = observation[np.argsort(narrow, kind="stable")]
    set_index = np.repeat(
        np.arange(num_sets, dtype=np.int32), np.bincount(within, minlength=num_sets)
    )
    return observation, set_index
