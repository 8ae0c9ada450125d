from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ehr_ray.errors import InputError, RunError, StoreUnavailableError
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.prepared import Prepared, prepared
from ehr_ray.runtime.training import worker
from ehr_ray.runtime.training.ranking import MEASURES, TrialRanking, rank_of
from ehr_ray.runtime.training.worker import Job, RayBackend, loader_of, train_here
from ehr_ray.storage.paths import STAGING, local
from ehr_ray.train import history
from ehr_ray.train.checkpoint import Progress, save_state
from ehr_ray.train.task import family_of


def backend_of(rank, world, strategy):
    """A rank of a worker group, without the group."""
    backend = RayBackend.__new__(RayBackend)
    backend.rank, backend.world, backend._strategy = rank, world, strategy
    backend.device, backend.report = torch.device("cpu"), lambda _row: None
    return backend


@pytest.fixture
def without_ray(monkeypatch):
    """Ray Train wraps a model as torch does: ranks are forked, and no workers of Ray."""
    monkeypatch.setattr(
        "ray.train.torch.prepare_model",
        lambda model, parallel_strategy_kwargs: DistributedDataParallel(
            model, **parallel_strategy_kwargs
        ),
    )


def test_a_model_of_several_ranks_sends_its_buffers_when_wrapped_alone(without_ray, tmp_path):
    """What DDP does by that is shown with two ranks in tests/unit/train/test_backend.py."""
    place = f"file://{tmp_path}/rendezvous"
    dist.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    try:
        wrapped = backend_of(0, 1, "ddp").wrap(nn.Linear(2, 1))
    finally:
        dist.destroy_process_group()
    assert isinstance(wrapped, DistributedDataParallel)
    assert not wrapped.broadcast_buffers


@pytest.mark.parametrize("device", ["cuda:1", "cpu"])
def test_a_rank_of_several_on_a_node_computes_on_its_own_gpu(monkeypatch, device):
    chosen = []
    context = SimpleNamespace(get_world_rank=lambda: 1, get_world_size=lambda: 2)
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device(device))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert RayBackend().device == torch.device(device)
    assert chosen == ([torch.device(device)] if device == "cuda:1" else [])


@pytest.mark.parametrize(
    ("cpus", "asked", "threads"), [(0.5, None, 1), (1, None, 1), (6, None, 3), (6, 1, 1), (1, 4, 4)]
)
def test_batches_are_made_by_as_many_threads_as_the_cores_of_a_worker_allow(
    tiny_experiment, cpus, asked, threads
):
    changes = {"cluster.cpus_per_worker": cpus, "data.collate_threads": asked}
    experiment = tiny_experiment(changes=changes)
    rows = SimpleNamespace(store=lambda _split: [])
    assert loader_of(experiment, get_family("set_vae"), rows).threads == threads


@pytest.fixture
def trained(without_ray, tiny_config, synthetic_cohort, forked, tmp_path):
    """Train a tiny config by ranks: trained(config, strategy, world, changes, rank) is its run.

    `rank` gives what ranks a trial, of an experiment and its family.
    """

    def by_ranks(config, strategy, world, changes, rank=lambda *_: None):
        folder = tmp_path / f"{world}-{strategy}"
        own = {"cluster.strategy": strategy, "cluster.num_workers": world}
        own |= {"data.cohort": synthetic_cohort, "data.cache_dir": tmp_path / "cache"}
        experiment = tiny_config(config, **own, **changes)
        family, run = family_of(experiment), folder / "run"
        run.mkdir(parents=True)
        with prepared(experiment, family, on_ray=False) as data:
            ranking = rank(experiment, family)
            job = Job(experiment, data, run, folder / "progress", None, ranking=ranking)
            assert forked(train_rank, folder, world, job) == [0] * world
        return run

    return by_ranks


def rows_of(run):
    return history.read(run).drop(columns=["seconds", "data_wait"])


def train_rank(folder, rank, world, job):
    torch.set_num_threads(1)
    place = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world)
    train_here(job, backend_of(rank, world, job.experiment.cluster.strategy))


def test_a_trial_of_ranks_that_share_a_model_is_measured_as_any_other(trained):
    """Under a task, by a forward pass of the first rank alone."""
    changes = {"train.max_steps": 5, "train.precision": "bf16", "init_from": "null"}

    def rank(experiment, family):
        return TrialRanking(rank_of(experiment, family), None, 0)

    found = []
    for strategy in ("ddp", "fsdp"):
        run = trained("seqset_finetune", strategy, 2, changes, rank)
        measures = history.read(run, file=MEASURES)
        assert {"score", "latent/active_units"} <= set(measures)
        found.append((rows_of(run), measures))
    for theirs, ours in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_members_of_a_run_are_trained_alike_by_one_rank_and_by_two_that_share_them_or_not(trained):
    # What is left out is drawn by each rank for itself; a clip that is met is each member's.
    changes = {"task.dropout": 0, "task.hidden_dropout": 0, "task.statistics.dropout": 0}
    changes |= {"train.seeds": 2, "train.clip": 0.05, "train.report_steps": 1, "train.max_steps": 4}
    ways = ((1, "ddp"), (2, "ddp"), (2, "fsdp"))
    one, *others = [
        rows_of(trained("mortality", strategy, world, changes)) for world, strategy in ways
    ]
    assert one["grad_norm"].min() > 0.05
    for other in others:
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5)


ERRORS = {
    "input": InputError("s3://hospital/runs: no access"),
    "store": StoreUnavailableError("s3://hospital/runs: no store answers"),
}


def receive(folder, rank, world, job, kind):
    """Receive a job as one of several ranks; rank 1 has no access to it, or another state."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )

    def from_worker(_config):
        if kind in ERRORS and rank == 1:
            raise ERRORS[kind]
        if kind == "state" and rank == 1:
            save_state(job.run, nn.Linear(1, 1), {}, Progress(3))
        return replace(job, run=job.run if rank == 1 else job.run.with_name("other"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "from_worker", from_worker)
        backend = backend_of(rank, world, "ddp")
        if kind == "state":
            with pytest.raises(RuntimeError, match="copies of different states"):
                worker.received({}, backend)
            return
        patch.setattr(worker, "RayBackend", lambda _strategy: backend)
        found = worker.train_worker({"job": job})
        assert found == {"kind": type(ERRORS[kind]).__name__, "error": str(ERRORS[kind])}


@pytest.mark.parametrize("kind", ["input", "store", "state"])
def test_what_one_rank_cannot_receive_ends_all_once_by_its_own_line(
    kind, forked, tiny_config, tmp_path, monkeypatch
):
    """It is returned, so that Ray does not try again, by the rank that is heard too."""
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    run = local("s3://hospital/runs/run")
    run.mkdir(parents=True)
    job = Job(tiny_config("set_vae"), Prepared(None, {}), run, run / "progress", None)
    assert forked(receive, tmp_path, 2, job, kind) == [0, 0]


@pytest.mark.parametrize("error", [InputError("0.arrow: no such file"), RunError("held")])
@pytest.mark.parametrize("world", [1, 2])
def test_what_one_rank_meets_alone_is_raised_where_others_wait_for_it(
    world, error, tiny_config, tmp_path, monkeypatch
):
    """Ray would wait for them for as long as a sum may take if it were returned."""

    def fails(_job, _backend):
        raise error

    job = Job(tiny_config("set_vae"), Prepared(None, {}), tmp_path, tmp_path / "progress", None)
    monkeypatch.setattr(worker, "RayBackend", lambda _strategy: backend_of(1, world, "ddp"))
    monkeypatch.setattr(worker, "received", lambda _config, _backend: job)
    monkeypatch.setattr(worker, "train_here", fails)
    if world == 1:
        found = worker.train_worker({"job": job})
        assert found == {"kind": type(error).__name__, "error": str(error)}
        return
    with pytest.raises(type(error)) as caught:
        worker.train_worker({"job": job})
    assert caught.value is error
