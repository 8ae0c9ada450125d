import numpy as np
import pyarrow as pa
import pytest

from ehr_ray.sources.parsing import event_rows as module
from ehr_ray.sources.parsing.blocks import read_blocks
from ehr_ray.sources.parsing.event_rows import event_rows, table_chunks
from ehr_ray.sources.parsing.tables import Event, Table

DRUGS = Table(
    "drugs",
    {"at": "time?", "end": "time?", "drug": "text?", "group": "text?", "dose": "quantity?"},
    (
        Event("GIVEN//{drug|group}", "at", "dose"),
        Event("DOSED//{drug}", "end", "dose", ("at",), "dose"),
    ),
    key="stay",
)
ROWS = """stay,at,end,drug,group,dose
1,2150-01-02,2150-01-01,Heparin,G1,5
2,2150-01-02,2150-01-03,,G2,
3,,2150-01-03,,,>7
"""


@pytest.fixture
def blocks(tmp_path):
    (tmp_path / "drugs.csv").write_text(ROWS)
    return lambda: read_blocks(str(tmp_path), "drugs.csv", DRUGS)


def to_events(block):
    return pa.concat_tables(
        [event_rows(event, block, block.columns["stay"] * 10) for event in DRUGS.events]
    )


def test_rows_give_events_where_their_time_and_what_they_need_is_there(blocks):
    rows = [row for block in blocks() for row in to_events(block).to_pylist()]
    assert [
        (r["subject_id"], str(r["time"])[:10], r["code"], r["numeric_value"]) for r in rows
    ] == [
        (10, "2150-01-02", "GIVEN//Heparin", 5.0),
        (20, "2150-01-02", "GIVEN//G2", None),
        (10, "2150-01-02", "DOSED//Heparin", 5.0),
        (30, "2150-01-03", "DOSED//UNK", 7.0),
    ]


@pytest.mark.parametrize("size", [1, 1000])
def test_chunks_hold_all_events_and_bounds_however_large_they_are(
    blocks, tmp_path, monkeypatch, size
):
    monkeypatch.setattr(module, "CHUNK_ROWS", size)
    chunks = list(table_chunks(str(tmp_path), "drugs.csv", blocks(), to_events))
    assert len(chunks) == 1 + (size == 1)
    assert sum(chunk.rows_read for chunk in chunks) == 3
    assert sum(chunk.files_read for chunk in chunks) == 1
    assert np.concatenate([c.events["subject_id"].to_numpy() for c in chunks]).size == 4
    assert sum(len(chunk.inequalities or ()) for chunk in chunks) == 1
