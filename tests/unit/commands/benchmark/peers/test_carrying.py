import pyarrow as pa
import pytest

from ehr_ray.commands.benchmark.peers import carrying
from ehr_ray.errors import RunError


def test_a_library_that_is_not_there_is_left_out_with_the_remedy(synthetic_cohort, monkeypatch):
    monkeypatch.setattr(carrying, "library", lambda name: f"left out: {name}")
    found = carrying.carrying(synthetic_cohort)
    assert found.pop("LVCF here, million tokens per CPU second") > 0
    assert [*found.values()] == ["left out: polars", "left out: duckdb"]


@pytest.mark.parametrize("name", ["polars", "duckdb"])
def test_a_library_carries_the_same_tokens(name, synthetic_cohort, synthetic_patients):
    library = pytest.importorskip(name, reason="in the extra ehr_ray[peers]")
    patients = synthetic_patients["train"][:10]
    way = {"polars": carrying.in_polars, "duckdb": carrying.in_duckdb}[name]
    theirs = way(library, carrying.observations(patients))
    carrying.check_equal(name, theirs, carrying.carried(patients))
    assert carrying.carrying(synthetic_cohort)[f"LVCF, here over {name}"] > 0


def test_other_tokens_are_refused_with_the_column():
    ours = pa.table({name: [1.0, 2.0] for name in carrying.COLUMNS})
    theirs = ours.set_column(4, "age", pa.array([1.0, 3.0]))
    with pytest.raises(RunError, match=r"polars carries other tokens .* first seen in 'age'"):
        carrying.check_equal("polars", theirs, ours)
