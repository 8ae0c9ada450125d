"""A cohort as models use it: checked once, with codes and statistics fitted on its train split."""

import contextlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ehr_ray.errors import InputError
from ehr_ray.events.scaling import Scaling
from ehr_ray.events.schema import VECTORS_FILE, is_origin, parse_origin
from ehr_ray.events.vocabulary import (
    Vocabulary,
    described,
    is_fitted,
    origin_of,
    with_origin,
)
from ehr_ray.runtime.data.manifest import (
    NO_FILES,
    Shards,
    fitted_codes,
    in_scratch,
    kept_lines,
    mute,
    opened,
)
from ehr_ray.runtime.data.tasks import Say, run_jobs
from ehr_ray.sources.dataset_check import SPLITS_FILE, check_dataset, is_named
from ehr_ray.storage import files

CODES = Path("metadata") / "codes.parquet"


def check_cohort(
    cohort: Path,
    cache: Path | None = None,
    say: Say = lambda _: None,
    *,
    on_ray: bool = False,
    shards: Shards | None = None,
) -> None:
    """Check a dataset that ingest did not write; see `check_dataset` for what is refused.

    What was found is kept under `cache`, where that takes files, and told again until one of the
    dataset changes. With
    `on_ray` its shards are read by tasks of the session that is open. `shards` are those of the
    cohort, where they have been listed.
    """
    shards = shards or Shards.of(cohort, cache)
    if is_named(cohort, shards.texts) and not shards.contradicted & shards.texts.keys():
        return
    kept = None if cache is None else cache / f"checked-{shards.digest(SPLITS_FILE)}.json"
    lines = None if kept is None else kept_lines(kept)
    if lines is None:

        def make(folder: Path, on_ray: bool) -> list[str]:
            run = partial(run_jobs, on_ray=on_ray, say=mute, verb="checked ids")
            return check_dataset(cohort, shards.splits, folder, run)

        lines = in_scratch(cache, "ids", make, on_ray=on_ray)
        if kept is not None:
            with contextlib.suppress(*NO_FILES):
                files.write_text(kept, json.dumps(lines))
    for line in lines:
        say(line)


def num_patients(cohort: Path, split: str, cache: Path | None, *, on_ray: bool) -> int:
    """Return the number of subjects with events in a split; `cache` is as `opened` takes it."""
    with opened(cohort, cache, on_ray=on_ray) as manifest:
        return manifest.total("subjects", split)


def codes_table(
    cohort: Path,
    cache: Path | None = None,
    *,
    on_ray: bool = False,
    say: Say = mute,
    shards: Shards | None = None,
) -> pa.Table:
    """Return the cohort's codes with train statistics: those of ingest, else fitted here.

    Statistics of another maker are not believed, as nobody says what they were fitted on, and those
    of ingest not where its manifest says that train had other shards than now. What is fitted here
    is kept under `cache`, where that takes files, until one changes. With `on_ray` shards are
    counted and sampled by tasks of the session that is open. `shards` are those of the cohort,
    where they were listed.
    """
    shards = shards or Shards.of(cohort, cache)
    path = Path(cohort) / CODES
    said = files.read_parquet(path, remedy="ingest the cohort again") if path.is_file() else None
    if said is not None and is_fitted(said):
        if "train" not in shards.contradicted:
            return said
        say(f"{cohort}: train has other shards than at ingest: statistics of codes are fitted anew")
    kept = None if cache is None else cache / f"codes-{shards.digest(CODES)}.parquet"
    if kept is not None and kept.is_file():
        return files.read_parquet(kept, remedy="remove it, and it is made again")
    with opened(cohort, cache, on_ray=on_ray, say=say, shards=shards) as manifest:
        train = shards.splits.get("train", [])
        table = fitted_codes(manifest, train, cache, on_ray=on_ray, say=say)
    if said is not None and "code" in said.column_names:
        table = with_origin(described(table, said), origin_of(said))
    if kept is not None:
        with contextlib.suppress(*NO_FILES):
            files.write_parquet(table, kept)
    return table


def vocabulary_of(
    cohort: Path,
    min_count: int,
    *,
    origin: Sequence[str] | None = None,
    cache: Path | None = None,
    scaling: Scaling = "robust",
    on_ray: bool = False,
    say: Say = mute,
    shards: Shards | None = None,
) -> Vocabulary:
    """Return the codes a model may know: those seen often enough in train.

    Of events that came embedded those of other splits are known too where `min_count` is 0.
    `origin` are the codes of the time origin (`data.origin`), which must be there; None: those the
    cohort names, else the usual. `scaling` is `data.scale`; `on_ray` and `shards` are as
    `codes_table` has them.
    """
    table = codes_table(cohort, cache, on_ray=on_ray, say=say, shards=shards)
    if origin is not None:
        origin = parse_origin(",".join(origin), "data.origin")
        require_origin(table, origin, f"data.origin={list(origin)}", cohort)
    least = 0 if (cohort / VECTORS_FILE).is_file() else 1  # a vector says something untrained
    count = max(least, min_count)
    return Vocabulary.from_table(table, min_count=count, origin=origin, scaling=scaling)


def require_origin(table: pa.Table, origin: Sequence[str], option: str, cohort: Path) -> None:
    """Raise InputError where no code of a `codes.parquet` table is one of the origin's."""
    if not any(is_origin(code, origin) for code in table["code"].to_pylist()):
        raise InputError(f"{option}: no such code in {cohort}; check it")


def named_origin(cohort: Path) -> tuple[str, ...] | None:
    """Return the origin codes that a cohort was ingested with, None where it names none."""
    path = Path(cohort) / CODES
    if not path.is_file():
        return None
    with files.reads(path, "ingest the cohort again"):
        origin = origin_of(pq.read_schema(path).empty_table())
    return origin if origin != Vocabulary.origin else None
