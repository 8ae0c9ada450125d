import contextlib
import http.client
import logging
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.fs
import pyarrow.parquet as pq
import pytest
import torch
from forked_workers import forked_session
from hypothesis import settings

from ehr_ray.commands.ingest import ingest
from ehr_ray.config.yaml_files import override, read_yaml
from ehr_ray.events.block_files import write_block
from ehr_ray.events.blocks import BlockStore
from ehr_ray.events.patients import cohort_shards, read_patients
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import parse, to_yaml
from ehr_ray.registry import get_family
from ehr_ray.storage import sync
from ehr_ray.storage.paths import local, uri_of
from ehr_ray.train.loader import Loader

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)  # a busy machine is no defect
settings.load_profile("untimed")

CONFIGS = Path(__file__).parents[1] / "configs"
LONG = ("tests/jobs/", "tests/ray/")
"""Folders whose tests share a cluster, and take longest."""
ENDS = {folder: contextlib.ExitStack() for folder in LONG}
"""What ends with the last test of a folder: a cluster nobody needs still takes time of a core."""


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    for folder, ends in ENDS.items():
        if item.nodeid.startswith(folder) and not (nextitem and nextitem.nodeid.startswith(folder)):
            ends.close()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Divide tests among processes (`pytest -n`): those that share a cluster go to one of them.

    `tests/jobs` and `tests/ray` take longest, so they begin, side by side; the rest goes by file,
    to whom has time, so that what a file trains for its tests is trained once.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            long = [folder for folder in LONG if nodeid.startswith(folder)]
            return long[0] if long else super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # else files of many short tests hold up the long ones
    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(0))


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden", action="store_true", help="store the losses of this code as golden"
    )


@pytest.fixture(autouse=True)
def one_thread():
    """See that no test leaves more threads to those after it: on busy cores they are far slower."""
    yield
    assert torch.get_num_threads() == 1


@pytest.fixture(scope="session")
def synthetic_cohort(tmp_path_factory):
    """A cohort of 60 made-up patients: about 42 train, 12 tuning, 6 held out."""
    path = tmp_path_factory.mktemp("cohorts") / "synthetic"
    ingest("synthetic", None, path, splits="0.7,0.2,0.1", options={"patients": 60}, cpus=1)
    return path


@pytest.fixture(scope="session")
def synthetic_vocabulary(synthetic_cohort):
    table = pq.read_table(synthetic_cohort / "metadata" / "codes.parquet")
    return Vocabulary.from_table(table, min_count=1)


@pytest.fixture(scope="session")
def synthetic_patients(synthetic_cohort, synthetic_vocabulary):
    """The patients of each split."""
    return {
        split: [
            patient
            for shard in cohort_shards(synthetic_cohort, split)
            for patient in read_patients(shard, synthetic_vocabulary)
        ]
        for split in ("train", "tuning", "held_out")
    }


@pytest.fixture(scope="session")
def tiny_experiment(synthetic_cohort):
    """A family's own tiny config, of its name or without a task: tiny_experiment("set_vae", {})."""

    def build(family="set_vae", changes=None):
        paths = sorted(
            (CONFIGS / "tiny").glob("*.yaml"), key=lambda path: (path.stem != family, path)
        )
        raws = (read_yaml(path) for path in paths)
        raw = next(r for r in raws if r.get("family") == family and not r.get("task"))
        changes = {"data.cohort": str(synthetic_cohort), **(changes or {})}
        return parse(override(raw, changes))

    return build


@pytest.fixture(scope="session")
def tiny_run(tiny_experiment, tmp_path_factory):
    """A model of the synthetic cohort after one step, and how it is evaluated in little time."""
    from ehr_ray.commands.train.command import train  # most tests need no Ray or MLflow

    changes = {
        "cluster.num_workers": 0,
        "tracking.experiment": None,
        "train.max_steps": 1,
        "evaluation.baselines": False,
        "evaluation.bootstrap": 10,
        "evaluation.hours": [24],
        "output": str(tmp_path_factory.mktemp("runs")),
    }
    return train(tiny_experiment("set_vae", changes)).run


@pytest.fixture(scope="session")
def no_ray_starts():
    """See that what runs in `with no_ray_starts():` starts no Ray; other tests may have."""
    import ray  # most tests need none

    @contextlib.contextmanager
    def watched():
        before = ray.is_initialized()
        yield
        assert ray.is_initialized() == before

    return watched


@pytest.fixture(scope="session")
def evaluated_run(tiny_run, tmp_path_factory):
    """A copy of that run, evaluated where it lies, not where it was trained."""
    from ehr_ray.commands.evaluate.command import evaluate

    copy = tmp_path_factory.mktemp("moved") / "run"
    shutil.copytree(tiny_run, copy)
    evaluate(copy, on_ray=False)
    return copy


@pytest.fixture(scope="session")
def make_loader(synthetic_patients, synthetic_vocabulary, tmp_path_factory):
    """The loader of an experiment over the synthetic cohort; blocks are made once."""
    made = {}

    def build(experiment):
        family, config = get_family(experiment.family), experiment.model
        key = (family.name, *(repr(getattr(config, name)) for name in family.cache_fields))
        if key not in made:
            folder = tmp_path_factory.mktemp("blocks")
            for split in ("train", "tuning"):
                rows = [
                    family.transform(patient, config, synthetic_vocabulary)
                    for patient in synthetic_patients[split]
                ]
                half = len(rows) // 2
                write_block(folder / split / "0.arrow", rows[:half], chunk=5)
                write_block(folder / split / "1.arrow", rows[half:])
            made[key] = folder
        stores = {
            split: BlockStore([made[key] / split / f"{i}.arrow" for i in range(2)])
            for split in ("train", "tuning")
        }
        return Loader(
            collate=lambda rows: family.collate(rows, config),
            config=experiment.data,
            seed=experiment.seed,
            accumulate=experiment.train.accumulate,
            **stores,
        )

    return build


@pytest.fixture(scope="session")
def ray_folder():
    """The folder of a Ray that tests start, with a short path for its sockets, and a store's port.

    An S3 server listens there should a test start it; Ray's workers inherit the address.
    """
    folder = Path(tempfile.mkdtemp(prefix="ehr"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "RAY_TMPDIR": str(folder),
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "EHR_RAY_STAGING": str(folder / "staging"),
    }
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ends():
    """What ends with the last test of a folder: ends["tests/jobs/"].callback(function)."""
    return ENDS


@pytest.fixture(scope="session")
def cluster(ray_folder):
    """One Ray for all tests of `tests/ray`."""
    ENDS["tests/ray/"].enter_context(forked_session(ray_folder, num_cpus=4))


@pytest.fixture(scope="session")
def bucket(ray_folder):
    """The bucket `hospital` of an S3 server on loopback."""
    from moto.server import create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    where = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    # `ThreadedMotoServer` looks for the service of each request among the folders of them all.
    app = create_backend_app("s3")
    server = make_server(where.hostname, where.port, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    store = pyarrow.fs.S3FileSystem(
        endpoint_override=where.netloc, scheme="http", allow_bucket_creation=True
    )
    store.create_dir("hospital")
    yield store
    server.shutdown()


@pytest.fixture(scope="session")
def shared():
    """Real data beside the repository, or a skip that says so."""

    def folder(name):
        path = Path(__file__).parents[2] / "shared" / "data" / name
        if not path.exists():
            pytest.skip(f"real data not found: {path}")
        return path

    return folder


@pytest.fixture(scope="session")
def forked():
    """Run ranks as processes forked from this one, whose imports they have: their exit codes.

    forked(function, folder, world, ...) calls function(folder, rank, world, ...), which leaves its
    process group as it is: its end waits, with Python's lock, for threads that may want this lock.
    """

    def rank_of(function, *given):
        function(*given)
        torch.distributed.barrier()
        os._exit(0)

    def run(function, folder, world, *more):
        context = multiprocessing.get_context("fork")
        ranks = [
            context.Process(target=rank_of, args=(function, folder, rank, world, *more))
            for rank in range(world)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        return [rank.exitcode for rank in ranks]

    return run


@pytest.fixture(scope="session")
def train_ranks(forked, synthetic_vocabulary):
    """Train with ranks of a gloo group: train_ranks(folder, experiment, loader, world).

    The exit codes are returned; runs and models are left as `unit/train/two_ranks.py` says.
    """
    main = runpy.run_path(str(Path(__file__).parent / "unit" / "train" / "two_ranks.py"))["main"]

    def run(folder, experiment, loader, world, last=None):
        folder.mkdir(exist_ok=True)
        (folder / "rendezvous").unlink(missing_ok=True)  # of ranks that were killed
        if not (folder / "experiment.yaml").is_file():
            (folder / "experiment.yaml").write_text(to_yaml(experiment))
            pq.write_table(synthetic_vocabulary.to_table(), folder / "vocabulary.parquet")
            for split in ("train", "tuning"):
                store = getattr(loader, split)
                rows = store.rows(range(len(store)))
                write_block(folder / f"{split}.arrow", rows, chunk=5)
        return forked(main, folder, world, last)

    return run


class MlflowServer:
    """An MLflow server on loopback that may be killed, frozen and started again.

    It is forked from a process that has imported MLflow's server, which takes far longer than all
    the rest; that process is started with the first server.
    """

    def __init__(self, folder):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.uri, self._log = f"http://127.0.0.1:{self._port}", folder / "server.log"
        self._code = SERVE.format(folder=folder, log=self._log, port=self._port)
        self._context, self._process = multiprocessing.get_context("forkserver"), None
        self._context.set_forkserver_preload(["mlflow.server"])

    def start(self):
        self._process = self._context.Process(target=exec, args=(self._code,), daemon=True)
        self._process.start()
        while not self._answers():
            assert self._process.is_alive(), self._log.read_text()
            time.sleep(0.1)

    def _answers(self):
        """Whether it answers; at the first question it makes its tables, which may take long."""
        link = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        with contextlib.suppress(OSError), contextlib.closing(link):
            link.request("GET", "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default")
            return link.getresponse().status == 200
        return False

    def signal(self, number):
        os.kill(self._process.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self._process.join()

    @property
    def running(self):
        return self._process is not None and self._process.is_alive()


SERVE = """
import os
log = os.open("{log}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1), os.dup2(log, 2)
from mlflow.server import app, constants
os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = "sqlite:///{folder}/served.db"
os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = "mlflow-artifacts:/"
os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = "{folder}/served"
os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"
app.run("127.0.0.1", {port}, threaded=True)
"""


@pytest.fixture
def fetched_unsent(monkeypatch, tmp_path):
    """The names of what is pushed; each is fetched by another thread before, as a start does."""
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "staging"))
    push, names, others = sync.push, [], []

    def begin(location, **given):
        if uri_of(location) is not None:
            names.append(local(location).name)
            other = threading.Thread(
                target=sync.fetch, args=(location,), kwargs={"missing_ok": True}
            )
            others.append(other)
            other.start()
            other.join(0.3)
        push(location, **given)

    monkeypatch.setattr(sync, "push", begin)
    yield names
    for other in others:
        other.join()


@pytest.fixture(scope="session")
def started_server(tmp_path_factory):
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    yield server
    if server.running:
        server.kill()


@pytest.fixture
def mlflow_server(started_server, monkeypatch):
    """The one MLflow server of the session, up, and where this process tells its runs."""
    if not started_server.running:
        started_server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", started_server.uri)
    return started_server
