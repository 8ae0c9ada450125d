import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ehr_ray.errors import InputError, RunError
from ehr_ray.train.backend import LocalBackend, local_device, sent_once, together


def test_the_local_backend_is_one_rank_that_changes_nothing():
    backend, model, values = LocalBackend(), nn.Linear(2, 2), torch.tensor([1.0, 2.0])
    assert (backend.rank, backend.world, backend.device.type) == (0, 1, "cpu")
    assert backend.wrap(model) is model
    assert torch.equal(backend.all_sum(values), values)
    assert backend.report({"a": 1.0}) is None


class Other(LocalBackend):
    """A rank beside one that has failed."""

    def all_sum(self, values):
        return values + 1


def test_an_error_of_one_rank_ends_them_all_and_keeps_its_own_words():
    with together(LocalBackend()):
        pass
    for backend in (LocalBackend(), Other()):
        with pytest.raises(InputError, match="the disk"), together(backend):
            raise InputError("the disk")
    with pytest.raises(RunError, match="another worker could not go on"), together(Other()):
        pass


def wrap_and_step(folder, rank, world):
    """Begin with other buffers on each rank, and fill them again before a step."""
    place = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world)
    model = nn.Linear(2, 1)
    model.register_buffer("table", torch.full((4,), 1.0 + rank))
    wrapped = sent_once(DistributedDataParallel(model))
    begun = model.table.clone()
    model.table.fill_(rank)
    wrapped(torch.ones(1, 2)).sum().backward()
    torch.save({"begun": begun, "after": model.table}, folder / f"{rank}.pt")


def test_buffers_are_sent_when_a_model_is_wrapped_and_not_before_each_step(forked, tmp_path):
    assert forked(wrap_and_step, tmp_path, 2) == [0, 0]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["begun"].tolist() == [1.0] * 4
        assert found["after"].tolist() == [float(rank)] * 4


def test_a_training_here_uses_the_gpu_it_asks_for_or_says_there_is_none(monkeypatch):
    assert local_device(0) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"cluster\.gpus_per_worker=0\.5: torch finds no GPU"):
        local_device(0.5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert local_device(1) == "cuda"
