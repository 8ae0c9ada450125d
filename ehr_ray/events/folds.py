"""A cohort divided anew: folds of subjects, each of them a cohort with statistics of its own train.

So a fold is trained and scored by the code that trains and scores any cohort, and whatever is
fitted on train is fitted on the fold's train alone.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.events.code_statistics import fit_codes
from ehr_ray.events.patients import splits_of
from ehr_ray.events.schema import SPLITS
from ehr_ray.events.vocabulary import described, origin_of, with_origin
from ehr_ray.storage import files

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


def read_events(cohort: Path) -> pa.Table:
    """Return the events of all splits, which must fit memory."""
    paths = [path for shards in splits_of(cohort).values() for path in shards]
    return pa.concat_tables([files.read_parquet(path) for path in paths], promote_options="default")


def write_fold(
    cohort: Path, events: pa.Table, splits: Mapping[str, Sequence[int]], folder: Path
) -> Path:
    """Write a cohort with these subjects in its splits, by rename, and return its folder.

    `events` are those of `cohort`, whole subjects together. Codes are fitted anew on train.
    """

    def publish(whole: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        whole.rename(folder)

    with files.new_folder(folder, publish) as partial:
        shards: dict[str, list[Path]] = {}
        for split in SPLITS:
            wanted = pa.array(sorted(splits.get(split, ())), pa.int64())
            part = events.filter(pc.is_in(events["subject_id"], value_set=wanted))
            shard = partial / "data" / split / "0.parquet"
            files.write_parquet(part, shard)
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
