"""A stream on Ray Data: the weights of rows in files, also where a worker is killed."""

import pytest

from ehr_ray.commands.benchmark.faults import same_weights, train_noted
from ehr_ray.commands.train.command import train
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.prepared import prepared
from ehr_ray.train import history

pytestmark = pytest.mark.ray


@pytest.fixture
def experiment(cluster, tiny):
    """Make one with windows smaller than the cohort: a pipeline reads several in turn."""

    def make(mode, world, **changes):
        changes |= {"data__mode": mode, "data__shuffle_patients": 30, "train__max_epochs": 2}
        return tiny(f"{mode}-{world}", cluster__num_workers=world, **changes)

    return make


def assert_same(made, kept):
    assert same_weights(made, kept)
    rows = [history.read(run).drop(columns=["seconds", "data_wait"]) for run in (made, kept)]
    assert rows[0].equals(rows[1])


def test_a_stream_ends_with_the_weights_of_files(experiment):
    assert_same(train(experiment("stream", 1)).run, train(experiment("cache", 0)).run)


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_a_stream_changes_no_weight(experiment):
    """That what makes the rows begins anew where Ray Train's new workers go on.

    `test_training.py` kills a worker that reads files; `unit/runtime/data/test_stream.py` stops and
    resumes a stream.
    """
    changes = {"train__report_steps": 4, "cluster__max_failures": 1}
    kept = train(experiment("cache", 2, **changes)).run
    streamed = experiment("stream", 2, **changes)
    with prepared(streamed, get_family("set_vae"), on_ray=True) as data:
        assert data.stream is not None
        made = streamed.directory
        kills = train_noted(
            streamed, data, made, lambda n, start: n == 0 and max(start.steps, default=0) >= 6
        )
    assert kills.ranks == [0]
    assert_same(made, kept)
