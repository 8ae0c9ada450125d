import threading
import time

import torch

from ehr_ray.commands.benchmark import gpu_report
from ehr_ray.commands.benchmark.gpu_report import Report


def test_a_part_that_fails_ends_no_other_and_what_is_known_is_kept_after_each():
    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    seen = []
    report = Report(100.0, seen.append)
    report.part("phrases", 30, report.check, "phrases", 1.0, 2.0)
    report.part("jepa large", 40, fails)
    report.part("jepa tiny", 101, fails)
    report.part("two ranks", 20, report.check, "weights", 1.0, 2.0)
    assert [len(figures) for figures in seen] == [2, 3, 5, 6]
    assert seen[-1]["left out"] == "jepa tiny (no time left)"
    large, tiny = seen[-1]["faults"].split("; ")
    assert large == "jepa large: OutOfMemoryError: CUDA out of memory."
    assert tiny == "jepa tiny: not checked, no time left"
    assert seen[-1]["jepa tiny"] == "left out: no time left"
    assert (seen[-1]["phrases"], seen[-1]["weights"]) == (1.0, 1.0)


def test_a_measurement_alone_may_be_left_out_and_what_needs_a_part_that_failed_is_not_tried():
    done = []
    report = Report(100.0)
    report.part("phrases", 101, done.append, "phrases", checks=False)
    report.part("one rank", 1, report.check)  # a TypeError: nothing is given
    report.part("two ranks", 1, done.append, "two", needs="one rank")
    report.part("packed", 1, done.append, "packed")
    report.part("after it", 1, done.append, "after it", needs="packed")
    assert done == ["packed", "after it"]
    one, two = report.faults
    assert one.startswith("one rank: TypeError: ")
    assert two == "two ranks: not checked, one rank has not come to its end"
    why = "phrases (no time left); two ranks (one rank has not come to its end)"
    assert report.result()["left out"] == why


def test_a_goal_that_is_missed_is_told_beside_the_figure_and_is_no_fault():
    report = Report()
    report.aim("MFU", 0.5, 0.4)
    report.aim("busy", 0.5, 0.9)
    assert report.figures == {"MFU": 0.5, "busy": 0.5, "busy, goal missed": "below 0.9"}
    assert report.faults == []


def test_a_part_has_twice_its_time_and_never_more_than_is_left():
    told = []
    report = Report(100.0)
    report.part("whole", 30, lambda: told.append(report.part_left))
    report.part("nearly all", 90, lambda: told.append(report.part_left))
    assert 0 < 60 - told[0] < 30
    assert 0 < 100 - told[1] < 30
    assert report.part_left > 60  # between parts all that is left

    def inner():
        report.part("inner", 10, lambda: told.append(report.part_left))
        told.append(report.part_left)

    report.part("outer", 30, inner)
    assert told[2] <= 20 < told[3]


def test_a_part_that_hangs_ends_the_process_with_what_is_known(monkeypatch, capsys):
    ended, seen = threading.Event(), []
    monkeypatch.setattr(gpu_report, "GRACE", 0.0)
    monkeypatch.setattr(gpu_report.os, "_exit", lambda code: (seen.append(code), ended.set()))
    report = Report(60.0, seen.append, began=time.monotonic() - 59.9)
    with report.watched():
        report.part("jepa large", 0.0, ended.wait, 60)
    figures, code = seen[:2]
    assert code == 1
    assert figures["faults"] == "jepa large: not over 60 s after the start, and ended"
    assert capsys.readouterr().err == f"--only gpu: {figures['faults']}\n"


def test_what_hangs_is_ended_though_nothing_can_be_kept(monkeypatch):
    def full(figures):
        raise OSError(28, "No space left on device")

    seen = []
    monkeypatch.setattr(gpu_report.os, "_exit", seen.append)
    Report(60.0, full).give_up()
    assert seen == [1]


def test_a_run_that_is_through_in_time_is_not_ended(monkeypatch):
    monkeypatch.setattr(gpu_report, "GRACE", 0.0)
    report = Report(0.05)
    report.give_up = lambda: report.faults.append("ended")
    with report.watched():
        pass
    time.sleep(0.1)
    assert report.faults == []
