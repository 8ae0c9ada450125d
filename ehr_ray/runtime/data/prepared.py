"""Cohort shards to model-ready rows on Ray Data: the transform of a family, once per patient.

One item is one shard: the function that reads it packs its patients, carries their values forward
and writes the rows, so no batching can cut a patient in two and nothing of size travels. Every
rank maps the same files into memory and draws its batches from them.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import inspect
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from ehr_ray.errors import ConfigError, InputError, ResourcesUnavailableError
from ehr_ray.events.block_files import BlockFiles, block_rows, measured_file, write_block
from ehr_ray.events.blocks import BlockStore, RowStore
from ehr_ray.events.labels import choose_task, task_files
from ehr_ray.events.patients import shard_names
from ehr_ray.events.row_index import RowIndex, read_index
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment
from ehr_ray.registry import get_schema
from ehr_ray.runtime.data.counted import VERSION, Counts, stamp_of_shard
from ehr_ray.runtime.data.dataset import check_cohort, vocabulary_of
from ehr_ray.runtime.data.manifest import Shards
from ehr_ray.runtime.data.mode import choose
from ehr_ray.runtime.data.rows import RowMaker
from ehr_ray.runtime.data.stream import Streamed, streamed
from ehr_ray.runtime.data.task_labels import TaskLabels, task_labels
from ehr_ray.runtime.data.tasks import Say, run_shards
from ehr_ray.runtime.session import check_memory, check_stream
from ehr_ray.sources.expanded import (
    check_made_of,
    check_made_with,
    fetch_sets,
    shards_of,
    vocabulary_of_sets,
)
from ehr_ray.storage import copies, sync
from ehr_ray.storage.listing import stamped
from ehr_ray.storage.paths import canonicals, check_cohort_folder, local, uri_of

TRAINED: Final = ("train", "tuning")
"""Splits that training reads."""
LAYOUT = 5
"""Bump when the same events would give other rows: rows of older versions are not reused."""

if TYPE_CHECKING:  # `expand`, which needs no torch, reads the codes by this module
    from ehr_ray.family import AnyFamily


@dataclass(frozen=True)
class Prepared:
    """A family's model-ready dataset: its rows by split, and the vocabulary they speak."""

    vocabulary: Vocabulary
    blocks: Mapping[str, BlockFiles]
    stream: Streamed | None = None
    """Where rows are streamed; the blocks are none then."""
    weighed: str | None = None
    """Why they are, where `data.mode=auto` chose it, in a line."""

    def store(self, split: str) -> RowStore:
        """Return the rows of a split: those in files mapped into memory, or made when asked for."""
        if self.stream is not None:
            return self.stream.store(split)
        paths = self.blocks.get(split)
        if not paths:
            return BlockStore(())
        copies = uri_of(paths[0]) is not None
        return BlockStore(paths, index_of(paths), sync.fetch if copies else None)


@dataclass(frozen=True)
class Jobs:
    """The shards of a split, each a job once it is asked for: where rows are there none is.

    Args:
        split: its name.
        names: of what is made of each, without suffix.
        places: path or URI of each.
        files: the names in each of the files it consists of, where they are several.
    """

    split: str
    names: Sequence[str]
    places: Sequence[str]
    files: Sequence[Sequence[str]] = ()

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return the job of a shard."""
        files = [*self.files[number]] if self.files else []
        return {"shard": self.places[number], "split": self.split, "files": files}

    def every(self) -> list[dict[str, Any]]:
        """Return the jobs of all."""
        return [self[number] for number in range(len(self.names))]


@dataclass(frozen=True)
class Source:
    """What rows are made of: shards by split, and the codes they speak."""

    vocabulary: Vocabulary
    shards: Mapping[str, Jobs]
    stamps: Sequence[tuple[str, int, int]]
    """Name, size and time of all files of the shards, in order: part of the cache's key."""
    labels: tuple[Path, ...] = ()
    cohort: Shards | None = None
    """All shards of the cohort, where rows are made of them."""


@contextlib.contextmanager
def prepared(
    experiment: Experiment, family: "AnyFamily", *, on_ray: bool, say: Say = lambda _: None
) -> Iterator[Prepared]:
    """Yield the model-ready dataset of an experiment, making what the cache does not hold."""
    if on_ray and experiment.data.cache == "memory":
        check_memory(experiment.cluster)
    expanded = experiment.data.expanded is not None
    source = (_expanded_source if expanded else _cohort_source)(experiment, say, on_ray)
    with _folder(experiment, family, source) as folder:
        there = sync.sizes_in(folder)
        blocks = {
            split: BlockFiles(f"{folder}/{split}", tuple(f"{name}.arrow" for name in own.names))
            for split, own in source.shards.items()
        }
        jobs = [
            {**source.shards[split][number], "target": f"{paths.folder}/{name}"}
            for split, paths in blocks.items()
            for number, name in enumerate(paths.names)
            if f"{split}/{name}" not in there
        ]
        labels = _labels(experiment, source.cohort, folder, say, on_ray)
        maker = RowMaker(experiment, source.vocabulary, labels)
        mode, weighed = choose(experiment, folder, jobs, maker)
        if weighed is not None:
            say(weighed)
        if mode == "stream":
            if on_ray:
                check_stream(experiment.cluster)
            shards = {split: own.every() for split, own in source.shards.items()}
            counts = _counts(experiment, family, source, folder)
            stream = streamed(maker, shards, counts, on_ray=on_ray, say=say)
            none = {split: paths[:0] for split, paths in blocks.items()}
            yield Prepared(source.vocabulary, none, stream, weighed)
            return
        told: dict[str, bytes] = {}
        if jobs:
            made = run_shards(
                jobs, BlockMaker(maker), on_ray=on_ray, say=say, verb="prepared shards", bring=False
            )
            told = dict(zip((job["target"] for job in jobs), made, strict=True))
            there = sync.sizes_in(folder)
        for split, paths in blocks.items():
            _write_index(paths, [there[f"{split}/{name}"] for name in paths.names], told)
        yield Prepared(source.vocabulary, blocks)


def _cohort_source(experiment: Experiment, say: Say, on_ray: bool) -> Source:
    cohort, data = sync.fetch_cohort(experiment.data.cohort), experiment.data
    check_cohort_folder(cohort)
    kept = None if data.cache == "memory" else experiment.cache
    listed = Shards.of(cohort, kept)
    shards = listed.texts
    if not shards.get("train"):
        raise InputError(f"{cohort}: no train split; training needs data/train/*.parquet")
    check_cohort(cohort, kept, say, on_ray=on_ray, shards=listed)
    vocabulary = vocabulary_of(
        cohort,
        data.min_code_count,
        origin=data.origin,
        cache=kept,
        scaling=data.scale,
        on_ray=on_ray,
        say=say,
        shards=listed,
    )
    _require_codes(vocabulary, cohort, data.min_code_count)
    check_codes(experiment, vocabulary)
    labels: list[Path] = []
    if experiment.task is not None:
        labels = task_files(cohort, str(choose_task(cohort, experiment.task.name)))
    jobs = {
        split: Jobs(split, shard_names(cohort, split, paths), canonicals(paths))
        for split in TRAINED
        for paths in [shards.get(split, [])]
    }
    stamps = _without_links(one for split in TRAINED for one in listed.stamps.get(split, []))
    return Source(vocabulary, jobs, stamps, tuple(labels), listed)


def _labels(
    experiment: Experiment, shards: Shards | None, folder: Path, say: Say, on_ray: bool
) -> TaskLabels | None:
    """Return the labels of an experiment's task; rows in memory have them in their folder."""
    if (task := experiment.task) is None:
        return None
    cohort = experiment.cohort
    cache = folder if experiment.data.cache == "memory" else experiment.cache
    name = str(choose_task(cohort, task.name))
    labels = task_labels(cohort, name, cache, on_ray=on_ray, shards=shards)
    for line in labels.notes():
        say(line)
    return labels.trained(task.kind, task.classes)


def _expanded_source(experiment: Experiment, say: Say, on_ray: bool) -> Source:  # noqa: ARG001
    """Return sets that were made before; what they were made with must be what the config says."""
    data = experiment.data
    assert data.expanded is not None
    folder = fetch_sets(data.expanded)
    shards = shards_of(folder)
    if not shards.get("train"):
        raise InputError(f"{folder}: no train split; expand a cohort that has one")
    check_made_with(folder, experiment.model, data)
    check_made_of(folder, local(data.cohort))
    stats = None if data.value_stats is None else sync.fetch(data.value_stats)
    vocabulary = vocabulary_of_sets(folder, data.min_code_count, stats)
    _require_codes(vocabulary, folder, data.min_code_count)
    check_codes(experiment, vocabulary)
    say(f"sets of {folder}, carried for {experiment.model.carry_minutes:g} minutes")
    jobs = {
        split: Jobs(
            split,
            [shard.name for shard in own],
            canonicals(shard.place for shard in own),
            [shard.files for shard in own],
        )
        for split in TRAINED
        for own in [shards.get(split, [])]
    }
    files = [path for split in TRAINED for shard in shards.get(split, []) for path in shard.paths]
    return Source(vocabulary, jobs, _without_links(stamped(files)))


def _without_links(stamps: Iterable[tuple[str, int, int, int]]) -> list[tuple[str, int, int]]:
    """Return stamps without their second time: a backup by links is no reason to make rows anew."""
    return [(name, size, time) for name, size, time, _ in stamps]


def _require_codes(vocabulary: Vocabulary, folder: Path, count: int) -> None:
    if not len(vocabulary):
        raise InputError(
            f"{folder}: no code is seen {count} times in train; lower data.min_code_count"
        )


def check_codes(experiment: Experiment, vocabulary: Vocabulary) -> None:
    """Raise ConfigError for a code that the config lists by name and train has none of."""
    for name in get_schema(experiment.family).codes:
        codes = getattr(experiment.model, name)
        for code in (c for c, i in zip(codes, vocabulary.encode(codes), strict=True) if i < 0):
            close = difflib.get_close_matches(code, vocabulary.codes, 1)
            hint = f"did you mean {close[0]}?" if close else "drop it, or lower data.min_code_count"
            place = experiment.data.expanded or experiment.data.cohort
            raise ConfigError(f"model.{name}: {code!r} is no code of {place}; {hint}")


class BlockMaker:
    """The function of one shard: its rows, written as a block file; gives what is known of them."""

    def __init__(self, maker: RowMaker) -> None:
        self._maker = maker

    def __call__(self, job: Mapping[str, Any]) -> bytes:
        """Make `job["target"]` from `job["shard"]`; return `measured` of its rows."""
        write_block(Path(job["target"]), self._maker.of(job))
        return measured_file(Path(job["target"]))


def index_of(paths: Sequence[Path]) -> Path:
    """Return the file of what is known of the rows of a split, beside the folder of its blocks."""
    folder = paths[0].parent
    return folder.with_name(f"{folder.name}.index")


def fetched(blocks: Mapping[str, BlockFiles]) -> dict[str, BlockFiles]:
    """Return block files of each split as they lie here, once what is known of them is here too.

    The files themselves come when their rows are wanted: a rank reads a part of a large cohort.
    """
    for paths in blocks.values():
        if paths:
            sync.fetch(index_of(paths), missing_ok=True)
    return {split: paths.here() for split, paths in blocks.items()}


def _write_index(paths: BlockFiles, sizes: Sequence[int], told: Mapping[str, bytes]) -> None:
    """Write what is known of the rows of a split, unless it is there already.

    Of files that were made before, and are not `told` of, all blocks are looked at.
    """
    if not paths:
        return
    path = sync.fetch(index_of(paths), missing_ok=True)
    if read_index(path, sizes) is not None:
        return
    tables = [
        pa.ipc.open_stream(told.get(target) or measured_file(sync.fetch(Path(target)))).read_all()
        for target in paths.texts()
    ]
    rows = [block_rows(len(table)) for table in tables]
    # Without it, as in a cache that nobody may write to, each process looks at all blocks.
    with contextlib.suppress(ResourcesUnavailableError), copies.unsent(path):
        RowIndex.of(tables, rows, np.array(sizes, np.int64)).write(path)
        sync.push(path)


@contextlib.contextmanager
def _folder(experiment: Experiment, family: "AnyFamily", source: Source) -> Iterator[Path]:
    if experiment.data.cache == "memory":
        shared = Path("/dev/shm")
        root = tempfile.mkdtemp(prefix="ehr_ray-", dir=shared if shared.is_dir() else None)
        try:
            yield Path(root)
        finally:
            shutil.rmtree(root, ignore_errors=True)
        return
    key = _key(experiment, family, source, source.stamps)
    yield experiment.cache.absolute() / f"{family.name}-{key}"


def _counts(experiment: Experiment, family: "AnyFamily", source: Source, folder: Path) -> Counts:
    """Return where counts of rows are kept, of those in memory beside the rows.

    What rows are made of is told apart shard by shard there: others of a split may change.
    """
    in_memory = experiment.data.cache == "memory"
    root = folder if in_memory else experiment.cache.absolute()
    ahead = iter(source.stamps)
    stamps = {
        split: [
            stamp_of_shard([*itertools.islice(ahead, max(1, len(own[number]["files"])))])
            for number in range(len(own.names))
        ]
        for split, own in source.shards.items()
    }
    name = f"counts-{family.name}-{_key(experiment, family, source, ())}-{VERSION}"
    return Counts(root / name, {split: own.names for split, own in source.shards.items()}, stamps)


def _key(
    experiment: Experiment,
    family: "AnyFamily",
    source: Source,
    stamps: Sequence[tuple[str, int, int]],
) -> str:
    """Return a hash of what rows are made by, and of the shards with these stamps, or of none."""
    vocabulary = source.vocabulary
    options = {name: getattr(experiment.model, name) for name in family.cache_fields}
    if (task := experiment.task) is not None:
        labels = [(p.stat().st_size, p.stat().st_mtime_ns) for p in source.labels]
        options["task"] = [task.name, task.hours, task.label_ratio, labels]
        if task.classes:
            options["classes"] = task.classes  # whose order the rows' labels have
        if (read := task.statistics) is not None:
            options["statistics"] = [read.windows, read.max_codes]
    parts = [stamps, options, family.version, LAYOUT, vocabulary.origin]
    digest = hashlib.sha256(json.dumps(parts, default=dataclasses.asdict).encode())
    digest.update(module_text(family.transform))
    digest.update("\0".join(vocabulary.codes).encode())
    digest.update(vocabulary.location.tobytes() + vocabulary.scale.tobytes())
    digest.update(vocabulary.quantiles.tobytes())
    if not stamps:  # of train's shards, which settle the counts a transform may read
        digest.update(vocabulary.count.tobytes() + vocabulary.subjects.tobytes())
    return digest.hexdigest()[:20]


def module_text(function: Callable[..., Any]) -> bytes:
    """Return the source of the module a function stands in: edited, it may give other rows."""
    try:
        path = inspect.getsourcefile(inspect.unwrap(function))
        return b"" if path is None else Path(path).read_bytes()
    except (TypeError, OSError):  # a partial, or one that was written in a notebook
        return b""
