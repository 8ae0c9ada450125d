import subprocess
import sys
import time

import pytest

from ehr_ray.commands.benchmark.peers import timing

BUSY = "import time\nwhile time.process_time() < 0.3: pass"


def test_what_threads_and_children_compute_is_counted_and_what_they_wait_is_not():
    began = timing.cpu_seconds()
    time.sleep(0.2)
    waited = timing.cpu_seconds() - began
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    assert timing.cpu_seconds() - began - waited >= 0.25
    assert waited < 0.15


def test_ways_are_taken_in_turn_and_the_median_counts(monkeypatch):
    clock, called = [0.0], []
    monkeypatch.setattr(timing, "cpu_seconds", lambda: clock[0])

    def way(name, seconds):
        def take():
            called.append(name)
            clock[0] += seconds.pop(0)

        return take

    found = timing.in_turn({"a": way("a", [9.0, 1.0, 2.0]), "b": way("b", [3.0, 5.0, 4.0])})
    assert called == ["a", "b"] * 3
    assert found == pytest.approx({"a": 2.0, "b": 4.0})


def test_a_library_that_is_not_there_is_told_with_the_remedy():
    assert timing.library("json").loads("1") == 1
    assert timing.library("no_such_library") == (
        "left out: no_such_library is not installed; pip install 'ehr_ray[peers]'"
    )
