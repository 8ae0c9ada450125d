import re

import pytest

from ehr_ray.sources.mimic_iv.tables import BY_NAME, DAY_END, DISCHARGE, TABLES

KINDS = {
    kind + end for kind in ("whole", "time", "number", "quantity", "text") for end in ("", "?")
}


@pytest.mark.parametrize("table", BY_NAME.values(), ids=list(BY_NAME))
def test_events_use_columns_of_the_right_kind(table):
    assert set(table.columns.values()) <= KINDS
    for event in table.events:
        named = re.findall(r"\{(\w+)\}", event.code)
        assert all(table.kind(name)[0] in ("whole", "text") for name in named)
        if event.time == DISCHARGE:
            assert table.columns["hadm_id"] == "whole"
        elif event.time == DAY_END:
            assert {"hadm_id", "chartdate"} <= set(table.columns)
        else:
            assert table.kind(event.time)[0] == "time"
        assert event.value is None or table.kind(event.value)[0] == "quantity"
        assert all(table.kind(name)[0] == "time" for name in event.not_before)


@pytest.mark.parametrize("table", TABLES, ids=[table.name for table in TABLES])
def test_titles_explain_what_a_code_starts_with(table):
    for titles in table.titles:
        codes = [event.code for event in table.events if event.code.startswith(titles.prefix)]
        assert codes
        for code in codes:
            rest = code.removeprefix(titles.prefix + "//").split("//")
            assert tuple(part.strip("{}") for part in rest[: len(titles.key)]) == titles.key
