import subprocess
import sys
import threading

import pytest

from ehr_ray.errors import InputError, RunError
from ehr_ray.storage import lock

HOLDS = """
import os, signal, sys
from pathlib import Path
from ehr_ray.storage.lock import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_is_held_by_one_and_free_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    run = tmp_path / "new" / "run"
    with (
        lock.run_lock(run),
        pytest.raises(RunError, match="another process is training this run"),
        lock.run_lock(run),
    ):
        pass
    with lock.run_lock(run):
        pass


def test_a_dead_process_holds_nothing(tmp_path):
    file = tmp_path / "lock"
    done = subprocess.run([sys.executable, "-c", HOLDS, str(file)], check=False)
    assert done.returncode == -9
    with lock.exclusive_lock(file, patience=0):
        pass


def test_a_lock_says_who_is_busy_in_the_words_of_its_caller(tmp_path):
    busy = InputError("--output x: another ingest is writing it; wait")
    with (
        lock.exclusive_lock(tmp_path / "a"),
        lock.exclusive_lock(tmp_path / "b", busy, patience=0),  # another file is another lock
        pytest.raises(InputError, match="another ingest"),
        lock.exclusive_lock(tmp_path / "a", busy, patience=0),
    ):
        pass


def test_without_a_limit_it_waits_until_the_other_is_done(tmp_path):
    order = []

    def wait():
        with lock.exclusive_lock(tmp_path / "a"):
            order.append("second")

    other = threading.Thread(target=wait)
    with lock.exclusive_lock(tmp_path / "a"):
        other.start()
        order.append("first")
    other.join(60)
    assert order == ["first", "second"]


def test_a_wait_is_told_once_and_not_before_it_is_long(tmp_path, monkeypatch):
    told, order = [], []

    def wait():
        with lock.exclusive_lock(tmp_path / "a", waiting=lambda: told.append(len(order))):
            order.append("second")

    monkeypatch.setattr(lock, "POLL_SECONDS", 0.01)
    with lock.exclusive_lock(tmp_path / "b", waiting=lambda: told.append("free")):
        pass
    for seconds, expected in ((60.0, []), (0.05, [0])):
        monkeypatch.setattr(lock, "SILENT_SECONDS", seconds)
        other = threading.Thread(target=wait)
        with lock.exclusive_lock(tmp_path / "a"):
            other.start()
            other.join(0.5)
        other.join(60)
        assert order.pop() == "second"
        assert told == expected
