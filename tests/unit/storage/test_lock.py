import subprocess
import sys

import pytest

from ehr_ray.errors import RunError
from ehr_ray.storage import lock


def test_a_run_is_held_by_one_and_free_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", -1.0)
    run = tmp_path / "new" / "run"
    with (
        lock.exclusive_lock(run),
        pytest.raises(RunError, match="another process is training this run"),
        lock.exclusive_lock(run),
    ):
        pass
    with lock.exclusive_lock(run):
        pass


def test_a_dead_process_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", -1.0)
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from ehr_ray.storage.lock import exclusive_lock\n"
        "with exclusive_lock(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    with lock.exclusive_lock(tmp_path):
        pass
