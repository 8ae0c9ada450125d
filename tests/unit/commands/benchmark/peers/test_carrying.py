from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from ehr_ray.commands.benchmark.peers import carrying
from ehr_ray.errors import RunError


def test_a_library_that_is_not_there_is_left_out_with_the_remedy(synthetic_cohort, monkeypatch):
    monkeypatch.setattr(carrying, "library", lambda name: f"left out: {name}")
    found = carrying.carrying(synthetic_cohort)
    assert found.pop("LVCF here, million tokens per CPU second") > 0
    assert [*found.values()] == ["left out: polars", "left out: duckdb"]


WAYS = {"polars": carrying.in_polars, "duckdb": carrying.in_duckdb}


@pytest.mark.parametrize("name", WAYS)
def test_a_library_carries_the_same_tokens(name, synthetic_cohort, synthetic_patients):
    library = pytest.importorskip(name, reason="in the extra ehr_ray[peers]")
    patients = synthetic_patients["train"][:10]
    theirs = WAYS[name](library, carrying.observations(patients))
    carrying.check_equal(name, theirs, carrying.carried(patients))
    assert carrying.carrying(synthetic_cohort)[f"LVCF, here over {name}"] > 0


@pytest.mark.parametrize("name", WAYS)
def test_what_was_observed_before_the_origin_is_carried_into_it_by_all(name):
    library = pytest.importorskip(name, reason="in the extra ehr_ray[peers]")
    patient = SimpleNamespace(
        minute=np.array([-5000.0, -20.0, -20.0, -3.5, 7.0]),
        code=np.array([2, 0, 1, 1, 0], np.int32),
        value=np.array([1.0, 2.0, np.nan, 3.0, 4.0], np.float32),
        static=np.zeros(5, bool),
    )
    ours = carrying.carried([patient])
    assert ours.select(["minute", "code", "age"]).to_pydict() == {
        "minute": [0, 0, 7, 7],
        "code": [0, 1, 0, 1],
        "age": [20, 4, 0, 11],
    }
    theirs = WAYS[name](library, carrying.observations([patient]))
    carrying.check_equal(name, theirs, ours)


def test_other_tokens_are_refused_with_the_column():
    ours = pa.table({name: [1.0, 2.0] for name in carrying.COLUMNS})
    theirs = ours.set_column(4, "age", pa.array([1.0, 3.0]))
    with pytest.raises(RunError, match=r"polars carries other tokens .* first seen in 'age'"):
        carrying.check_equal("polars", theirs, ours)
