"""How many patients have each code: what decides which codes baselines get features of."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.events.patient_features import FeatureCodes, choose_codes
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.runtime.data.tasks import Say, run_jobs
from ehr_ray.storage import files, sync
from ehr_ray.storage.paths import canonical

_KINDS = ("patients", "timed", "static")


def feature_codes(
    shards: Sequence[Path],
    vocabulary: Vocabulary,
    allowed: np.ndarray | None = None,
    *,
    on_ray: bool,
    say: Say,
) -> FeatureCodes:
    """Choose the codes that get features by the patients of train shards, one task a shard.

    `allowed` leaves out codes, bool [V].
    """
    counted = run_jobs(
        _count, [canonical(path) for path in shards], on_ray=on_ray, say=say, verb="counted shards"
    )
    total = {kind: np.zeros(len(vocabulary), np.int64) for kind in _KINDS}
    for one in counted:
        code = vocabulary.encode(one["code"])
        for kind, counts in total.items():
            counts[code[code >= 0]] += np.asarray(one[kind], np.int64)[code >= 0]
    if allowed is not None:
        total = {kind: np.where(allowed, counts, 0) for kind, counts in total.items()}
    valued = np.asarray(~np.isnan(vocabulary.quantiles).any(axis=1))
    return choose_codes(total["patients"], total["timed"], total["static"], valued)


def _count(shard: str) -> dict[str, list[str] | list[int]]:
    """Return the codes of a shard and how many subjects have an event of each, by its kind."""
    table = files.read_parquet(sync.fetch(shard), ["subject_id", "time", "code"])
    table = table.set_column(1, "static", pc.is_null(table["time"]))
    table = table.group_by(["subject_id", "static", "code"]).aggregate([])
    ones = {
        "timed": pc.invert(table["static"]).cast(pa.int64()),
        "static": table["static"].cast(pa.int64()),
    }
    both = pa.table({name: table[name] for name in ("subject_id", "code")} | ones)
    each = both.group_by("code").aggregate(
        [("subject_id", "count_distinct"), ("timed", "sum"), ("static", "sum")]
    )
    return {
        "code": each["code"].to_pylist(),
        "patients": each["subject_id_count_distinct"].to_pylist(),
        "timed": each["timed_sum"].to_pylist(),
        "static": each["static_sum"].to_pylist(),
    }
