import pytest

from ehr_ray.storage.paths import STAGING


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The URI of a cohort that is to be, in a folder that serves as a store."""
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    return f"file://{tmp_path}/store/c"
