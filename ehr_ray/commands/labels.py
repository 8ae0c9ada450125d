"""Labels of a task written in ACES (Xu et al. 2025), over any cohort: one Ray Data task a shard.

The package `es-aces` reads the file and finds the windows; here are the shards, and the label file.
"""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from ehr_ray.errors import InputError
from ehr_ray.events.label_tasks import canonical_task
from ehr_ray.events.labels import label_files
from ehr_ray.events.patients import splits_of
from ehr_ray.events.schema import LABELS
from ehr_ray.runtime.data.tasks import run_shards
from ehr_ray.runtime.session import session
from ehr_ray.storage import copies, files, sync
from ehr_ray.storage.paths import local

EXTRA = "the package es-aces is not installed; pip install 'ehr_ray[aces]'"


@dataclass(frozen=True)
class Labelled:
    """What `label` wrote."""

    task: str
    labels: int
    positive: int
    unseen: tuple[str, ...]
    """Predicates of the file that no event of the cohort meets."""

    def __str__(self) -> str:
        """Return what the screen says of it."""
        text = f"labels/{self.task}.parquet: {self.labels:,} labels, {self.positive:,} positive"
        if self.unseen:
            text += f"; never met by an event: {', '.join(self.unseen)}; check the codes"
        return text


def label(
    config: Path,
    cohort: str | Path,
    *,
    task: str | None = None,
    predicates: Path | None = None,
    address: str | None = None,
    on_ray: bool = True,
    verbose: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Labelled:
    """Write the labels of an ACES file to `<cohort>/labels/<task>.parquet`, as `LABELS`.

    A window with `index_timestamp` says when the prediction is made, one with `label` what of; a
    label is true where its predicate is met at least once. `task` is the file's name unless given;
    `predicates` is a file of predicates in place of the first one's.

    Raises:
        InputError: the file cannot be read or names an unknown predicate, the task has labels
            already, nothing meets the criteria, or the package is missing.
    """
    asked = read_task(config, predicates)
    cohort = sync.fetch_cohort(cohort)
    shards = [path for paths in splits_of(cohort).values() for path in paths]
    name = canonical_task(config.stem if task is None else task)
    if name in label_files(cohort):
        raise InputError(f"{cohort}/labels: has {name} already; give another --task, or remove it")
    with session(address, verbose=verbose) if on_ray else nullcontext():
        rows = run_shards(
            [{"shard": str(path)} for path in shards],
            ShardLabeller(asked),
            on_ray=on_ray,
            say=say,
            verb="labelled shards",
            bring=False,
        )
    met: Counter[str] = Counter()
    for row in rows:
        met.update(dict(zip(row["predicate"], row["count"], strict=True)))
    table = pa.concat_tables([_table(row) for row in rows])
    unseen = tuple(name for name in met if not met[name])
    if not len(table):
        reason = f"never met by an event: {', '.join(unseen)}" if unseen else "windows too strict"
        raise InputError(f"{config}: no subject of {cohort} meets its criteria ({reason})")
    path = local(cohort) / "labels" / f"{name}.parquet"
    with copies.unsent(path):
        files.write_parquet(table.sort_by([(n, "ascending") for n in LABELS.names[:2]]), path)
        sync.push(path)
    return Labelled(name, len(table), sum(table["boolean_value"].to_pylist()), unseen)


def read_task(config: Path, predicates: Path | None = None) -> Any:
    """Return the task of an ACES file, with both a label and a prediction time."""
    try:
        from aces.config import TaskExtractorConfig
    except ImportError as error:
        raise InputError(f"{config}: {EXTRA}") from error
    for path in (config, predicates):
        if path is not None and not path.is_file():
            raise InputError(f"{path}: no such file; check the path")
    _check_parts(config, ["trigger"] if predicates else ["predicates", "trigger"])
    try:
        task = TaskExtractorConfig.load(config, predicates)
    except Exception as error:  # ACES has no errors of its own: all are about the file
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise InputError(f"{config}: {text}; correct the file") from error
    for key, there in (
        ("label", task.label_window),
        ("index_timestamp", task.index_timestamp_window),
    ):
        if not there:
            raise InputError(f"{config}: no window has `{key}`; add it to one")
    return task


def _check_parts(config: Path, wanted: Sequence[str]) -> None:
    """Raise InputError where a file is no mapping with what ACES takes for granted."""
    try:
        found = yaml.safe_load(config.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return  # ACES says what is wrong
    if not isinstance(found, Mapping):
        raise InputError(f"{config}: no ACES task, which has predicates, a trigger and windows")
    if lacking := [part for part in wanted if not found.get(part)]:
        raise InputError(f"{config}: no {' and no '.join(lacking)}; add what an ACES task has")


@dataclass(frozen=True)
class ShardLabeller:
    """The function of one shard."""

    task: Any
    """Of `read_task`."""

    def __call__(self, job: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Return the columns of the labels, times in microseconds, and the events of predicates."""
        from aces.predicates import get_predicates_df
        from aces.query import query
        from omegaconf import DictConfig

        logging.getLogger("aces").setLevel(logging.ERROR)  # it tells of each shard what one lacks
        shard = sync.fetch(job["shard"])  # ACES reads files alone
        source = DictConfig({"path": str(shard), "standard": "MEDS"})
        # A query moves the windows of the task it is given: a second one would look later.
        task = copy.deepcopy(self.task)
        met = get_predicates_df(task, source)
        found = query(task, met)
        names = [*task.plain_predicates]
        counts = {"predicate": names, "count": [int(met[name].sum() or 0) for name in names]}
        if found.is_empty():
            return {"subject": [], "time": [], "value": [], **counts}
        times = found["index_timestamp"].dt.epoch("us").to_list()
        if None in times:
            raise InputError(
                "index_timestamp is the start of a window that has none; name its end, or another"
            )
        values = [bool(value) for value in found["label"].to_list()]
        return {"subject": found["subject_id"].to_list(), "time": times, "value": values, **counts}


def _table(row: Mapping[str, list[Any]]) -> pa.Table:
    times = pa.array(row["time"], pa.int64()).cast(pa.timestamp("us"))
    columns = [pa.array(row["subject"], pa.int64()), times, pa.array(row["value"], pa.bool_())]
    return pa.table(columns, schema=LABELS)
