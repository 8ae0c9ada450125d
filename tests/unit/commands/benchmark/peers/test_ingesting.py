import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.benchmark.peers import ingesting
from ehr_ray.errors import RunError

ROWS = 20_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return what both made of both files: kind -> name -> folder."""
    pytest.importorskip("duckdb", reason="in the extra ehr_ray[peers]")
    place = tmp_path_factory.mktemp("ingesting")
    found = {}
    for kind, path in ingesting.made_up(place, ROWS).items():
        found[kind] = {name: place / f"{name}-{kind}" for name in ("here", "DuckDB")}
        for way in ingesting.ways_of(kind, path, found[kind]).values():
            way()
    return found


def test_duckdb_gives_the_same_cohort(made):
    found = {kind: ingesting.compared(*folders.values()) for kind, folders in made.items()}
    assert sum(found["csv"][f"events of {s}, rows of both"] for s in ingesting.SPLITS) > ROWS
    assert 10 < found["csv"]["rejected, rows of both"] <= 2 * ROWS / ingesting.BAD
    assert found["parquet"]["rejected, rows of both"] == 0
    assert found["parquet"]["subject_splits, rows of both"] == 400
    assert found["csv"]["codes, rows of both"] == ingesting.CODES + 1


def test_another_result_is_told_by_what_differs(made, tmp_path):
    folder = tmp_path / "other"

    def other(name, change):
        shutil.copytree(made["csv"]["DuckDB"], folder, dirs_exist_ok=True)
        path = next(folder.glob(name))
        pq.write_table(change(pq.ParquetFile(path).read()), path)
        with pytest.raises(RunError) as error:
            ingesting.compared(made["csv"]["here"], folder)
        return str(error.value)

    def mean(codes):
        return codes.set_column(4, "mean", pa.array(np.full(len(codes), 0.5)))

    less = lambda table: table.slice(1)  # noqa: E731
    assert "mean of codes in DuckDB are others" in other("codes.parquet", mean)
    assert "rejected in DuckDB are others" in other("rejected.parquet", less)
    assert "events of train in DuckDB are others" in other("data/train/0.parquet", less)


def test_seconds_are_of_both_and_their_ratio(made, tmp_path, monkeypatch):
    monkeypatch.setattr(ingesting, "in_turn", lambda _: {"here": 3.0, "DuckDB": 2.0})
    monkeypatch.setattr(ingesting, "compared", lambda here, _: {here.name: 1.0})
    monkeypatch.setattr(ingesting, "ways_of", lambda *_: {})
    assert ingesting.ingesting(tmp_path / "new", 3000) == {
        "csv, here-csv": 1.0,
        "csv, here, CPU seconds": 3.0,
        "csv, DuckDB, CPU seconds": 2.0,
        "csv, here over DuckDB": 1.5,
        "parquet, here-parquet": 1.0,
        "parquet, here, CPU seconds": 3.0,
        "parquet, DuckDB, CPU seconds": 2.0,
        "parquet, here over DuckDB": 1.5,
    }


def test_without_duckdb_the_part_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(ingesting, "library", lambda name: f"left out: {name}")
    assert ingesting.ingesting(tmp_path) == {"ingest, DuckDB": "left out: duckdb"}
