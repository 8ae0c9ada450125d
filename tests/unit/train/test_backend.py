import pytest
import torch
from torch import nn

from ehr_ray.errors import InputError, RunError
from ehr_ray.train.backend import LocalBackend, together


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
