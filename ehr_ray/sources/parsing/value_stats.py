"""A table of value statistics, a code, mean and standard deviation a row, as it is given."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from ehr_ray.errors import InputError
from ehr_ray.events.vocabulary import QUANTILES, Vocabulary


def with_value_stats(vocabulary: Vocabulary, path: Path, option: str) -> Vocabulary:
    """Return the vocabulary with the mean and std of a CSV; 0 and 1 for codes it has not.

    `option` is what the path was given by. Raises InputError for a table that is none.
    """
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{option} {path}: not a readable CSV; give code, mean, std") from error
    lower = {str(c).lower(): c for c in frame.columns}
    std = next((lower[c] for c in ("std", "stdev", "stddev") if c in lower), None)
    key = next(
        (lower[c] for c in ("key", "variable", "code", "event", "name") if c in lower),
        frame.columns[0],
    )
    if "mean" not in lower or std is None:
        raise InputError(f"{option} {path}: needs columns mean and std beside the code")
    stats = frame.set_index(frame[key].astype(str))[[lower["mean"], std]]
    numbers = stats.apply(pd.to_numeric, errors="coerce")
    wrong = numbers.isna() & stats.notna()
    if wrong.any(axis=None):
        code = stats.index[wrong.any(axis=1)][0]
        raise InputError(f"{option} {path}: mean or std of {code!r} is not a number; mend it")
    if numbers.index.has_duplicates:
        twice = numbers.index[numbers.index.duplicated()][0]
        raise InputError(f"{option} {path}: {twice!r} appears twice; keep one row a code")
    numbers = numbers.reindex(list(vocabulary.codes))
    mean, spread = numbers.iloc[:, 0].to_numpy(), numbers.iloc[:, 1].to_numpy()
    mean = np.where(np.isfinite(mean), mean, np.nan)
    return replace(
        vocabulary,
        mean=np.nan_to_num(mean),
        std=np.where(np.isfinite(spread) & (spread > 0), spread, 1.0),
        quantiles=np.repeat(mean[:, None], len(QUANTILES), 1),  # says which codes have any
        scaling="standard",
    )
