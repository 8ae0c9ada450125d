"""The OMOP common data model, in files or a database -> units of work, and a unit -> chunks."""

import itertools
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.events.schema import EVENTS, REJECTED
from ehr_ray.sources.omop.options import OmopOptions
from ehr_ray.sources.omop.persons import (
    NAT,
    Persons,
    day_end,
    exact,
    load,
    open_visits,
    person_events,
    read_persons,
    visit_events,
)
from ehr_ray.sources.omop.tables import (
    AT,
    BY_NAME,
    CONCEPT,
    CONCEPTS,
    CONDITIONS,
    DEATH,
    DETAILS,
    END,
    INTENSIVE,
    KEY,
    OPERATOR,
    OPERATORS,
    PERSON,
    TABLES,
    VISIT,
    VISITS,
)
from ehr_ray.sources.parsing.admissions import readmission_labels, stay_labels
from ehr_ray.sources.parsing.blocks import Block, columns_there, odd, read_blocks, split_table
from ehr_ray.sources.parsing.cells import Times
from ehr_ray.sources.parsing.csv_files import lines_of
from ehr_ray.sources.parsing.databases import find_tables, is_address, state_of, table_path
from ehr_ray.sources.parsing.event_rows import AFTER, event_rows, table_chunks
from ehr_ray.sources.parsing.kinds import UNKNOWN
from ehr_ray.sources.parsing.quantities import FIRST_SIGN, PLAIN, SIGNS
from ehr_ray.sources.parsing.quarantine import OF_OPEN_VISIT, OPEN_VISIT
from ehr_ray.sources.parsing.table_files import table_files, warn_of_missing
from ehr_ray.sources.parsing.tables import Table
from ehr_ray.sources.source import CHANGES, Chunk, Unit
from ehr_ray.storage import sync

log = logging.getLogger(__name__)

LABELS: Final = "labels"
BASE: Final = (PERSON.name, VISITS.name, DEATH.name)
"""Tables that are held."""
ALL: Final = {**BY_NAME, CONCEPTS.name: CONCEPTS}
_IDS: Final = re.compile(r"//(\d+)(?=//|$)")


def units(path: Path, options: OmopOptions) -> list[Unit]:  # noqa: ARG001
    """List the persons, the visits, the tables that are there, large ones in ranges, the labels.

    Says once which tables are not there. Raises `InputError` without persons or concepts.
    """
    found = _listed(
        str(path),
        table_files(path, ALL),
        "no {0}.csv, {0}.csv.gz or {0}.parquet; give the folder of an OMOP CDM (5.3 or 5.4) with "
        "its vocabulary",
    )
    cut = (split_table(u, BY_NAME[u.kind]) if u.kind in BY_NAME else [u] for u in found)
    return [*itertools.chain.from_iterable(cut)]


def database_units(address: str, options: OmopOptions) -> list[Unit]:  # noqa: ARG001
    """List the same of a database; all of it is one state, and the first unit has its size."""
    found = _listed(
        address,
        find_tables(address, ALL),
        "no table {0} is found; say where it is by ?schema=SCHEMA[,SCHEMA] after the address",
    )
    tables = {name: name.lower() for unit in found for name in (*unit.files, *unit.uses)}
    state, size = state_of(
        address, {name: [*columns_there(address, name, ALL[key])] for name, key in tables.items()}
    )
    first, *others = (replace(unit, state=state) for unit in found)
    return [replace(first, size=size), *others]


def _listed(root: str, there: Mapping[str, str], lacks: str) -> list[Unit]:
    """Return the units; `there` is table -> its name, `lacks` what is said of a missing one."""
    for name in (PERSON.name, CONCEPTS.name):
        if name not in there:
            raise InputError(f"--input {root}: {lacks.format(name)}")
    if not any(len(block) for block in _concepts(root, there[CONCEPTS.name])):
        raise InputError(
            f"{table_path(root, there[CONCEPTS.name])}: no concept in it; export the vocabulary "
            "with the data"
        )
    warn_of_missing(root, [name for name in BY_NAME if name not in there])
    uses = tuple(there[n] for n in (*BASE, CONCEPTS.name) if n in there)
    found = [
        Unit(root, (there[name],), name, uses=uses)
        for name in (*BASE, *(table.name for table in TABLES))
        if name in there
    ]
    return [*found, Unit(root, (), LABELS, uses=uses)]


def read(unit: Unit, options: OmopOptions) -> Iterator[Chunk]:
    """Yield the events of a table, about 260,000 rows at a time, or all labels."""
    named = {_table_of(name): name for name in unit.uses}
    visits, death = named.get(VISITS.name), named.get(DEATH.name)
    persons = load(unit.root, named[PERSON.name], visits, death, unit.state)
    if unit.kind == LABELS:
        yield Chunk(labels=labels(persons, options))
        return
    name = unit.files[0]
    if unit.kind == PERSON.name:
        events, blocks = person_events(persons), read_persons(unit.root, name)[1]
    elif unit.kind in BASE:
        blocks = list(read_blocks(unit.root, name, BY_NAME[unit.kind], persons))
        events = EVENTS.empty_table()
        if unit.kind == VISITS.name:
            events = visit_events(persons)
            if blocks:
                blocks[0].rejects.change(OPEN_VISIT, open_visits(persons))
    else:
        table, part = BY_NAME[unit.kind], lines_of(unit)
        yield from table_chunks(
            unit.root,
            name,
            read_blocks(unit.root, name, table, persons, part),
            lambda block: table_events(block, table, persons),
            part=part,
        )
        return
    found = [block.rejects.tables() for block in blocks]
    yield Chunk(
        events,
        rejects=pa.concat_tables([REJECTED.empty_table(), *(each["rejects"] for each in found)]),
        changes=pa.concat_tables([CHANGES.empty_table(), *(each["changes"] for each in found)]),
        rows_read=sum(block.rows_read for block in blocks),
        files_read=1,
    )


def _table_of(name: str) -> str:
    return name.split(".")[0].lower()


def table_events(block: Block, table: Table, persons: Persons) -> pa.Table:
    """Return the `EVENTS` of a block."""
    columns = block.columns
    what = next(name for name in table.columns if name.endswith("_concept_id"))
    concept, _ = _named(columns, what, what.replace("_concept_id", "_source_value"))
    columns[CONCEPT] = concept
    if "value_as_number" in columns:
        columns["unit"] = _units(columns)
    if OPERATOR in columns:
        _mark_bounds(columns)
    if table is DETAILS:
        intensive = pc.is_in(columns[what], pa.array(INTENSIVE))
        columns["begin"] = pc.if_else(intensive, "ICU_ADMISSION", "UNIT_START")
        columns["finish"] = pc.if_else(intensive, "ICU_DISCHARGE", "UNIT_END")
    if left_out := _set_times(columns, table, persons):
        block.rejects.change(OF_OPEN_VISIT, left_out)
    people = columns[KEY]
    return pa.concat_tables([event_rows(event, block, people) for event in table.events])


def _mark_bounds(columns: dict[str, Any]) -> None:
    """Give plain values the sign that their operator says they are a bound by."""
    kinds, operator = columns[odd("value_as_number")], np.asarray(columns[OPERATOR])
    plain = (kinds == PLAIN) & ~np.isnan(columns["value_as_number"])
    for concept, sign in OPERATORS.items():
        kinds[plain & (operator == concept)] = FIRST_SIGN + SIGNS.index(sign)


def _named(columns: dict[str, Any], concept: str, source: str) -> tuple[pa.Array, pa.Array]:
    """Return (a concept's id, or `SOURCE//` and the source's word; whether there is a concept)."""
    there = pc.invert(pc.is_in(columns[concept], pa.array(["0", UNKNOWN])))
    word = columns[source]
    word = pc.binary_join_element_wise("SOURCE", word, "//")
    return pc.if_else(there, columns[concept], word), there


def _units(columns: dict[str, Any]) -> pa.Array:
    """Return each value's unit: a concept, or the source's word, or else the answer's concept."""
    unit, there = _named(columns, "unit_concept_id", "unit_source_value")
    said = pc.not_equal(columns["unit_source_value"], UNKNOWN)
    answer = columns["value_as_concept_id"]
    answer = pc.if_else(pc.equal(answer, "0"), UNKNOWN, answer)
    return pc.if_else(pc.or_(there, said), unit, answer)


def _set_times(columns: dict[str, Any], table: Table, persons: Persons) -> int:
    """Set when rows were known, and when what they tell of ended; NaT where nobody knows.

    Return how many conditions that is so of: those of inpatient visits without a known end.
    """
    names = [name.removesuffix("_date") for name in table.columns if name.endswith("_date")]
    row, there = persons.visit_of(columns[KEY], columns[VISIT])
    left = np.full(len(row), np.datetime64("NaT"), "datetime64[us]")
    left[there] = persons.end[row[there]]
    for name, column in zip(names, (AT, END), strict=False):
        columns[column] = _time(columns[f"{name}_date"], columns[f"{name}_datetime"], left)
    if table is DETAILS:
        date, time = (columns[f"{names[0]}_{kind}"] for kind in ("date", "datetime"))
        columns[AT] = np.where(exact(time), time, date)
        columns[END] = np.where(columns[END] < columns[AT], NAT, columns[END])
    if table is CONDITIONS:
        stays = there.copy()
        stays[there] = persons.inpatient[row[there]]
        # Of NaT the maximum is NaT.
        columns[AT] = np.where(stays, np.maximum(columns[AT], left + AFTER), columns[AT])
        return int(np.count_nonzero(stays & np.isnat(left)))
    return 0


def _time(date: Times, time: Times, left: Times) -> Times:
    """Return each row's time: as told, else the end of its day, or of its visit on that day."""
    same = left.astype("datetime64[D]") == date.astype("datetime64[D]")
    return np.where(exact(time), time, np.where(same, left, day_end(date)))


def labels(persons: Persons, options: OmopOptions) -> dict[str, pa.Table]:
    """Return label rows by task, about inpatient visits of persons that are listed."""
    found = persons.admissions
    known, _ = persons.look_up(found.subject)
    row = found.first()
    row = row[known[row]]
    death = persons.death[persons.row_of(found.subject)]
    return {
        **stay_labels(found, row, found.start[row], options.label_hours),
        "readmission_30d": readmission_labels(found, known, death),
    }


def _concepts(root: str, name: str) -> Iterator[Block]:
    """Yield the vocabulary, which is brought here from a store: its words are looked up here."""
    if not is_address(root):
        root = str(sync.fetch(Path(root, name)).parent)
    return read_blocks(root, name, CONCEPTS)


def describe(unit: Unit, codes: Collection[str]) -> pa.Table:
    """Return `code` and `description` of the codes whose concepts have names."""
    (name,) = (name for name in unit.uses if _table_of(name) == CONCEPTS.name)
    wanted = {code: [int(i) for i in _IDS.findall(code)] for code in sorted(codes)}
    ids = np.array(sorted({i for found in wanted.values() for i in found}), np.int64)
    words: dict[int, str] = {}
    unread = 0
    for block in _concepts(unit.root, name):
        unread += len(block.rejects)
        block.keep(np.isin(block.columns[CONCEPTS.key], ids))
        text = block.columns["concept_name"].to_pylist()
        words.update(zip(block.columns[CONCEPTS.key].tolist(), text, strict=True))
    if unread:
        log.warning("%s: %s rows could not be read; their concepts have no names", name, unread)
    said = {}
    for code, found in wanted.items():
        names = [words[i] for i in found if i in words]
        if names:
            beside = f" ({', '.join(names[1:])})" if names[1:] else ""
            said[code] = names[0] + beside
    return pa.table(
        {"code": pa.array(said, pa.string()), "description": pa.array(said.values(), pa.string())}
    )
