import json

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ehr_ray.errors import InputError, RunError, UserError
from ehr_ray.train.backend import LocalBackend, begin_sum, local_device, sent_once, together


def test_the_local_backend_is_one_rank_that_changes_nothing():
    backend, model, values = LocalBackend(), nn.Linear(2, 2), torch.tensor([1.0, 2.0])
    assert (backend.rank, backend.world, backend.device.type) == (0, 1, "cpu")
    assert backend.wrap(model) is model
    assert torch.equal(backend.all_sum(values), values)
    assert backend.report({"a": 1.0}) is None


class Ranked(LocalBackend):
    """A rank of a gloo group."""

    def __init__(self, folder, rank, world):
        super().__init__()
        place = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world)
        self.rank, self.world = rank, world

    def all_sum(self, values):
        return begin_sum(values)()


def end_together(folder, rank, world, faults):
    backend = Ranked(folder, rank, world)
    with together(backend):
        pass
    own = faults.get(rank)
    try:
        with together(backend):
            if own is not None:
                raise own
    except (UserError, RunError) as error:
        found = [type(error).__name__, str(error), error is own]
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    "faults",
    [
        {1: InputError("rows/0.arrow: Größe 3; remove it")},
        {0: RunError("x" * 5000), 1: InputError("another")},
    ],
)
def test_an_error_of_one_rank_ends_all_by_its_line(faults, forked, tmp_path):
    """Of several that of the first one."""
    assert forked(end_together, tmp_path, 2, faults) == [0, 0]
    first, error = min(faults.items())
    for rank in range(2):
        kind, text, own = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (kind, own) == (type(error).__name__, rank == first)
        assert str(error).startswith(text)
        assert len(text) > 30


def test_alone_a_process_raises_its_own_error():
    with together(LocalBackend()):
        pass
    with pytest.raises(InputError, match="the disk"), together(LocalBackend()):
        raise InputError("the disk")


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
