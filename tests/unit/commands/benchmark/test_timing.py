import os
import time

from ehr_ray.commands.benchmark import timing
from ehr_ray.commands.benchmark.timing import cpu_seconds, in_process, wall_seconds


def test_a_time_is_the_median_of_rounds_by_its_clock(monkeypatch):
    calls = []
    for measure, clock in ((cpu_seconds, "process_time"), (wall_seconds, "perf_counter")):
        ticks = iter([0.0, 5.0, 10.0, 11.0, 20.0, 22.0])
        monkeypatch.setattr(timing.time, clock, lambda ticks=ticks: next(ticks))
        assert measure(lambda: calls.append(1), rounds=3) == 2.0
        monkeypatch.undo()
    assert len(calls) == 6
    assert time.perf_counter() > 0


def test_a_function_runs_in_a_process_of_its_own():
    assert in_process(os.getpid) != os.getpid()
