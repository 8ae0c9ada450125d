"""What a Ray started here lets in."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import ray

pytestmark = pytest.mark.ray


def test_a_ray_started_here_turns_away_who_has_not_its_user_s_token(cluster, tmp_path):
    """Ray's ports listen on every address, so the token is what keeps others out."""
    address = ray.get_runtime_context().gcs_address
    code = f"import ray; ray.init(address={address!r}); print('joined')"
    bare = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    bare |= {"RAY_TMPDIR": os.environ["RAY_TMPDIR"], "RAY_py_gcs_connect_timeout_s": "5"}  # else 30
    mine = {**bare, "RAY_AUTH_MODE": "token"}

    def refused(environment: dict[str, str]) -> str:
        """Return why Ray does not let in a process with this environment; empty if it does."""
        run = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert ("joined" in run.stdout) == (run.returncode == 0), run.stderr
        return "" if run.returncode == 0 else run.stderr or str(run.returncode)

    strangers = ({**bare, "HOME": str(tmp_path)}, {**mine, "RAY_AUTH_TOKEN": "1" * 64})
    with ThreadPoolExecutor() as pool:  # Ray tries for some seconds
        why = [*pool.map(refused, (mine, *strangers))]
    assert why[0] == ""
    for text in why[1:]:
        assert "Authentication token is missing or incorrect" in text


def test_workers_of_the_tests_are_forks_with_ids_of_their_own(cluster):
    @ray.remote
    class Worker:
        def said(self):
            parent = psutil.Process(os.getppid()).cmdline()
            return parent[1], ray.ObjectRef.from_random().hex()

    workers = [Worker.remote() for _ in range(2)]
    said = ray.get([worker.said.remote() for worker in workers])
    assert all(Path(parent).name == "forked_workers.py" for parent, _ in said)
    assert len({identity for _, identity in said}) == 2
