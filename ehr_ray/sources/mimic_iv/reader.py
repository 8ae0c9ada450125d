"""A folder of MIMIC-IV -> units of work, and a unit -> chunks."""

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from ehr_ray.errors import InputError
from ehr_ray.sources.mimic_iv.descriptions import describe, read_titles
from ehr_ray.sources.mimic_iv.events import block_events
from ehr_ray.sources.mimic_iv.icd_groups import groups_file, read_groups
from ehr_ray.sources.mimic_iv.options import MimicIvOptions
from ehr_ray.sources.mimic_iv.patients import people
from ehr_ray.sources.mimic_iv.table_units import Registry, load, read_patients
from ehr_ray.sources.mimic_iv.tables import (
    ADMISSIONS,
    BY_NAME,
    DIAGNOSES,
    PATIENTS,
    STAYS,
    TABLES,
    timed,
)
from ehr_ray.sources.mimic_iv.tasks import labels
from ehr_ray.sources.parsing.blocks import Block, read_blocks, split_table
from ehr_ray.sources.parsing.csv_files import lines_of
from ehr_ray.sources.parsing.event_rows import table_chunks
from ehr_ray.sources.parsing.table_files import warn_of_missing
from ehr_ray.sources.parsing.tables import Table
from ehr_ray.sources.source import Chunk, Unit
from ehr_ray.storage.paths import canonical

log = logging.getLogger(__name__)

SUFFIXES: Final = (".csv", ".csv.gz")
LABELS: Final = "labels"


def units(path: Path, options: MimicIvOptions) -> list[Unit]:
    """List the patients, the tables that are there, large ones in ranges, and the labels.

    Says once which tables are not there. Raises `InputError` where one is that nothing can do
    without.
    """
    files = {name: file for name in _names() if (file := _file(path, name)) is not None}
    wanted = [PATIENTS.name, ADMISSIONS.name]
    if options.label_start == "icu":
        wanted.append(STAYS.name)
    for name in wanted:
        if name not in files:
            raise InputError(
                f"--input {path}: no {name}.csv or {name}.csv.gz; give the folder of MIMIC-IV "
                "(2.x or 3.x) that holds hosp/ and icu/"
            )
    warn_of_missing(path, [name for name in _names() if name not in files])
    base = (files[PATIENTS.name], files[ADMISSIONS.name])
    found = [Unit(str(path), base[:1], PATIENTS.name, uses=base)]
    for table in TABLES:
        if table.name in files:
            titles = {t.table: files[t.table] for t in table.titles if t.table in files}
            uses = (*base, *titles.values())
            unit = Unit(str(path), (files[table.name],), table.name, uses=uses)
            found += split_table(unit, table)
    stays = (files[STAYS.name],) if options.label_start == "icu" else ()
    groups = () if options.groups is None else _groups(path, options.groups, files)
    return [*found, Unit(str(path), (), LABELS, uses=(*base, *stays, *groups))]


def _groups(path: Path, name: str, files: dict[str, str]) -> tuple[str, str]:
    """Return the files of the diagnoses and of their groups, which is read once to be checked."""
    if DIAGNOSES.name not in files:
        raise InputError(f"--tasks {name}: no {DIAGNOSES.name}.csv in {path}; drop the option")
    table = groups_file(name)
    read_groups(table)
    return files[DIAGNOSES.name], str(table)


def _names() -> list[str]:
    titles = [titles.table for table in TABLES for titles in table.titles]
    return list(dict.fromkeys([*BY_NAME, *titles]))


def _file(root: Path, name: str) -> str | None:
    """Return a table's file below the folder; plain wins over compressed, and says so."""
    there = [name + end for end in SUFFIXES if (root / (name + end)).is_file()]
    if len(there) > 1:
        log.warning("%s: %s is read, %s beside it is not", canonical(root), *there)
    return next(iter(there), None)


def _registry(root: str, patients: str, admissions: str, options: MimicIvOptions) -> Registry:
    """Return who there is, kept for the next unit of this process until a file changes."""
    stats = [os.stat(os.path.join(root, name)) for name in (patients, admissions)]
    stamp = tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)
    return _loaded(root, patients, admissions, options, stamp)


@lru_cache(maxsize=1)
def _loaded(
    root: str,
    patients: str,
    admissions: str,
    options: MimicIvOptions,
    stamp: tuple[tuple[int, int], ...],  # noqa: ARG001
) -> Registry:
    return load(root, patients, admissions, options)


def read(unit: Unit, options: MimicIvOptions) -> Iterator[Chunk]:
    """Yield the events of a table, about 260,000 rows at a time, or all labels."""
    patients, admissions, *others = unit.uses
    registry = _registry(unit.root, patients, admissions, options)
    if unit.kind == LABELS:
        stays = others.pop(0) if options.label_start == "icu" else None
        yield Chunk(labels=labels(registry, options, unit.root, stays, others))
    elif unit.kind == PATIENTS.name:
        yield read_patients(unit.root, patients)[1]
        yield Chunk(events=people(registry))
    else:
        yield from _table(unit, timed(BY_NAME[unit.kind], options.lab_time), registry)


def _table(unit: Unit, table: Table, registry: Registry) -> Iterator[Chunk]:
    name = unit.files[0]
    titles = {file.removesuffix(".gz").removesuffix(".csv"): file for file in unit.uses[2:]}
    words = read_titles(unit.root, titles, table)
    # A bad admission may be why its subject is not kept, so it is told whosever it is.
    everyone = replace(registry, kept=np.ones_like(registry.kept))
    checked, part = everyone if table is ADMISSIONS else registry, lines_of(unit)

    def blocks() -> Iterator[Block]:
        for block in read_blocks(unit.root, name, table, checked, part):
            block.keep(registry.look_up(block.columns["subject_id"])[1])
            yield block

    yield from table_chunks(
        unit.root,
        name,
        blocks(),
        lambda block: block_events(block, table, registry),
        lambda codes: describe(codes, words),
        part,
    )
