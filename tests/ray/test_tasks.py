"""The runner of jobs on Ray: the same results and the same errors as in this process."""

import contextlib
import os
import signal
import tempfile

import pytest
import ray
from waiting import wait_until

from ehr_ray.errors import ConfigError, RunError
from ehr_ray.runtime.data.tasks import run_jobs, run_shards

pytestmark = pytest.mark.ray


def on_ray(function, jobs, **options):
    return run_jobs(function, jobs, on_ray=True, say=lambda _: None, verb="done", **options)


def test_results_come_in_the_order_of_the_jobs_and_each_is_told(cluster):
    said = []
    found = run_jobs(
        lambda job: job[0] * 2,
        [(n, "x" * n) for n in range(6)],
        on_ray=True,
        say=said.append,
        verb="doubled",
        num_cpus=0.5,
    )
    assert found == [0, 2, 4, 6, 8, 10]
    assert said == [f"doubled {n}/6" for n in range(1, 7)]


def test_actors_keep_what_a_job_has_loaded_for_the_next(cluster):
    class Counting:  # here, since a worker cannot import this file
        calls = 0

        def __call__(self, job):
            self.calls += 1
            return {"job": job, "calls": self.calls}

    found = on_ray(Counting(), ["a", "b", "c"], actors=(1, 1))
    assert [row["job"] for row in found] == ["a", "b", "c"]
    assert sorted(row["calls"] for row in found) == [1, 2, 3]


def test_a_process_of_a_pool_loads_once_for_all_its_shards(cluster, tmp_path):
    class Loading:
        """A function that leaves a file for each time it loads, as a model is loaded."""

        loaded = None

        def __call__(self, job):
            if self.loaded is None:
                self.loaded = tempfile.mkdtemp(dir=job["into"])
            return job["shard"]

    jobs = [{"shard": str(n), "into": str(tmp_path)} for n in range(12)]
    done = run_shards(jobs, Loading(), on_ray=True, say=str, verb="", bring=False, pool=True)
    assert done == [job["shard"] for job in jobs]
    assert 1 <= len(list(tmp_path.iterdir())) <= 4  # CPUs of the cluster


def test_a_pool_goes_on_with_new_processes_when_it_loses_one(cluster, tmp_path, capfd):
    def once(job):
        with contextlib.suppress(FileExistsError):
            (tmp_path / job).touch(exist_ok=False)
            if job == "b":
                os.kill(os.getpid(), signal.SIGKILL)
        return job

    assert on_ray(once, ["a", "b", "c", "d"], actors=(2, 2)) == ["a", "b", "c", "d"]
    assert capfd.readouterr().err == ""  # nothing of Ray's own reaches the user
    there = ray.cluster_resources()["CPU"]
    wait_until(lambda: ray.available_resources().get("CPU") == there, seconds=60)


def test_an_error_comes_back_as_its_own_kind_in_one_line(cluster):
    def refuse(job):
        raise ConfigError(f"train.lr={job}: too high")

    with pytest.raises(ConfigError, match=r"^train.lr=3: too high$"):
        on_ray(refuse, [3])
    with pytest.raises(ConfigError, match=r"^train.lr=3: too high$"):
        on_ray(refuse, [3], actors=(1, 1))


def test_an_error_nobody_foresaw_names_its_job(cluster):
    with pytest.raises(RunError, match=r"^shard x: ValueError: invalid literal for int.*'x'$"):
        on_ray(int, ["x"], label=lambda job: f"shard {job}")


@pytest.mark.slow
@pytest.mark.parametrize("actors", [None, (1, 1)])
def test_a_job_whose_process_is_killed_again_and_again_is_one_line(cluster, actors):
    """Slow since Ray tries a lost task several times."""
    with pytest.raises(RunError, match="a worker process died"):
        on_ray(lambda _: os.kill(os.getpid(), signal.SIGKILL), [0], actors=actors)
