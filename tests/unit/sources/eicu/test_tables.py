import re

import pytest
from made_up.eicu import COLUMNS

from ehr_ray.events.code_map import SHIPPED, load_code_map
from ehr_ray.sources.eicu.tables import BY_NAME, DISCHARGE, HOSPITAL
from ehr_ray.sources.parsing.csv_files import csv_columns


@pytest.mark.parametrize("table", BY_NAME.values(), ids=list(BY_NAME))
def test_events_use_columns_of_the_right_kind(table):
    for event in table.events:
        for part in re.findall(r"\{([\w|]+)\}", event.code):
            assert all(table.kind(name)[0] in ("text", "concept") for name in part.split("|"))
        for name in (event.time, *event.not_before):
            assert name == DISCHARGE or (table.kind(name)[0], name[-6:]) == ("number", "offset")
        assert event.value is None or table.kind(event.value)[0] == "quantity"
        assert event.needs is None or event.needs in table.columns


@pytest.mark.parametrize("table", [*BY_NAME.values(), HOSPITAL], ids=lambda table: table.name)
def test_columns_are_those_of_the_published_files(table, shared):
    path = shared("eicu_demo") / "csv" / f"{table.name}.csv.gz"
    there = csv_columns(str(path)) if path.is_file() else COLUMNS[table.name].split()
    assert {table.key, *table.columns} <= set(there)
    if table.name in COLUMNS:
        assert COLUMNS[table.name].split() == there


def test_the_shipped_map_has_codes_as_the_tables_write_them():
    starts = {event.code.split("{")[0] for table in BY_NAME.values() for event in table.events}
    starts |= {"AGE", "GENDER//", "ADMISSION_HEIGHT", "ADMISSION_WEIGHT"}
    named = [code for code in load_code_map("eicu").entries if "//" in code or code.isupper()]
    assert len(named) > 50
    assert [code for code in named if not code.startswith(tuple(starts))] == []
    assert {path.stem for path in SHIPPED.iterdir()} == {"eicu", "mimic-iv"}
