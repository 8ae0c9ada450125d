"""A cohort divided anew: folds of subjects, each of them a cohort with statistics of its own train.

So a fold is trained and scored by the code that trains and scores any cohort, and whatever is
fitted on train is fitted on the fold's train alone.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.code_statistics import fit_codes
from ehr_ray.events.labels import is_among
from ehr_ray.events.patients import splits_of
from ehr_ray.events.schema import SPLITS
from ehr_ray.events.vocabulary import described, origin_of, with_origin
from ehr_ray.storage import files

REMEDY: Final = "restore it, or ingest the cohort again"
RARE: Final = 5
"""Subjects without which a stratum joins the others that are as rare."""


def folds_of(strata: npt.NDArray[np.integer], num_folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the fold of each subject, int [N]: every stratum spread evenly, in random order.

    `strata` is any label of each subject; those with fewer subjects than folds are one.
    """
    values, group, counts = np.unique(strata, return_inverse=True, return_counts=True)
    group = np.where(counts[group] < max(num_folds, RARE), len(values), group)
    if len(strata) < num_folds:
        raise InputError(f"--folds {num_folds}: only {len(strata)} subjects")
    rng = np.random.default_rng([seed, num_folds])
    fold = np.empty(len(strata), np.int64)
    first = 0
    for one in np.unique(group):
        members = rng.permutation(np.flatnonzero(group == one))
        fold[members] = (np.arange(len(members)) + first) % num_folds
        first += len(members)
    return fold


def write_fold(cohort: Path, splits: Mapping[str, npt.NDArray[np.int64]], folder: Path) -> Path:
    """Write a cohort with these subjects in its splits, by rename, and return its folder.

    The events of a shard are held at a time. Codes are fitted anew on train.

    Args:
        cohort: where the events are, of whatever split.
        splits: subjects by split, ascending, int64 [S].
        folder: of the new cohort.
    """
    paths = [path for shards in splits_of(cohort).values() for path in shards]
    schema = _schema_of(paths)

    def publish(whole: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        whole.rename(folder)

    with files.new_folder(folder, publish) as partial:
        shards: dict[str, list[Path]] = {}
        for split in SPLITS:
            wanted = splits.get(split, np.zeros(0, np.int64))
            shard = partial / "data" / split / "0.parquet"
            files.write_parquet_pieces(_events_of(wanted, paths, schema), schema, shard)
            shards[split] = [shard] if len(wanted) else []
        other = [path for split, paths in shards.items() if split != "train" for path in paths]
        codes, known = fit_codes(shards["train"], other), cohort / "metadata" / "codes.parquet"
        if known.is_file():
            said = files.read_parquet(known)
            codes = with_origin(described(codes, said), origin_of(said))
        files.write_parquet(codes, partial / "metadata" / "codes.parquet")
        if (cohort / "labels").is_dir():
            shutil.copytree(cohort / "labels", partial / "labels")
    return folder


def _schema_of(paths: Sequence[Path]) -> pa.Schema:
    """Return a schema that holds the rows of all files."""
    schemas = []
    for path in paths:
        with files.reads(path, REMEDY), files.open_parquet(path) as file:
            schemas.append(file.schema_arrow)
    return pa.unify_schemas(schemas, promote_options="default")


def _events_of(
    subjects: npt.NDArray[np.int64], paths: Sequence[Path], schema: pa.Schema
) -> Iterator[pa.Table]:
    """Yield the events of subjects, file by file."""
    for path in paths if len(subjects) else ():
        table = files.read_parquet(path, remedy=REMEDY)
        rows = pa.array(is_among(table["subject_id"].to_numpy(), subjects))
        yield pa.concat_tables(
            [schema.empty_table(), table.filter(rows)], promote_options="default"
        )
