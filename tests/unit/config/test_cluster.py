from types import SimpleNamespace

import pytest

from ehr_ray.config.cluster import ClusterConfig, parse_workers
from ehr_ray.errors import ConfigError
from ehr_ray.experiment import dump, parse

BARE = {"family": "set_vae", "name": "x", "data": {"cohort": "c"}}


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 0), (4, 4), ("2", 2), ([1, 4], (1, 4)), ((2, 2), (2, 2))]
)
def test_a_number_or_a_range_is_accepted(value, expected):
    assert parse_workers(value) == expected


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (-1, "must not be negative"),
        (True, "whole number"),
        (1.5, "whole number"),
        ("many", "whole number"),
        ([1, 2, 3], r"\[least, most\]"),
        ([0, 4], "a range starts at 1"),
        ([4, 1], "first number .* is above the second"),
        (None, "whole number"),
    ],
)
def test_anything_else_is_refused_in_one_line_with_its_path(value, why):
    with pytest.raises(ConfigError, match=f"^cluster.num_workers: .*{why}") as error:
        parse({**BARE, "cluster": {"num_workers": value}})
    assert ";" not in str(error.value).replace("; 0 alone", "")


def test_a_range_survives_the_file_of_a_run():
    experiment = parse({**BARE, "cluster": {"num_workers": [1, 4]}})
    assert experiment.cluster.num_workers == (1, 4)
    assert dump(experiment)["cluster"]["num_workers"] == [1, 4]
    assert parse(dump(experiment)) == experiment


def test_least_and_most_of_a_number_are_itself():
    ends = [(c.least_workers, c.most_workers) for c in map(_cluster, (0, 3, (1, 4)))]
    assert ends == [(0, 0), (3, 3), (1, 4)]


def _cluster(workers):
    return ClusterConfig(num_workers=workers)


@pytest.mark.parametrize(
    ("workers", "gpus", "backend"),
    [
        (4, 0, "gloo"),
        (4, 1, "nccl"),
        (4, 2, "nccl"),
        (2, 0.5, "gloo"),
        ((1, 2), 0.5, "gloo"),
        (1, 0.5, "nccl"),
    ],
)
def test_workers_that_may_share_a_gpu_sum_by_gloo_since_nccl_refuses_two_on_one(
    workers, gpus, backend
):
    assert ClusterConfig(num_workers=workers, gpus_per_worker=gpus).backend == backend


def test_the_workers_of_a_run_sum_by_what_the_config_says(tmp_path, monkeypatch):
    launch = pytest.importorskip("ehr_ray.runtime.training.launch")
    told = []
    monkeypatch.setattr(
        "ehr_ray.runtime.training.trainer.Trainer",
        lambda *_args, torch_config, **_options: told.append(torch_config.backend),
    )
    monkeypatch.setattr("ehr_ray.runtime.training.worker.to_worker", lambda _job: {})
    for gpus in (0, 0.5, 1):
        cluster = {"num_workers": 2, "gpus_per_worker": gpus}
        job = SimpleNamespace(experiment=parse({**BARE, "cluster": cluster}), run=tmp_path)
        launch._trainer(job, 0, str(tmp_path), [])
    assert told == ["gloo", "gloo", "nccl"]


def test_workers_that_share_a_gpu_do_not_divide_a_model():
    shared = {"num_workers": 2, "gpus_per_worker": 0.5, "strategy": "fsdp"}
    with pytest.raises(ConfigError, match=r"^cluster\.gpus_per_worker=0\.5: workers that share"):
        parse({**BARE, "cluster": shared})
    for other in ({"gpus_per_worker": 1}, {"gpus_per_worker": 0}, {"strategy": "ddp"}):
        parse({**BARE, "cluster": shared | other})
