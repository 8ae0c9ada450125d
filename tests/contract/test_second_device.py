"""Every tiny config on a second device: see `second_device_cases.py`."""

import os
import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).with_name("second_device_cases.py")


def test_every_tiny_config_is_right_on_a_second_device():
    """In a process of its own: with such a device autograd keeps threads, so no rank can fork."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(
        command, cwd=CASES.parents[2], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
