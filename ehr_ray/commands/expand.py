"""Last-value-carry-forward of a whole cohort to Parquet, one Ray Data task a shard."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ehr_ray.errors import InputError
from ehr_ray.events.carry import carry_forward
from ehr_ray.events.normalize import z_score
from ehr_ray.events.patients import Patient, read_patients, shard_names, splits_of
from ehr_ray.events.scaling import Scaling
from ehr_ray.events.schema import EXPANDED, parse_origin
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.runtime.data.dataset import check_cohort, codes_table, require_origin
from ehr_ray.runtime.data.tasks import run_shards
from ehr_ray.runtime.session import session
from ehr_ray.runtime.verb_tracking import Destination, tracked_verb
from ehr_ray.sources.dataset_check import is_ours
from ehr_ray.sources.expanded import CODES, EMPTY, RECORD
from ehr_ray.sources.parsing.value_stats import with_value_stats
from ehr_ray.storage import copies, files, in_place, sync
from ehr_ray.storage.claim import claim
from ehr_ray.storage.listing import stamp
from ehr_ray.storage.paths import absolute, check_outside, local, written

ROWS_PER_GROUP = 1 << 18
LAYOUT = 2
"""Bump when the same events would give other files."""
Opens = Callable[[], AbstractContextManager[Any]]
"""Opens a Ray for the length of a `with` block."""
_NAME = pa.dictionary(pa.int32(), pa.string())
_DICTIONARY = EXPANDED.set(1, pa.field("variable", _NAME, nullable=False))


@dataclass(frozen=True)
class Expanded:
    """What `expand` wrote."""

    shards: int
    patients: int
    tokens: int
    seconds: float = 0.0
    unscaled: int = 0
    """Tokens with a value of a code without statistics, whose value is as it was measured."""


def expand(
    cohort: str | Path,
    output: str | Path,
    *,
    lvcf_minutes: float = 2880.0,
    always_carry: tuple[str, ...] = (),
    value_stats: str | Path | None = None,
    scale: Scaling = "standard",
    origin: str | None = None,
    address: str | None = None,
    on_ray: bool = True,
    tracking: Destination | None = None,
    smoke: bool = False,
    verbose: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Expanded:
    """Write `output/<split>/<n>.parquet`, columns `EXPANDED`, by (subject, time, variable).

    What it was made with lies beside them, for `data.expanded` to train on: a record, and the
    codes with their statistics. A shard that is already there is kept, so a killed job continues;
    another cohort or other options in the same folder are refused. Values are scaled by the
    statistics of train; `scale` is as `data.scale`, but standard unless told. `value_stats` is a
    CSV of code, mean and std that replaces them. A code with neither (one that never has a value
    in train) has mean 0 and standard deviation 1, so that its values stay as measured: they are
    counted. `origin` names the codes of minute 0, as `data.origin` does. `on_ray=False` does it
    all in this process. `tracking` is where an MLflow run of it is left. `smoke` tries the first
    shard in this process and keeps nothing.
    """
    if lvcf_minutes < 0:
        raise InputError(f"--lvcf-minutes {lvcf_minutes:g}: must be 0 or more")
    check_outside(output, "--output ", cohort)
    started = time.perf_counter()
    cohort, output = sync.fetch_cohort(cohort), local(output)
    value_stats = None if value_stats is None else sync.fetch(value_stats)
    opened: Opens | None = None
    if on_ray and not smoke:
        opened = partial(session, address, verbose=verbose)
    with _checked(cohort, output, opened, say) as (table, opened):
        vocabulary = _vocabulary(cohort, table, value_stats, scale, origin)
        _check_carried(always_carry, vocabulary, cohort)
        expander = ShardExpander(vocabulary, lvcf_minutes, always_carry)
        if smoke:
            return replace(_tried(cohort, output, expander), seconds=time.perf_counter() - started)
        jobs = _jobs(cohort, output)
        there = _claim(output, cohort, vocabulary, lvcf_minutes, always_carry, value_stats)
        given = {
            "cohort": cohort.absolute(),
            "output": output.absolute(),
            "lvcf_minutes": lvcf_minutes,
            "always_carry": ",".join(always_carry),
            "value_stats": value_stats,
            "scale": scale,
            "origin": origin,
        }
        with tracked_verb(tracking, "expand", cohort.resolve().name, given) as record:
            done = _fill(jobs, output, there, expander, opened, say)
            result = replace(done, seconds=time.perf_counter() - started)
            record.metrics |= {key: float(value) for key, value in asdict(result).items()}
            record.artifacts.append((output, (RECORD, CODES)))
        return result


@contextmanager
def _checked(
    cohort: Path, output: Path, opened: Opens | None, say: Callable[[str], None]
) -> Iterator[tuple[pa.Table, Opens | None]]:
    """Yield the codes of a cohort that was checked, and what opens a Ray for its shards.

    A dataset of others is checked and counted by the Ray that then expands it, open meanwhile.
    """
    with ExitStack() as stack:
        counted, shared = None, False
        if opened is not None and not is_ours(cohort, splits_of(cohort)):
            stack.enter_context(opened())
            opened, shared = nullcontext, True
            counted = files.temporary(output.absolute())  # where all nodes can write
            stack.callback(sync.remove, counted)
        check_cohort(cohort, counted, say, on_ray=shared)
        yield codes_table(cohort, counted, on_ray=shared, say=say), opened


def _jobs(cohort: Path, output: Path) -> list[dict[str, str]]:
    """Return the shards and their targets; InputError for a name that a store can not have."""
    jobs = [
        {"shard": str(path), "target": str(output / split / f"{name}.parquet")}
        for split, paths in splits_of(cohort).items()
        for path, name in zip(paths, shard_names(cohort, split, paths), strict=True)
    ]
    for job in jobs:
        written(job["target"])
    return jobs


def _fill(
    jobs: Sequence[dict[str, str]],
    output: Path,
    there: Collection[str],
    expander: "ShardExpander",
    opened: Opens | None,
    say: Callable[[str], None],
) -> Expanded:
    """Expand the shards that are not `there`, by a Ray that is `opened` or in this process."""
    files.remove_abandoned([output, *(Path(job["target"]) for job in jobs)])
    todo = [job for job in jobs if str(Path(job["target"]).relative_to(output)) not in there]
    if todo:
        on_ray = opened is not None
        with opened() if opened else nullcontext():
            run_shards(todo, expander, on_ray=on_ray, say=say, verb="expanded shards", bring=False)
    return _counted(in_place.footer(job["target"]) for job in jobs)


def _tried(cohort: Path, output: Path, expander: "ShardExpander") -> Expanded:
    """Expand the first shard beside the output, where it would be written, and remove it."""
    (shard, *_), *_ = splits_of(cohort).values()
    folder = output.with_name(f"{output.name}.smoke-{os.getpid()}")
    try:
        expander({"shard": str(sync.in_store(shard)), "target": str(folder / "0.parquet")})
        return _counted([pq.read_metadata(folder / "0.parquet")])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _counted(shards: Iterable[pq.FileMetaData]) -> Expanded:
    """Return what the footers of some shards tell."""
    counts = list(shards)
    patients, unscaled = (
        sum(int((c.metadata or {}).get(name, b"0")) for c in counts)
        for name in (b"patients", b"unscaled")
    )
    tokens = sum(c.num_rows for c in counts)
    return Expanded(len(counts), patients, tokens, unscaled=unscaled)


class ShardExpander:
    """The function of one shard; memory is that of some hundred patients, not of the shard."""

    def __init__(
        self, vocabulary: Vocabulary, window: float, always_carry: tuple[str, ...]
    ) -> None:
        self._vocabulary, self._window = vocabulary, window
        self._always = np.zeros(len(vocabulary), bool)
        self._always[vocabulary.encode(always_carry)] = True

    def __call__(self, job: Mapping[str, Any]) -> None:
        """Expand `job["shard"]` into `job["target"]`, which appears by rename."""
        target = Path(job["target"])
        names = pa.array(self._vocabulary.codes, pa.string())
        patients = unscaled = 0
        empty: list[tuple[int, int]] = []
        # Without the Arrow schema the dictionary of names reads back as plain strings.
        with (
            files.new_file(target) as partial,
            pq.ParquetWriter(partial, _DICTIONARY, store_schema=False) as writer,
        ):
            for part in self._groups(read_patients(Path(job["shard"]), self._vocabulary), empty):
                patients += len(part)
                unscaled += sum(one.pop("unscaled") for one in part)
                writer.write_table(self._table(part, names))
            told = {"patients": str(patients), "unscaled": str(unscaled)}
            writer.add_key_value_metadata({**told, EMPTY.decode(): json.dumps(empty)})

    def _groups(
        self, patients: Iterator[Patient], empty: list[tuple[int, int]]
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the tokens of some patients at a time; who has none is added to `empty`."""
        group: list[dict[str, Any]] = []
        rows = 0
        for place, patient in enumerate(patients):
            group.append(self._tokens(patient))
            rows += len(group[-1]["code"])
            if not len(group[-1]["code"]):
                empty.append((place, patient.subject_id))
            if rows >= ROWS_PER_GROUP:
                yield group
                group, rows = [], 0
        if group:
            yield group

    def _tokens(self, patient: Patient) -> dict[str, Any]:
        tokens = carry_forward(
            patient.minute,
            patient.code,
            patient.value,
            patient.static,
            window=self._window,
            always=self._always,
        )
        return {
            "subject_id": np.full(len(tokens.code), patient.subject_id, np.int64),
            "code": tokens.code,
            "value": z_score(tokens.value, tokens.code, self._vocabulary),
            "time": tokens.minute[tokens.set_index],
            "set_index": tokens.set_index,
            "age": tokens.age,
            "is_carry": tokens.is_carry,
            "unscaled": int(
                np.sum(~np.isnan(tokens.value) & ~self._vocabulary.valued[tokens.code])
            ),
        }

    def _table(self, group: list[dict[str, Any]], names: pa.Array) -> pa.Table:
        columns = {key: np.concatenate([part[key] for part in group]) for key in group[0]}
        variable = pa.DictionaryArray.from_arrays(pa.array(columns.pop("code")), names)
        arrays = {key: pa.array(value) for key, value in columns.items()}
        arrays["variable"] = variable
        return pa.table([arrays[field.name] for field in _DICTIONARY], schema=_DICTIONARY)


def _vocabulary(
    cohort: Path, table: pa.Table, value_stats: Path | None, scale: Scaling, origin: str | None
) -> Vocabulary:
    if value_stats is not None and scale != "standard":
        raise InputError(f"--scale {scale}: --value-stats gives mean and std; drop one of both")
    codes = None
    if origin is not None:
        codes = parse_origin(origin, "--origin")
        require_origin(table, codes, f"--origin {origin}", cohort)
    vocabulary = Vocabulary.from_table(table, origin=codes, scaling=scale)
    if value_stats is None:
        return vocabulary
    return with_value_stats(vocabulary, value_stats, "--value-stats")


def _check_carried(codes: Collection[str], vocabulary: Vocabulary, cohort: Path) -> None:
    """Raise InputError for a code of `--always-carry` that a cohort has not."""
    if unknown := sorted(set(codes) - set(vocabulary.codes)):
        raise InputError(f"--always-carry: no code {unknown[0]!r} in {cohort}; check its spelling")


def _claim(
    output: Path,
    cohort: Path,
    vocabulary: Vocabulary,
    minutes: float,
    always: tuple[str, ...],
    stats: Path | None,
) -> set[str]:
    """Write what an expansion is made with, or refuse to mix two; return the files there are."""
    manifest = [
        (str(p.relative_to(cohort)), *stamp(p))
        for paths in splits_of(cohort).values()
        for p in paths
    ]
    content = {
        "layout": LAYOUT,
        "cohort": absolute(cohort),
        "lvcf_minutes": minutes,
        "scale": vocabulary.scaling,
        "origin": vocabulary.origin,
        "always_carry": sorted(always),
        "value_stats": None if stats is None else stats.read_text() if stats.is_file() else "",
        "shards": manifest,
    }
    table = vocabulary.to_table()
    # Notes of earlier versions do not say the statistics, which then lie beside them alone.
    formerly = content if _is_of(sync.fetch(output / CODES, missing_ok=True), table) else None
    content = {**content, "codes": _digest(table)}
    there = claim(output, RECORD, content, "expansion", formerly=formerly)
    with copies.unsent(output / CODES):
        files.write_parquet(table, output / CODES)
        sync.push(output / CODES)
    return there


def _is_of(path: Path, table: pa.Table) -> bool:
    """Whether a file of codes is that of a table, or is not there yet."""
    try:
        return not path.is_file() or _digest(files.read_parquet(path)) == _digest(table)
    except InputError:  # damaged
        return False


def _digest(codes: pa.Table) -> str:
    return hashlib.sha256(json.dumps(codes.to_pydict()).encode()).hexdigest()
