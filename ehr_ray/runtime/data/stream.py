"""Rows that are made anew for each epoch, ahead of the step, and kept nowhere.

What is known of rows without having them, their number, lengths and scalars, is counted once and
kept (`counted`); it decides the order, which is that of rows in files. A rank then asks for its own
rows, window by window: its Ray Data pipeline reads the shards of a window, packs those patients, a
row each, and transforms them. At most two windows are in a rank's memory, the one in use and the
next; how far the pipeline is ahead of them, its back-pressure decides. Without Ray a thread does
the same.
"""

import contextlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import DamagedRowsError, UserError, error_of_kind
from ehr_ray.events.batched import batched
from ehr_ray.events.block_files import CHUNK
from ehr_ray.events.blocks import Window
from ehr_ray.events.row_batches import from_bytes, to_bytes
from ehr_ray.events.row_index import LENGTH, RowIndex
from ehr_ray.runtime.data.counted import Counts, Job, KeptIndex, counted
from ehr_ray.runtime.data.patient_rows import PatientRow, as_table, from_table
from ehr_ray.runtime.data.rows import RowMaker
from ehr_ray.runtime.data.tasks import Say, in_blocks, in_store, limited_retries, problem_of

if TYPE_CHECKING:
    from ehr_ray.family import Row

Indices = npt.NDArray[np.int64]
PIPELINE_ROWS: Final = 1 << 18
"""Rows that are asked for of one pipeline, or a window of them: their places are held."""
_ERROR: Final = pa.schema([("kind", pa.string()), ("error", pa.string())])


@dataclass(frozen=True)
class Streamed:
    """A dataset that is streamed: how rows are made, of which shards, and what is known of them."""

    maker: RowMaker
    shards: Mapping[str, tuple[Job, ...]]
    index: Mapping[str, RowIndex | KeptIndex]
    on_ray: bool

    def check(self) -> None:
        """Raise InputError where what is known of rows is not here, nor in a store."""
        for known in self.index.values():
            if isinstance(known, KeptIndex):
                known.open()

    def store(self, split: str) -> "StreamStore":
        """Return the rows of a split; InputError where what is known of them is not here."""
        known = self.index[split]
        index = known.open() if isinstance(known, KeptIndex) else known
        return StreamStore(self.maker, self.shards[split], index, on_ray=self.on_ray)


def streamed(
    maker: RowMaker,
    shards: Mapping[str, Sequence[Job]],
    counts: Counts,
    *,
    on_ray: bool,
    say: Say,
) -> Streamed:
    """Return the rows of shards; those not `counted` before are made for it, and dropped."""
    index = counted(maker, shards, counts, on_ray=on_ray, say=say)
    return Streamed(maker, {split: tuple(own) for split, own in shards.items()}, index, on_ray)


class StreamStore:
    """The rows of a split as a `RowStore`, of which none is kept.

    Args:
        maker: makes them.
        shards: of which jobs, in the order of the rows.
        index: what is known of them.
        on_ray: whether Ray Data makes them, else this process.
    """

    def __init__(
        self, maker: RowMaker, shards: Sequence[Job], index: RowIndex, *, on_ray: bool
    ) -> None:
        self._maker, self._shards, self._index, self._on_ray = maker, shards, index, on_ray
        self.block_sizes, self.shard_blocks = index.block_sizes, index.shard_blocks
        self.lengths = index.lengths
        rows = np.concatenate([np.zeros(1, np.int64), np.cumsum(index.block_sizes)])
        self._ends = rows[np.cumsum(index.counts)]
        self._kept: tuple[Window, dict[int, Row]] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._index)

    def column(self, name: str) -> np.ndarray:
        """Return a scalar of every row, in order; it must be one of their names."""
        return self._index.column(name)

    def sizes(self, name: str) -> Indices:
        """Return the length of an array of every row, in order; it must be one of their names."""
        return self._index.column(f"{LENGTH}{name}")

    def rows(self, indices: Iterable[int], *, again: bool = False) -> list["Row"]:  # noqa: ARG002
        """Return several rows; their shards are read for them."""
        return next(iter(self.read([[np.fromiter(indices, np.int64)]])))

    def read(
        self,
        windows: Iterable[Window],
        then: Iterable[Window] = (),
    ) -> Generator[list["Row"], None, None]:
        """Yield the rows of each part; a window's are made together, one window ahead.

        The first window of `then` is made with them, while the last one is used, and kept for the
        call that asks for it next. It is taken from its pipeline at once: one that waits may hold a
        CPU that a report needs.
        """
        kept, self._kept = self._kept, None
        asked, more = iter(windows), [*islice(then, 1)]
        first = [*islice(asked, 1)]
        begun = [kept] if kept and first and _alike(kept[0], first[0]) else []
        made = self._windows(chain([] if begun else first, asked, more))
        pool = ThreadPoolExecutor(1, thread_name_prefix="stream")
        try:
            ready = pool.submit(next, made, None)
            while (found := begun.pop() if begun else ready.result()) is not None:
                window, rows = found
                if more and window is more[0]:
                    self._kept = found
                    return
                if found is not kept:
                    ready = pool.submit(next, made, None)
                for part in window:
                    yield [rows[index] for index in part.tolist()]
        finally:
            pool.shutdown(wait=True)
            made.close()

    def _windows(
        self, windows: Iterable[Window]
    ) -> Generator[tuple[Window, dict[int, "Row"]], None, None]:
        """Yield each window with its rows; those of several are asked for together."""
        for group in _groups(windows):
            items, sizes = [], []
            for window in group:
                wanted = np.unique(np.concatenate([np.zeros(0, np.int64), *window]))
                shard = np.searchsorted(self._ends, wanted, side="right")
                for place in np.unique(shard):
                    items.append({"shard": int(place), "rows": wanted[shard == place].tolist()})
                sizes.append(len(wanted))
            with contextlib.closing(self._made(items)) as made:
                for window, size in zip(group, sizes, strict=True):
                    yield window, _collect(made, size)

    def _made(self, items: list[dict[str, Any]]) -> Any:
        pack = _Pack(self._maker, self._shards, (self._ends - np.diff(self._ends, prepend=0)))
        make = _Make(self._maker)
        tables = _on_ray(items, pack, make) if self._on_ray else _in_turn(items, pack, make)
        with contextlib.closing(tables):
            for table in tables:
                for kind, error in zip(*(table[n].to_pylist() for n in _ERROR.names), strict=True):
                    if kind:
                        raise self._raised(kind, error)
                for index, rows in zip(table["index"], table["rows"], strict=True):
                    yield index.values.to_numpy(), from_bytes(rows.as_buffer().to_pybytes())

    def _raised(self, kind: str, error: str) -> Exception:
        """Return what a rank raises: rows were made once before, so that something has changed.

        On Ray it must be an error that ends the others too, which wait for this rank.
        """
        raised = error_of_kind(kind, error)
        if isinstance(raised, UserError):
            return DamagedRowsError(str(raised))
        return RuntimeError(str(raised)) if self._on_ray else raised


def _alike(one: Window, other: Window) -> bool:
    """Whether two windows are of the same rows in the same parts."""
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def _groups(windows: Iterable[Window]) -> Iterator[list[Window]]:
    """Yield windows together whose rows one pipeline makes: a start of it takes a second."""
    group: list[Window] = []
    size = 0
    for window in windows:
        group.append(window)
        size += sum(map(len, window))
        if size >= PIPELINE_ROWS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _collect(made: Iterator[tuple[Indices, list["Row"]]], size: int) -> dict[int, "Row"]:
    """Return the next `size` rows by their index: those of a window."""
    rows: dict[int, Row] = {}
    while len(rows) < size:
        index, some = next(made)
        rows.update(zip(index.tolist(), some, strict=True))
    return rows


def _in_turn(
    items: list[dict[str, Any]], pack: "_Pack", make: "_Make"
) -> Generator[pa.Table, None, None]:
    for item in items:
        for patients in pack(pa.Table.from_pylist([item])):
            yield from make(patients)


def _on_ray(
    items: list[dict[str, Any]], pack: "_Pack", make: "_Make"
) -> Generator[pa.Table, None, None]:
    import ray.data

    if not items:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True  # windows come one after the other
    whole = {"batch_size": None, "batch_format": "pyarrow"}
    with limited_retries() as limit:
        each = {**whole, **limit}
        tables = in_blocks(items).map_batches(pack, **each).map_batches(make, **each)
    yield from tables.iter_batches(**whole)


class _Pack:
    """Items, a shard and the rows wanted of it, to patients: a row of Ray Data is one of them."""

    def __init__(self, maker: RowMaker, shards: Sequence[Job], first: Indices) -> None:
        self._maker, self._shards, self._first = maker, list(shards), first

    def __call__(self, items: pa.Table) -> Iterator[pa.Table]:
        for item in items.to_pylist():
            job = self._shards[item["shard"]]
            try:
                first, wanted = int(self._first[item["shard"]]), set(item["rows"])
                rows = self._wanted(in_store(job), first, wanted)
                for part in batched(rows, CHUNK):
                    yield as_table(part)
            except Exception as error:
                yield _told(error, str(job["shard"]))

    def _wanted(self, job: Job, number: int, wanted: set[int]) -> Iterator[PatientRow]:
        """Yield the patients with a row that is wanted, cut to those rows; `number` is the first's.

        Reading ends with the last that is wanted.
        """
        missing = len(wanted)
        for patient, cuts in self._maker.patients(job):
            count = 1 if cuts is None else len(cuts)
            own = [i for i in range(count) if number + i in wanted]
            if own:
                kept = None if cuts is None else [cuts[i] for i in own]
                yield PatientRow(patient, kept, [number + i for i in own])
            number, missing = number + count, missing - len(own)
            if not missing:
                return
        raise DamagedRowsError(f"{job['shard']}: has changed while it was used; train again")


class _Make:
    """Patients to a model's rows, `CHUNK` at a time: their `index` in the split, and as bytes."""

    def __init__(self, maker: RowMaker) -> None:
        self._maker = maker

    def __call__(self, patients: pa.Table) -> Iterator[pa.Table]:
        if "kind" in patients.column_names and patients["kind"].null_count < len(patients):
            yield patients.select(_ERROR.names).drop_null()
            return
        try:
            made = (
                (index, row)
                for one in from_table(patients)
                for index, row in zip(
                    one.index, self._maker.rows(one.patient, one.cuts), strict=True
                )
            )
            for part in batched(made, CHUNK):
                yield pa.table(
                    {
                        "index": pa.array([[index for index, _ in part]], pa.list_(pa.int64())),
                        "rows": pa.array([to_bytes([row for _, row in part])], pa.large_binary()),
                        **{name: pa.nulls(1, pa.string()) for name in _ERROR.names},
                    }
                )
        except Exception as error:
            yield _told(error, "a patient")


def _told(error: Exception, what: str) -> pa.Table:
    """Return an error as a row: Ray would wrap it in tracebacks."""
    kind, text = problem_of(error, what)
    empty = {
        "index": pa.array([[]], pa.list_(pa.int64())),
        "rows": pa.array([b""], pa.large_binary()),
    }
    return pa.table({**empty, "kind": [kind], "error": [text]})
