"""Exact repeats of a row: the same subject, time, code and value once more."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.events.mixing import splitmix64


def repeats_of(events: pa.Table) -> npt.NDArray[np.bool_]:
    """Return which `EVENTS` rows repeat one before them, [N].

    Events of a subject and a time stand one after another, as in a shard.
    """
    again = np.zeros(len(events), bool)
    if len(events) < 2:
        return again
    ids, times = (events[name].to_numpy().view(np.int64) for name in ("subject_id", "time"))
    new = (ids[1:] != ids[:-1]) | (times[1:] != times[:-1])
    # Rows alone at their time repeat nothing: in many tables most of them.
    several = np.flatnonzero(~np.r_[True, new] | ~np.r_[new, True])
    if not len(several):
        return again
    found = events.select(["code", "numeric_value"]).take(pa.array(several))
    codes = found["code"].combine_chunks().dictionary_encode().indices
    columns = [
        np.cumsum(np.r_[True, new])[several],
        codes.to_numpy().astype(np.int64),
        # A value that is missing equals another that is.
        found["numeric_value"].to_numpy().astype(np.float32).view(np.int32).astype(np.int64),
    ]
    key = np.zeros(len(several), np.uint64)
    for column in columns:
        key = splitmix64(key ^ column.view(np.uint64))
    # Sorting one number a row is several times cheaper than sorting by three; few rows are left.
    order = np.argsort(key, kind="stable")
    same = key[order][1:] == key[order][:-1]
    candidates = np.sort(order[np.r_[False, same] | np.r_[same, False]])
    by_all = candidates[np.lexsort([column[candidates] for column in columns])]
    equal = np.logical_and.reduce([column[by_all][1:] == column[by_all][:-1] for column in columns])
    again[several[by_all[1:][equal]]] = True
    return again
