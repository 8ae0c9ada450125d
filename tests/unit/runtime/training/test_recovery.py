import pytest
import ray.train
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from torch import nn

from ehr_ray.config.cluster import ClusterConfig
from ehr_ray.errors import (
    DamagedRowsError,
    InputError,
    LeaseLostError,
    ResourcesUnavailableError,
    RowsUnavailableError,
    RunError,
    StoreUnavailableError,
)
from ehr_ray.runtime.training.recovery import (
    START_SECONDS,
    Patience,
    failure_config,
    failure_of,
    lacks_resources,
)
from ehr_ray.storage.paths import STAGING
from ehr_ray.train.checkpoint import Progress, save_state


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_losses_count_only_in_a_row(scheme, tmp_path, monkeypatch):
    """A state between them, where the run is kept, begins a new row."""
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    patience = Patience(ClusterConfig(max_failures=2), f"{scheme}{tmp_path}/run")
    for step in range(1, 20):
        patience.after_exception(None, {1: RuntimeError("gone")})
        patience.after_exception(None, {1: RuntimeError("gone")})
        save_state(tmp_path / "run", nn.Linear(1, 1), {}, Progress(step))
    patience.after_exception(None, {1: RuntimeError("gone")})
    patience.after_exception(None, {1: RuntimeError("gone")})
    with pytest.raises(RunError, match=r"^run: worker 1 failed: gone; lost 3 .*max_failures=2"):
        patience.after_exception(None, {1: RuntimeError("gone")})


def test_without_patience_the_first_loss_ends_the_run_and_says_why(tmp_path):
    with pytest.raises(RunError, match=r"^small: worker 0 failed: gone$"):
        Patience(ClusterConfig(max_failures=0), f"{tmp_path}/small").after_exception(
            None, {0: RuntimeError("one\ngone")}
        )


@pytest.mark.parametrize(
    "error",
    [
        InputError("0.arrow: no such file"),
        LeaseLostError("run"),
        RunError("run: the gradient of step 3 is not finite; lower train.lr"),  # named by itself
    ],
)
def test_what_a_worker_says_is_wrong_ends_the_run_at_once_by_its_own_line(error, tmp_path):
    """The other workers wait for it; it is not tried again, however patient the run is.

    It is the line that one worker alone would end by, with no name before it.
    """
    patience = Patience(ClusterConfig(max_failures=3), str(tmp_path))
    with pytest.raises(type(error)) as caught:
        patience.after_exception(None, {1: error, 2: RuntimeError("Connection closed by peer")})
    assert caught.value is error
    assert failure_of(ray.train.ControllerError(error), ClusterConfig(), "run") is error
    patience.after_exception(None, {0: DamagedRowsError("another worker may read them")})


def test_a_wait_for_room_is_as_long_as_the_config_says(monkeypatch):
    monkeypatch.setenv(START_SECONDS, "30")
    limits = [
        failure_config(ClusterConfig(wait_seconds=seconds)).controller_failure_limit
        for seconds in (10, 30, 600)
    ]
    assert limits == [0, 0, 19]


def test_a_run_without_room_says_what_it_waited_for():
    error = ray.train.ControllerError(WorkerGroupStartupTimeoutError(4))
    cluster = ClusterConfig(num_workers=4, cpus_per_worker=2, gpus_per_worker=1)
    assert lacks_resources(error)
    told = failure_of(error, cluster, "run")
    assert isinstance(told, ResourcesUnavailableError)
    assert "run: the cluster had no resources for 4 workers of 2 CPUs and 1 GPUs" in str(told)
    assert not lacks_resources(ray.train.ControllerError(RunError("lost")))
    other = failure_of(ray.train.ControllerError(ValueError("one\nlast")), cluster, "run")
    assert str(other) == "run: last"


@pytest.mark.parametrize(
    "text",
    [
        "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to "
        "complete",
        "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=8) ran for 3001 "
        "milliseconds before timing out.",
    ],
)
def test_a_rank_that_waited_too_long_in_a_sum_names_the_limit(text, tmp_path):
    """The others' own errors tell of the connection that it closed."""
    failures = {0: RuntimeError("Connection closed by peer"), 1: RuntimeError(text)}
    cluster = ClusterConfig(num_workers=2, timeout_seconds=3, max_failures=0)
    with pytest.raises(RunError, match=r": worker 1 waited .* cluster.timeout_seconds=3: one of"):
        Patience(cluster, str(tmp_path)).after_exception(None, failures)


def test_a_run_whose_store_gave_a_worker_no_rows_is_known_for_that(tmp_path):
    """A trial of a search has then not failed."""
    away = RowsUnavailableError("s3://b/0.arrow: no answer")
    patience = Patience(ClusterConfig(max_failures=0), str(tmp_path))
    with pytest.raises(StoreUnavailableError, match=r"worker 1 failed: .*no answer"):
        patience.after_exception(None, {1: away})
    with pytest.raises(RunError) as other:
        patience.after_exception(None, {1: RuntimeError("lost")})
    assert other.type is RunError
    failures = {0: RuntimeError("gone"), 1: away}
    for told, kind in (
        (ray.train.WorkerGroupError("lost", failures), StoreUnavailableError),
        (ray.train.WorkerGroupError("lost", {0: RuntimeError("gone")}), RunError),
        (ray.train.ControllerError(StoreUnavailableError("x")), StoreUnavailableError),
        (WorkerGroupStartupTimeoutError(2), ResourcesUnavailableError),
    ):
        assert type(failure_of(told, ClusterConfig(), "run")) is kind
