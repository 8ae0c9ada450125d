"""Exact repeats of a row: the same subject, time, code and value once more."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.events.mixing import splitmix64


def repeats_of(events: pa.Table) -> npt.NDArray[np.bool_]:
    """Return which `EVENTS` rows repeat one before them, [N]."""
    if len(events) < 2:
        return np.zeros(len(events), bool)
    codes = events["code"].combine_chunks().dictionary_encode().indices
    columns = [
        events["subject_id"].to_numpy(),
        events["time"].to_numpy().view(np.int64),
        codes.to_numpy().astype(np.int64),
        # A value that is missing equals another that is.
        events["numeric_value"].to_numpy().astype(np.float32).view(np.int32).astype(np.int64),
    ]
    key = np.zeros(len(events), np.uint64)
    for column in columns:
        key = splitmix64(key ^ column.view(np.uint64))
    # Sorting one number a row is several times cheaper than sorting by four; few rows are left.
    order = np.argsort(key, kind="stable")
    same = key[order][1:] == key[order][:-1]
    again = np.zeros(len(events), bool)
    candidates = np.sort(order[np.r_[False, same] | np.r_[same, False]])
    by_all = candidates[np.lexsort([column[candidates] for column in columns])]
    equal = np.logical_and.reduce([column[by_all][1:] == column[by_all][:-1] for column in columns])
    again[by_all[1:][equal]] = True
    return again
