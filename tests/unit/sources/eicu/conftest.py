import pytest
from made_up import eicu


@pytest.fixture
def folder(tmp_path):
    """Write a folder in eICU's schema; see `made_up/eicu.py`."""
    return lambda tables=None, name="eicu", **how: eicu.write(tmp_path / name, tables, **how)


@pytest.fixture
def stays_of(tmp_path):
    """The stays of some rows of `patient`."""
    from ehr_ray.sources.eicu.stays import load

    def run(*rows):
        eicu.write(tmp_path, {"patient": rows})
        return load(str(tmp_path), "patient.csv")[0]

    return run
