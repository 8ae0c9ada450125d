"""What inference left of a split, read so that the wide columns of few rows are held at a time.

A wide column has a list a row, as embeddings and features: kilobytes a row, where all else, an id,
a time, a label, a subgroup, takes some tens of bytes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ehr_ray.evaluation.suite import SplitPredictions
from ehr_ray.runtime.data.rows import sampled
from ehr_ray.runtime.inference.shards import LABEL
from ehr_ray.storage import files

SAMPLES = "samples"


@dataclass(frozen=True)
class PredictedRows:
    """The rows of a split: all without wide columns, and some of the subjects' with them."""

    rows: SplitPredictions
    """All of them, without wide columns and tables."""
    sample: SplitPredictions
    """Those of a share of the subjects, with everything; tables tell of these alone."""
    folders: Sequence[Path]
    """Where each shard's are."""

    @property
    def whole(self) -> bool:
        """Whether the sample has all rows."""
        return len(self.sample.samples) == len(self.rows.samples)

    def blocks(self, columns: Sequence[str] | None = None) -> Iterator[SplitPredictions]:
        """Yield all rows in their order, with these columns or all, and no tables.

        They are read shard by shard, unless the sample has them all.
        """
        if self.whole:
            samples = self.sample.samples
            yield SplitPredictions(
                samples if columns is None else samples.select(columns), {}, self.sample.label
            )
            return
        for folder in self.folders:
            if _has(folder, SAMPLES):
                yield _labelled(_table(folder, SAMPLES, columns), {})


def read_rows(folders: Sequence[Path], names: Iterable[str], share: float) -> PredictedRows | None:
    """Read what the shards of a split left; None if there is no row.

    Args:
        folders: one a shard, with `samples` and, as far as they were asked for, other tables.
        names: of those tables.
        share: of the subjects whose wide columns and tables are kept, the same ones each time.
    """
    rows: list[pa.Table] = []
    some: list[pa.Table] = []
    tables: dict[str, list[pa.Table]] = {name: [] for name in names}
    first = 0
    for folder in folders:
        if not _has(folder, SAMPLES):
            continue
        table = _table(folder, SAMPLES)
        rows.append(table.select([f.name for f in table.schema if not pa.types.is_list(f.type)]))
        kept = _kept(table, share)
        some.append(table if kept.all() else table.filter(pa.array(kept)))
        for name, parts in tables.items():
            if _has(folder, name):
                parts.append(_renumbered(_table(folder, name), kept, first))
        first += len(some[-1])
    if not rows:
        return None
    found = {name: pa.concat_tables(parts) for name, parts in tables.items() if parts}
    return PredictedRows(
        _labelled(pa.concat_tables(rows), {}), _labelled(pa.concat_tables(some), found), folders
    )


def _kept(table: pa.Table, share: float) -> NDArray[np.bool_]:
    if share >= 1:
        return np.ones(len(table), bool)
    return np.array([sampled(who, share) for who in table["subject_id"].to_pylist()], bool)


def _renumbered(table: pa.Table, kept: NDArray[np.bool_], first: int) -> pa.Table:
    """Return the entries of rows that are kept, with `sample` counted among these of all shards."""
    sample = table["sample"].to_numpy()
    there = kept[sample]
    places = pa.array((np.cumsum(kept) - 1 + first)[sample])
    table = table.set_column(table.column_names.index("sample"), "sample", places)
    return table if there.all() else table.filter(pa.array(there))


def _labelled(samples: pa.Table, tables: dict[str, pa.Table]) -> SplitPredictions:
    if LABEL not in samples.column_names:
        return SplitPredictions(samples, tables)
    return SplitPredictions(samples.drop([LABEL]), tables, samples[LABEL].to_numpy())


def _has(folder: Path, name: str) -> bool:
    return (folder / f"{name}.parquet").is_file()


def _table(folder: Path, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    path = folder / f"{name}.parquet"
    return files.read_parquet(path, columns, remedy=f"remove {folder.parent}")
