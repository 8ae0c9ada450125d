import os
import subprocess
import sys
import time

import pytest

from ehr_ray.runtime.training.start_log import StartFile, read_starts

THREADS = """
import os, threading
from ehr_ray.runtime.training.start_log import keep_to_core

go, told = threading.Event(), []

def tell():
    go.wait()
    told.append(sorted(os.sched_getaffinity(0)))

before = threading.Thread(target=tell)
before.start()
keep_to_core({index})
after = threading.Thread(target=tell)
after.start()
go.set()
before.join()
after.join()
print([*told, sorted(os.sched_getaffinity(0))])
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_a_process_keeps_to_a_core_with_all_its_threads():
    cores = sorted(os.sched_getaffinity(0))
    for index in (0, 1, len(cores)):
        code = THREADS.format(index=index)
        said = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert said.stdout.strip() == str([[cores[index % len(cores)]]] * 3), said.stderr


def test_notes_of_starts_leave_out_what_is_half_written(tmp_path):
    first = StartFile(tmp_path, rank=0, world=2)
    first.step(1)
    between = time.monotonic()
    StartFile(tmp_path, rank=1, world=2)
    (path,) = tmp_path.glob("*-0.jsonl")
    path.write_text(path.read_text() + '{"step": 2, "ti')
    one, two = read_starts(tmp_path)
    assert (one.rank, one.pid, one.steps) == (0, os.getpid(), [1])
    assert (two.rank, two.world, two.steps) == (1, 2, [])
    assert read_starts(tmp_path, between) == [two]
