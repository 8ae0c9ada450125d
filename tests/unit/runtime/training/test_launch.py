"""What the workers of a job are started with; that they run is shown in tests/ray."""

from types import SimpleNamespace

import pytest

from ehr_ray.runtime.data.prepared import Prepared
from ehr_ray.runtime.training.launch import fit
from ehr_ray.runtime.training.worker import Job


@pytest.fixture
def started(tiny_experiment, monkeypatch, tmp_path):
    """started(changes): what Ray Train is given by an experiment with changes."""

    def start(**changes):
        given = {}

        class Trainer:
            def __init__(self, *_function, **options):
                given.update(options)

            def fit(self):
                return SimpleNamespace(return_value=None)

        monkeypatch.setattr("ehr_ray.runtime.training.trainer.Trainer", Trainer)
        experiment = tiny_experiment(changes={f"cluster.{k}": v for k, v in changes.items()})
        paths = tmp_path / "run", tmp_path / "progress"
        fit(Job(experiment, Prepared(None, {}), *paths, tracked=None))
        return given

    return start


def test_sums_of_workers_end_after_the_time_that_the_config_states(started):
    given = started(num_workers=2, timeout_seconds=12.5)
    assert given["torch_config"].timeout_s == 13  # Ray Train takes whole seconds
    assert given["torch_config"].backend == "gloo"


@pytest.mark.parametrize(("gpus", "used"), [(0, False), (1, True)])
def test_a_worker_is_given_the_resources_that_the_config_states(started, gpus, used):
    scaling = started(num_workers=2, cpus_per_worker=3, gpus_per_worker=gpus)["scaling_config"]
    assert scaling.num_workers == 2
    assert scaling.use_gpu == used
    assert scaling.resources_per_worker == {"CPU": 3, **({"GPU": 1} if gpus else {})}
