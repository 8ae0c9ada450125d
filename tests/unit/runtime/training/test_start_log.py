import os
import subprocess
import sys

import pytest

THREADS = """
import os, threading
from ehr_ray.runtime.starts import keep_to_core

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
