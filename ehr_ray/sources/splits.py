"""Which split a subject is in: a hash of its id and the seed, or what the source says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ehr_ray.errors import InputError
from ehr_ray.events.mixing import splitmix64, unit_interval
from ehr_ray.events.schema import SPLITS
from ehr_ray.sources.parsing.csv_files import SUFFIXES
from ehr_ray.sources.parsing.split_table import read_splits
from ehr_ray.storage import sync

NUM_BUCKETS: Final = 4096
"""Hash buckets of subjects, at least; a shard is a run of buckets of one split."""
MOST_BUCKETS: Final = 1 << 14
BUCKET_BYTES: Final = 32 << 20
"""Input of a bucket, on average: of CSV about a million rows, of Parquet some millions."""

DEFAULT_FRACTIONS: Final = (0.8, 0.1, 0.1)


@dataclass(frozen=True)
class SplitPolicy:
    """How subjects are divided.

    Args:
        fractions: shares of train, tuning and held_out.
        seed: changes who is where.
        keep_source: whether a split said by the source wins.
        file: a table of subject_id and split, the source's own where `keep_source`; without a row
            there a subject is divided by the hash then, and else refused.
    """

    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS
    seed: int = 0
    keep_source: bool = True
    file: Path | None = None


def parse_splits(text: str | None, seed: int) -> SplitPolicy:
    """Read `0.8,0.1,0.1`, `all:held_out`, a table's path (`.csv`, `.parquet`), or None.

    None: the source's own splits, else 0.8,0.1,0.1.
    """
    if text is None:
        return SplitPolicy(seed=seed)
    if text.endswith((*SUFFIXES, ".parquet")):
        path = sync.fetch(text).absolute()
        if not path.is_file():
            raise InputError(f"--splits {text}: no such file; check the path")
        read_splits.cache_clear()  # the file may have been written anew since
        read_splits(str(path))  # what is wrong with it is said before anything is read
        return SplitPolicy(seed=seed, keep_source=False, file=path)
    if text.startswith("all:"):
        if text[4:] not in SPLITS:
            raise InputError(f"--splits {text}: no such split; use all:{'|'.join(SPLITS)}")
        train, tuning, held_out = (float(split == text[4:]) for split in SPLITS)
        return SplitPolicy((train, tuning, held_out), seed, keep_source=False)
    try:
        train, tuning, held_out = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--splits {text}: not three numbers such as 0.8,0.1,0.1, all:SPLIT, or the path of a "
            "table (.csv, .parquet) of subject_id and split"
        ) from None
    fractions = (train, tuning, held_out)
    if min(fractions) < 0 or not abs(sum(fractions) - 1) < 1e-6:
        raise InputError(f"--splits {text}: fractions must be >= 0 and add up to 1")
    return SplitPolicy(fractions, seed, keep_source=False)


def assign_splits(ids: npt.NDArray[np.int64], policy: SplitPolicy) -> npt.NDArray[np.uint8]:
    """Return the position in `SPLITS` of each id.

    It depends on the id and the seed alone: adding or removing subjects moves nobody.

    >>> assign_splits(np.array([1, 2, 3, 4]), SplitPolicy((0.5, 0.0, 0.5)))
    array([0, 2, 2, 0], dtype=uint8)
    """
    salt = splitmix64(np.array([policy.seed], np.int64).view(np.uint64))
    uniform = unit_interval(splitmix64(ids.view(np.uint64) ^ salt))
    edges = np.cumsum(policy.fractions)[:-1]
    # A share of 0 at the end must stay empty however the sum was rounded.
    last = max(i for i, share in enumerate(policy.fractions) if share > 0)
    return np.minimum(np.searchsorted(edges, uniform, side="right"), last).astype(np.uint8)


def buckets_for(size: int) -> int:
    """Return how many buckets an input of `size` bytes is divided into, a power of two.

    A shard is a bucket at least and a task holds it, so larger inputs have more. A part says of a
    bucket 12 bytes for each batch of its rows: small inputs gain nothing from fewer, and of large
    ones, which have many parts, this grows with the square.

    >>> buckets_for(10 << 30), buckets_for(200 << 30), buckets_for(1 << 40)
    (4096, 8192, 16384)
    """
    wanted = max(1, -(-size // BUCKET_BYTES))
    return min(max(NUM_BUCKETS, 1 << (wanted - 1).bit_length()), MOST_BUCKETS)


def assign_buckets(ids: npt.NDArray[np.int64], number: int = NUM_BUCKETS) -> npt.NDArray[np.uint16]:
    """Return the hash bucket of each id, in [0, number), independent of its split."""
    return (splitmix64(~ids.view(np.uint64)) % np.uint64(number)).astype(np.uint16)


def sample_positions(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1) for each id, independent of its split and its bucket.

    Those below f are a sample of about that share, in which a smaller sample is contained.
    """
    return unit_interval(splitmix64(splitmix64(ids.view(np.uint64))))
