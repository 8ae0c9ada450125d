"""Ray's workers as forks of a process that has their imports already.

A worker imports torch and Ray anew, four to eight CPU seconds each, and a training has four of
them. In a Ray of `forked_session`, or of a program that takes `forking_python` for its Python, the
raylet starts this file instead; it asks a parent process, one a raylet, to fork. Everything else
about a worker stays: a process of its own, which the raylet starts, counts and kills. A Ray that
`ray start` or a shell starts has ordinary workers: Ray reads the number of a job, and its raylet's,
as it is imported, so that a parent is of one job of one raylet.
"""

import array
import contextlib
import fcntl
import json
import os
import runpy
import socket
import subprocess
import sys
import time
import traceback

MODULES = (
    "ehr_ray.registry",
    "ehr_ray.runtime.training.worker",
    "h5py",
    "ray.data",
    "ray.train.torch",
    "ray.tune",
    "sklearn.metrics",
    "torch._dynamo",  # which the first optimizer imports
)
"""What the parent imports: most of what workers do, and nothing that starts threads."""
READ_AT_IMPORT = ("PYTHON", "OMP_", "RAY_", "CUDA_")
"""Begin of the names of variables by whose change a worker is not forked but started."""
ITS_OWN = ("RAY_JOB_ID", "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC")
"""Variables that differ from worker to worker and that no import reads."""


@contextlib.contextmanager
def forked_session(folder, num_cpus):
    """Start a Ray whose workers are forked; `folder` is for its sockets, so with a short path."""
    from ehr_ray.runtime.session import session

    python = sys.executable
    with contextlib.ExitStack() as stack:
        sys.executable = forking_python(folder)  # by which Ray starts its processes
        try:
            stack.enter_context(session(num_cpus=num_cpus))
        finally:
            sys.executable = python
        yield


def forking_python(folder):
    """Return what a program is to take for Python, so that workers of the Ray it starts are forked.

    `folder` is for sockets, so with a short path.
    """
    program, python = folder / "python", sys.executable
    if not program.exists():
        program.write_text(f'#!/bin/sh\nexec {python} -I -S {__file__} {python} {folder} "$@"\n')
        program.chmod(0o700)
    return str(program)


def start(python, folder, command):
    """Be what the raylet asked Python for: a fork if it is a worker, else that command."""
    context, arguments = worker_of(command)
    if arguments:
        environment = {**os.environ, **context.get("env_vars", {})}
        link = parent(python, f"{folder}/{os.environ['RAY_RAYLET_PID']}")
        asked = {"place": os.getcwd(), "arguments": arguments, "environment": environment}
        message = json.dumps(asked).encode()
        link.sendall(len(message).to_bytes(8, "big"))
        streams = array.array("i", (0, 1, 2))
        link.sendmsg([message[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        link.sendall(message[1:])
        if link.recv(1) == b"f":
            link.recv(1)  # ends with the worker
            return
    os.execv(python, [python, *command])


def worker_of(command):
    """Return the environment and arguments of a worker; none if it is another kind of process."""
    file, rest = os.path.basename(command[0]), command[1:]
    if file == "default_worker.py":
        return {}, command
    if file != "setup_worker.py" or "--language=PYTHON" not in rest:
        return {}, []
    option = "--serialized-runtime-env-context="
    given = [word for word in rest if word.startswith(option)]
    context = json.loads(given[0].removeprefix(option)) if given else {}
    if context.get("command_prefix") or context.get("override_worker_entrypoint"):
        return {}, []  # a folder or a container of its own
    return context, [word for word in rest if word not in (*given, "--language=PYTHON")]


def parent(python, path):
    """Connect to the process that forks the workers of this raylet; the first worker starts it."""
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(path):
            with open(f"{path}.log", "w") as log:
                process = subprocess.Popen(
                    [python, __file__, path],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            while not os.path.exists(path):
                assert process.poll() is None, f"see {path}.log"
                time.sleep(0.02)
    link = socket.socket(socket.AF_UNIX)
    link.connect(path)
    return link


def serve(path):
    """Import, then fork a worker for each that asks, until the raylet is gone."""
    import_modules()
    raylet = os.environ["RAY_RAYLET_PID"]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{path}.new")
        server.listen(64)
        server.settimeout(1)
        os.rename(f"{path}.new", path)
        while os.path.exists(f"/proc/{raylet}"):
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            with contextlib.suppress(TimeoutError):
                link, _ = server.accept()
                with link:
                    fork(link, server)


def import_modules():
    """Import what workers need, with no draw from Ray's random numbers.

    Forks would draw the same ones: ids of tasks, which must differ.
    """
    import ray.actor

    real = ray.actor.ActorClassID

    class Drawn:
        def from_random():
            return real(os.urandom(real.size()))

    ray.actor.ActorClassID = Drawn
    for module in MODULES:
        __import__(module)
    ray.actor.ActorClassID = real
    drawn = set()
    for _ in range(2):
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, ray.ObjectRef.from_random().binary())
            os._exit(0)
        drawn.add(os.read(reader, 100))
        os.wait()
    assert len(drawn) == 2, "an import draws from Ray's random numbers"


def fork(link, server):
    """Fork a worker, or say that it has to be started."""
    link.setblocking(True)
    size = int.from_bytes(link.recv(8), "big")
    message, more, _, _ = link.recvmsg(1, socket.CMSG_SPACE(12))
    streams = array.array("i", more[0][2])
    while len(message) < size:
        message += link.recv(size - len(message))
    asked = json.loads(message)
    if imports_differ(asked["environment"]):
        link.sendall(b"s")
    elif os.fork() == 0:
        server.close()
        link.sendall(b"f")
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        code = 1
        try:
            code = be_worker(**asked)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    for stream in streams:
        os.close(stream)


def imports_differ(environment):
    """Whether a worker's environment has other values of what this process's imports have read."""
    names = {
        name
        for name in (*environment, *os.environ)
        if name.startswith(READ_AT_IMPORT) and name not in ITS_OWN
    }
    return any(environment.get(name) != os.environ.get(name) for name in names)


def be_worker(place, arguments, environment):
    """Run Ray's program of a worker; return its exit code."""
    os.setsid()
    os.chdir(place)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        start(sys.argv[1], sys.argv[2], sys.argv[3:])
