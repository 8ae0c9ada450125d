import torch
from torch import nn

from ehr_ray.train.backend import LocalBackend


def test_the_local_backend_is_one_rank_that_changes_nothing():
    backend, model, values = LocalBackend(), nn.Linear(2, 2), torch.tensor([1.0, 2.0])
    assert (backend.rank, backend.world, backend.device.type) == (0, 1, "cpu")
    assert backend.wrap(model) is model
    assert torch.equal(backend.all_sum(values), values)
    assert backend.report({"a": 1.0}) is None
