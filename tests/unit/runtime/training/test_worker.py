from types import SimpleNamespace

import pytest
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ehr_ray.registry import get_family
from ehr_ray.runtime.training.worker import RayBackend, loader_of


def test_a_model_of_several_ranks_sends_its_buffers_when_wrapped_alone(monkeypatch, tmp_path):
    """What DDP does by that is shown with two ranks in tests/unit/train/test_backend.py."""

    def prepared(model, parallel_strategy_kwargs):
        return DistributedDataParallel(model, **parallel_strategy_kwargs)

    monkeypatch.setattr("ray.train.torch.prepare_model", prepared)
    place = f"file://{tmp_path}/rendezvous"
    dist.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    try:
        wrapped = RayBackend.__new__(RayBackend).wrap(nn.Linear(2, 1))
    finally:
        dist.destroy_process_group()
    assert isinstance(wrapped, DistributedDataParallel)
    assert not wrapped.broadcast_buffers


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
