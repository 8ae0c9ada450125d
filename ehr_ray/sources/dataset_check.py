"""A MEDS dataset of others, used as it stands: what ingest would check is checked here."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.schema import RECORD, SPLITS
from ehr_ray.sources.parsing.split_table import read_splits
from ehr_ray.storage import files

SPLITS_FILE: Final = Path("metadata") / "subject_splits.parquet"
Each = Callable[
    [Callable[[Path], npt.NDArray[np.int64]], Sequence[Path]], Iterable[npt.NDArray[np.int64]]
]
REMEDY: Final = "run `ehr-ray ingest --source meds`"


def is_ours(cohort: Path, shards: Mapping[str, Sequence[Path]]) -> bool:
    """Whether `ingest` wrote all of these shards, which it has checked."""
    record = Path(cohort) / RECORD
    if not record.is_file():
        return False
    with files.reads(record, "restore it, or ingest the cohort again"):
        written = json.loads(record.read_text()).get("shards", {})
    return all({p.name for p in paths} <= set(written.get(s, ())) for s, paths in shards.items())


def check_dataset(
    cohort: Path, shards: Mapping[str, Sequence[Path]], each: Each | None = None
) -> list[str]:
    """Check who is where, by the ids alone; return lines on what a person should know.

    Raises `InputError` for a subject in two shards or in two splits, and where
    `metadata/subject_splits.parquet` puts subjects elsewhere than the folder they lie in.

    Args:
        cohort: folder of the dataset.
        shards: its shards by split.
        each: calls a function on each path, in order, wherever it likes; None: here.
    """
    ids, split = _located(cohort, shards, each)
    table = Path(cohort) / SPLITS_FILE
    if not table.is_file():
        return []
    said = read_splits(str(table)).of(ids)
    told = said.is_valid().to_numpy(zero_copy_only=False)
    ours = pa.array(SPLITS).take(pa.array(split))
    moved = int(np.sum(told & (said.to_numpy(False) != ours.to_numpy(False))))
    if moved:
        raise InputError(
            f"{table}: {moved:,} subjects have another split there than the folder under data/ "
            f"that they lie in; {REMEDY}, which follows the table"
        )
    return list(_unsaid(table, int(np.sum(~told)), len(ids)))


def _unsaid(table: Path, count: int, subjects: int) -> Iterator[str]:
    if count:
        yield (
            f"{count:,} of {subjects:,} subjects have no row in {table}: the folder they lie in "
            "decides"
        )


def _located(
    cohort: Path, shards: Mapping[str, Sequence[Path]], each: Each | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
    """Return (each subject once, position of its split in `SPLITS`)."""
    paths = [(SPLITS.index(split), path) for split, found in shards.items() for path in found]
    places = [path for _, path in paths]
    subjects = list(each(subjects_of, places) if each else map(subjects_of, places))
    ids = np.concatenate(subjects) if subjects else np.zeros(0, np.int64)
    shard = np.repeat(np.arange(len(paths)), [len(part) for part in subjects])
    order = np.argsort(ids, kind="stable")
    ids, shard = ids[order], shard[order]
    twice = np.flatnonzero(ids[1:] == ids[:-1])
    if len(twice):
        one, other = (paths[shard[twice[0] + i]][1].relative_to(cohort) for i in (0, 1))
        raise InputError(
            f"{cohort}: {len(twice):,} subjects are in more than one shard, the first of them in "
            f"{one} and in {other}; {REMEDY}, which joins what is one subject's"
        )
    return ids, np.array([split for split, _ in paths], np.int8)[shard]


def subjects_of(path: Path) -> npt.NDArray[np.int64]:
    """Return the subjects of a shard, each once, ascending; int64 [subjects]."""
    found = [np.zeros(0, np.int64)]
    with files.reads(path, REMEDY), files.open_parquet(path) as file:
        if "subject_id" not in file.schema_arrow.names:
            raise InputError(f"{path}: no column subject_id; a MEDS shard has one")
        for batch in file.iter_batches(1 << 20, columns=["subject_id"]):
            column = batch["subject_id"]
            if column.null_count or not pa.types.is_integer(column.type):
                raise InputError(f"{path}: subject_id must be integers without gaps; {REMEDY}")
            found.append(np.unique(column.cast(pa.int64()).to_numpy()))
    return np.unique(np.concatenate(found))
