import os

import pytest

from ehr_ray.storage import in_place, sync
from ehr_ray.storage import transfers as transfers_module
from ehr_ray.storage.paths import STAGING


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The folder a store keeps its objects in, and its URI."""
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    folder = tmp_path / "store"
    folder.mkdir()
    return folder, f"file://{folder}"


@pytest.fixture
def transfers(monkeypatch):
    """The names of files copied either way."""
    seen = []
    for name in ("download", "upload"):
        was = getattr(transfers_module, name)

        def counted(*args, was=was):
            seen.append(os.path.basename(args[1]))
            was(*args)

        for module in (sync, in_place):
            monkeypatch.setattr(module, name, counted)
    return seen
