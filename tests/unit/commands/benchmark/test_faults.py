import json
import time

import pytest

from ehr_ray.commands.benchmark import faults


def test_goodput_counts_a_step_once_and_not_the_time_between_starts(tmp_path):
    """Steps of 1 s: 1 to 6, killed; after 10 s 5 to 8 again. 8 s of 20 are good."""
    for began, steps in ((0, range(1, 7)), (16, range(5, 9))):
        lines = [{"rank": 0, "world": 1, "pid": 1, "time": began}]
        lines += [{"step": s, "time": began + i} for i, s in enumerate(steps, start=1)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{began}.0-0.jsonl").write_text(text)
    numbers = faults.goodput(tmp_path, 0, 20)
    assert numbers["goodput"] == pytest.approx(8 / 20)
    assert (numbers["steps"], numbers["steps repeated"]) == (8, 2)
    # The second kill is after the last step: nothing tells how long that one took.
    assert faults.down_times(tmp_path, [6.5, 30.0]) == [pytest.approx(17 - 6.5)]


def test_a_step_that_stalls_does_not_make_more_of_the_first_than_there_was(tmp_path):
    """A start at 1, steps ended at 1.5, 4.5, 5: the first took 0.5 s at most, not the median."""
    lines = [{"rank": 0, "world": 1, "pid": 1, "time": 1.0}]
    lines += [{"step": s, "time": at} for s, at in enumerate((1.5, 4.5, 5.0), start=1)]
    (tmp_path / "1.0-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert faults.goodput(tmp_path, 0.9, 5)["goodput"] == pytest.approx(4 / 4.1)


def test_a_schedule_misses_the_kill_that_nobody_is_up_for():
    """Kills each 20 s were due 5 s ago, 25 s ago, and so on."""
    now = time.monotonic()
    due = faults.every(20, now - 105)
    ups = [now - 106, now - 26, now - 6, now - 4, now]
    starts = [faults.Start(rank=0, world=2, pid=1, time=up) for up in ups]
    assert [due(3, start) for start in starts] == [True, True, True, False, False]
