import os
import subprocess
import sys

from ehr_ray.storage import processes


def test_a_process_is_told_from_one_that_has_ended():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    assert processes.started(os.getpid()) == processes.started(os.getpid()) != ""
    ended.wait()
    assert processes.started(ended.pid) == ""


def test_a_machine_of_another_name_is_another(monkeypatch):
    here = processes.machine()
    assert here == processes.machine() != ""
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    assert processes.machine() != here
