"""Run the workers of an experiment, on Ray Train or in this process."""

import math
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ehr_ray.errors import RunError, error_of_kind
from ehr_ray.runtime.training.sending import saved_step
from ehr_ray.storage.paths import canonical


def fit_here(job: Any) -> None:
    """Train in this process."""
    import torch

    from ehr_ray.runtime.training.worker import train_here
    from ehr_ray.train.backend import LocalBackend, local_device

    torch.set_num_threads(max(1, int(job.experiment.cluster.cpus_per_worker)))
    train_here(job, LocalBackend(local_device(job.experiment.cluster.gpus_per_worker)))


def fit(job: Any, callbacks: Sequence[Any] = ()) -> None:
    """Run the workers until they end, through losses as long as the run goes on between them."""
    import ray.exceptions
    import ray.train

    from ehr_ray.runtime.training.recovery import (
        failure_of,
        lacks_resources,
        last_line,
        too_many,
    )
    from ehr_ray.runtime.training.worker import check_share

    cluster = job.experiment.cluster
    if cluster.least_workers < cluster.most_workers:
        check_share(job, cluster.most_workers)
    lost = 0
    while True:
        before = saved_step(job.run)
        # What is durable lives in the run directory; Ray's own bookkeeping is thrown away.
        with tempfile.TemporaryDirectory(prefix="ehr_ray-") as scratch:
            trainer = _trainer(job, before, scratch, callbacks)
            try:
                result = trainer.fit()
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                # Ray's controller itself is lost, with the workers it owns.
                # `Patience` went with it, so losses in a row are counted here as there.
                lost = 1 if saved_step(job.run) > before else lost + 1
                if lost > cluster.max_failures:
                    text = f"{last_line(error)}{too_many(lost, cluster.max_failures)}"
                    raise RunError(f"{job.run.name}: {text}") from error
                continue
            except ray.train.TrainingFailedError as error:
                if lacks_resources(error) and saved_step(job.run) > before:
                    continue  # it had resources for a while, and waits again
                raise failure_of(error, cluster, job.run.name) from error
            _raise_returned(result.return_value)
            return


def _trainer(job: Any, before: int, scratch: str, callbacks: Sequence[Any]) -> Any:
    """Return what runs the workers of a job whose saved step is `before`, as its cluster says."""
    from ray.train import LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from ehr_ray.runtime.training.recovery import Patience, failure_config
    from ehr_ray.runtime.training.trainer import Trainer
    from ehr_ray.runtime.training.worker import to_worker, train_worker

    cluster = job.experiment.cluster
    least, most = cluster.least_workers, cluster.most_workers
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    return Trainer(
        train_worker,
        train_loop_config=to_worker(job),
        torch_config=TorchConfig(
            backend=cluster.backend, timeout_s=math.ceil(cluster.timeout_seconds)
        ),
        scaling_config=ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=bool(cluster.gpus_per_worker),
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=cluster.resize_seconds,
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=scratch,
            failure_config=failure_config(cluster),
            callbacks=[Patience(cluster, canonical(job.run), before), *callbacks],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _raise_returned(value: Mapping[str, str] | None) -> None:
    if value and value["error"]:
        raise error_of_kind(value["kind"], value["error"])
