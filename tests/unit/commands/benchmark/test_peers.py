import importlib

import pyarrow as pa
import pytest

from ehr_ray.commands.benchmark import peers
from ehr_ray.errors import RunError


def test_a_library_that_is_not_there_is_left_out_with_the_remedy(synthetic_cohort, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    found = peers.peers(synthetic_cohort, synthetic_cohort)
    assert found.pop("LVCF here, million tokens per CPU second") > 0
    assert len(found) == 2
    assert all("pip install 'ehr_ray[peers]'" in reason for reason in found.values())


@pytest.mark.parametrize("name", ["polars", "duckdb"])
def test_a_library_carries_the_same_tokens(name, synthetic_patients):
    library = pytest.importorskip(name)
    patients = synthetic_patients["train"][:10]
    way = {"polars": peers.in_polars, "duckdb": peers.in_duckdb}[name]
    theirs = way(library, peers.observations(patients))
    peers.check_equal(name, theirs, peers.carried(patients))


def test_other_tokens_are_refused_with_the_column():
    ours = pa.table({name: [1.0, 2.0] for name in peers.COLUMNS})
    theirs = ours.set_column(4, "age", pa.array([1.0, 3.0]))
    with pytest.raises(RunError, match=r"polars carries other tokens .* first seen in 'age'"):
        peers.check_equal("polars", theirs, ours)
