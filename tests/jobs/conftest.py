"""A Ray cluster of several processes on this machine, started by hand as on several machines."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from ehr_ray.storage.paths import STAGING
from ehr_ray.train.checkpoint import saved_progress

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
TOKEN = "0" * 64
ENDS = ("SUCCEEDED", "FAILED", "STOPPED")


class Head:
    """A head with token authentication and a dashboard on loopback, and the nodes that join it."""

    def __init__(self, folder: Path, cpus: int) -> None:
        self._folder = folder
        token = folder / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        self.gcs, dashboard, client = _free_ports(3)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environment |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        }
        self._processes: list[subprocess.Popen] = []
        self._start = (
            "--head",
            f"--port={self.gcs}",
            f"--dashboard-port={dashboard}",
            "--dashboard-host=127.0.0.1",
            f"--ray-client-server-port={client}",
            f"--num-cpus={cpus}",
            "--disable-usage-stats",
        )

    def open(self) -> None:
        """Start, and wait until the job server answers."""
        self.start(*self._start)

        def answers() -> bool:
            assert self._processes[0].poll() is None, (self._folder / "log0").read_text()
            try:
                return isinstance(self._jobs(""), list)
            except (urllib.error.URLError, ConnectionError):
                return False

        wait_until(answers)

    def start(self, *options: str) -> subprocess.Popen:
        """Run `ray start` in the foreground, on free ports."""
        listen, grpc, metrics, node, store = _free_ports(5)
        command = [RAY, "start", "--block", *options]
        command += [f"--dashboard-agent-listen-port={listen}"]
        command += [f"--dashboard-agent-grpc-port={grpc}", f"--metrics-export-port={metrics}"]
        command += [f"--node-manager-port={node}", f"--object-manager-port={store}"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        command += ["--object-store-memory=200000000"]
        # As on machines of their own: in one folder a node would replace another's copy of a job.
        command += [f"--temp-dir={self._folder}/{len(self._processes)}"]
        log = (self._folder / f"log{len(self._processes)}").open("w")
        environment = {**self.environment, STAGING: str(self.copies(len(self._processes)))}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        self._processes.append(process)
        return process

    def copies(self, number: int) -> Path:
        """Return the folder of copies of a node, counted from the head, 0."""
        return self._folder / f"copies{number}"

    @property
    def nodes(self) -> int:
        """How many nodes were started so far, the head among them."""
        return len(self._processes)

    def add_node(self, cpus: int) -> subprocess.Popen:
        """Start a node, until it has joined: one that is late on a busy machine ends itself."""
        log = self._folder / f"log{len(self._processes)}"
        node = self.start(f"--address=127.0.0.1:{self.gcs}", f"--num-cpus={cpus}")
        wait_until(lambda: node.poll() is not None or "runtime started" in log.read_text())
        if node.poll() is None:
            return node
        assert "timed out during startup" in log.read_text(), log.read_text()
        return self.add_node(cpus)

    def alive(self) -> list[int]:
        """Return the numbers of the nodes that are there, without the head."""
        return [n for n, node in enumerate(self._processes) if n and node.poll() is None]

    def have_nodes(self, count: int) -> None:
        """See that so many nodes of one CPU are there."""
        for _ in range(count - len(self.alive())):
            self.add_node(cpus=1)

    def lose(self, node: subprocess.Popen) -> None:
        """End a node with all its processes at once, as a machine that loses power."""
        everything = [node, *psutil.Process(node.pid).children(recursive=True)]
        for each in everything:
            try:
                each.kill()
            except psutil.NoSuchProcess:
                continue
        node.wait()

    def lose_nodes(self) -> None:
        """Lose every node but the head."""
        for process in self._processes[1:]:
            if process.poll() is None:
                self.lose(process)

    def close(self) -> None:
        """End all nodes, the head last."""
        self.lose_nodes()
        if self._processes and self._processes[0].poll() is None:
            self.lose(self._processes[0])

    def ray(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run a `ray` command from the root of the repository."""
        return subprocess.run(
            [RAY, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )

    def submit(self, name: str, verb: str, *arguments: object, wait: bool = True):
        """Run `ray job submit` on a job script; return what it says, by default at its end."""
        job = [sys.executable, f"jobs/{verb}.py", *map(str, arguments)]
        how = ["--submission-id", name, "--working-dir", ".", *([] if wait else ["--no-wait"])]
        store = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        environment = json.dumps({"env_vars": {"OMP_NUM_THREADS": "1", **store}})
        return self.ray("job", "submit", *how, "--runtime-env-json", environment, "--", *job)

    def logs(self, name: str) -> str:
        """Return a job's log so far."""
        return str(self._jobs(f"{name}/logs")["logs"])

    def _jobs(self, path: str):
        """Ask the job server as `ray job` does, whose process takes seconds of a core to start."""
        address = f"{self.environment['RAY_API_SERVER_ADDRESS']}/api/jobs/{path}"
        request = urllib.request.Request(address, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def wait(self, name: str, status: str) -> None:
        """Wait until a job has a status."""

        def reached() -> bool:
            said = self._jobs(name)["status"]
            assert said == status or said not in ENDS, said + self.logs(name)
            return said == status

        wait_until(reached, lambda: self.logs(name))

    def wait_for_step(self, name: str, run: Path, step: int) -> None:
        """Wait until a job's run has saved its state at a step or later."""

        def reached() -> bool:
            return (progress := saved_progress(run)) is not None and progress.step >= step

        wait_until(reached, lambda: self.logs(name))


@pytest.fixture(scope="session")
def head(ends):
    """One head for all tests, in its own folder; sockets need a short path.

    It does no work itself: workers need nodes, which tests add.
    """
    folder = Path(tempfile.mkdtemp(prefix="ehr"))
    head = Head(folder, cpus=0)
    ends["tests/jobs/"].callback(head.close)
    try:
        head.open()
        yield head
    finally:
        head.close()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
