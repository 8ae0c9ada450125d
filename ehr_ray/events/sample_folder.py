"""Statistics of codes by jobs of shards: the folder that they leave their parts in."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.events.code_quantiles import quantiles_of, sample_values, summed
from ehr_ray.events.code_statistics import CodeFit
from ehr_ray.storage import files


@dataclass(frozen=True)
class SampleFolder:
    """A folder by which jobs fit codes, in this order: `count`, `join`, `draw`, `find`, `found`.

        seen/<name>.parquet       SEEN by a shard of train, within its group
        sample/<name>.parquet     SAMPLES of it
        joined/<group>.parquet    JOINED of a group
               <group>-before.parquet  SEEN by it
               strides.parquet    STRIDES
        found/<n>.parquet         FOUND of a range of codes

    Args:
        path: of the folder.
    """

    path: Path

    def count(
        self, group: int, train: Iterable[tuple[str, pa.Table]], other: Iterable[pa.Table]
    ) -> None:
        """Join a group: `GROUP_SHARDS` shards, of which those of train are a group of `fit_codes`.

        `train` are a name and the `COUNTS` of each, in order; `other` are those of shards of which
        the names of codes alone are wanted. A shard's are held at a time.
        """
        fit = CodeFit()
        for name, counts in train:
            files.write_parquet(fit.add(counts), self.seen(name))
        for counts in other:
            fit.add_names(counts)
        files.write_parquet(fit.joined(), self.counted(group))

    def join(self, groups: int) -> CodeFit:
        """Return the fit of all groups, and leave what samples are drawn by."""
        fit = CodeFit()
        for group in range(groups):
            before = fit.join(files.open_parquet(self.counted(group)).read())
            files.write_parquet(before, self._before(group))
        files.write_parquet(fit.strides(), self._strides)
        return fit

    def draw(self, name: str, group: int, shard: Path) -> None:
        """Leave the values of a shard that the quantiles are of."""
        seen, before, strides = (files.open_parquet(p).read() for p in self.needed(name, group))
        files.write_parquet(sample_values(shard, summed(seen, before), strides), self.sample(name))

    def find(self, number: int, codes: tuple[str, str], names: Iterable[str]) -> None:
        """Leave the quantiles of a range of codes, of what `draw` left of all shards, in order."""
        files.write_parquet(quantiles_of(self._drawn(codes, names)), self.quantiles(number))

    def found(self, ranges: int) -> Iterator[pa.Table]:
        """Yield what `find` left."""
        return (files.open_parquet(self.quantiles(number)).read() for number in range(ranges))

    def counted(self, group: int) -> Path:
        """Return the file that `count` leaves last."""
        return self.joined / f"{group:06d}.parquet"

    def needed(self, name: str, group: int) -> tuple[Path, Path, Path]:
        """Return the files that `draw` reads."""
        return self.seen(name), self._before(group), self._strides

    def sample(self, name: str) -> Path:
        """Return the file that `draw` leaves."""
        return self.path / "sample" / f"{name}.parquet"

    def quantiles(self, number: int) -> Path:
        """Return the file that `find` leaves."""
        return self.path / "found" / f"{number:06d}.parquet"

    @property
    def joined(self) -> Path:
        """What the process that joins reads and leaves."""
        return self.path / "joined"

    def _drawn(self, codes: tuple[str, str], names: Iterable[str]) -> Iterator[pa.Table]:
        first, last = codes
        for name in names:
            sample = files.open_parquet(self.sample(name)).read()
            code = sample["code"]
            yield sample.filter(pc.and_(pc.greater_equal(code, first), pc.less_equal(code, last)))

    def seen(self, name: str) -> Path:
        """Return the file that `count` leaves of a shard of train."""
        return self.path / "seen" / f"{name}.parquet"

    def _before(self, group: int) -> Path:
        return self.joined / f"{group:06d}-before.parquet"

    @property
    def _strides(self) -> Path:
        return self.joined / "strides.parquet"
