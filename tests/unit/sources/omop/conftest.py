import pytest
from made_up import omop


@pytest.fixture
def cdm(tmp_path):
    """Write a folder in OMOP's schema; see `made_up/omop.py`."""
    return lambda tables=None, name="cdm", **how: omop.write(tmp_path / name, tables, **how)


@pytest.fixture
def persons_of(tmp_path):
    """The persons of some tables."""
    from ehr_ray.sources.omop.persons import load

    def run(tables):
        omop.write(tmp_path, tables)
        return load(str(tmp_path), "person.csv", "visit_occurrence.csv", "death.csv")

    return run
