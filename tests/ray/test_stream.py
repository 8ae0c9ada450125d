"""A stream on Ray Data: the weights of rows in files, with one worker and with two."""

import pytest
import torch
from safetensors.torch import load_file

from ehr_ray.commands.train.command import train
from ehr_ray.train import history

pytestmark = pytest.mark.ray


def test_a_stream_ends_with_the_weights_of_files_on_one_worker_and_on_two(cluster, tiny):
    """Windows smaller than the cohort, so that a pipeline reads several, one after the other."""

    def run(mode, world):
        changes = {"data__mode": mode, "data__shuffle_patients": 30, "cluster__num_workers": world}
        done = train(tiny(f"{mode}-{world}", **changes, train__max_epochs=2)).run
        rows = history.read(done).drop(columns=["seconds", "data_wait"])
        return load_file(done / "checkpoint" / "model.safetensors"), rows

    for kept, made in ((run("cache", 0), run("stream", 1)), (run("cache", 2), run("stream", 2))):
        assert all(torch.equal(kept[0][name], made[0][name]) for name in kept[0])
        assert kept[1].equals(made[1])
