"""Last value carried forward (LVCF): a patient's events to one set per distinct minute."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Tokens:
    """The sets of one patient, T tokens sorted by (set, code) in S sets.

    Args:
        set_index: rank of the token's minute, int32 [T].
        code: code id, int32 [T].
        value: last observed value in original units, float32 [T]; NaN for a value-less code.
        age: minutes since that observation, float64 [T]; 0 where it is live.
        is_carry: whether it was observed before and carried, bool [T].
        minute: minute of each set, ascending, float64 [S].
    """

    set_index: npt.NDArray[np.int32]
    code: npt.NDArray[np.int32]
    value: npt.NDArray[np.float32]
    age: npt.NDArray[np.float64]
    is_carry: npt.NDArray[np.bool_]
    minute: npt.NDArray[np.float64]


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

    At each distinct minute the variables observed there are live; those observed before are
    carried while `minute - last observation <= window`, or for ever if static or in `always`.
    Of several values at a minute the last in order wins. A value-less observation is live only
    (and ends what was carried of that code) unless it is static. The work is proportional to the
    tokens made, not to sets times codes, so a long history of many rare codes stays cheap.

    Args:
        minute: minutes since the origin, ascending and not negative, [E].
        code: code ids, not negative, [E].
        value: values, NaN where an event has none, [E].
        static: events without a time, which come at minute 0, [E].
        window: longest age carried, in minutes, inclusive.
        always: codes carried whatever their age, bool [number of codes].
    """
    first = np.empty(len(minute), bool)
    first[:1] = True
    np.not_equal(minute[1:], minute[:-1], out=first[1:])
    set_minute = minute[first]
    num_sets = len(set_minute)
    set_of = np.cumsum(first) - 1

    has_value = ~np.isnan(value)
    key = (code.astype(np.int64) * max(num_sets, 1) + set_of) * 2 + has_value
    order = np.argsort(key, kind="stable")
    group = key[order] >> 1
    last = np.ones(len(order), bool)
    np.not_equal(group[1:], group[:-1], out=last[:-1])
    seen = order[last]  # one observation per (code, set), ascending

    start, seen_code = set_of[seen], code[seen]
    end = np.full(len(seen), num_sets)
    same = seen_code[1:] == seen_code[:-1]
    end[:-1][same] = start[1:][same]
    forever = static[seen] if always is None else static[seen] | always[seen_code]
    expiry = np.where(forever, num_sets, _first_beyond(set_minute, minute[seen], window))
    expiry = np.where(has_value[seen] | static[seen], expiry, start + 1)
    length = np.minimum(end, expiry) - start

    observation = np.repeat(np.arange(len(seen), dtype=np.int32), length)
    run_start = np.cumsum(length) - length
    within = np.arange(len(observation)) - np.repeat(run_start - start, length)
    # A stable sort by set keeps the codes of a set ascending; on 16-bit keys it is a radix sort.
    narrow = within.astype(np.uint16 if num_sets <= 1 << 16 else np.int32)
    observation = observation[np.argsort(narrow, kind="stable")]
    set_index = np.repeat(
        np.arange(num_sets, dtype=np.int32), np.bincount(within, minlength=num_sets)
    )
    event = seen[observation]
    return Tokens(
        set_index=set_index,
        code=code[event].astype(np.int32, copy=False),
        value=value[event],
        age=set_minute[set_index] - minute[event],
        is_carry=set_of[event] != set_index,
        minute=set_minute,
    )


def _first_beyond(
    set_minute: npt.NDArray[np.float64], seen: npt.NDArray[np.float64], window: float
) -> npt.NDArray[np.int64]:
    """Return the first set with `set_minute - seen > window`, by exactly that subtraction."""
    index = np.searchsorted(set_minute, seen + window, side="right")
    padded = np.append(set_minute, np.inf)
    # The sum and the difference may round apart by one set at the very edge of the window.
    index = index - ((index > 0) & (padded[np.maximum(index - 1, 0)] - seen > window))
    return index + (padded[index] - seen <= window)
