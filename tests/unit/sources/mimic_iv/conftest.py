import pytest
from made_up import mimic_iv


@pytest.fixture
def write_mimic():
    """Write a folder in MIMIC's schema; see `made_up/mimic_iv.py`."""
    return mimic_iv.write
