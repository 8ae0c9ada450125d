"""Start the trials of a search on Ray Tune."""

import math
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import ray.tune
from ray.tune.search import BasicVariantGenerator

from ehr_ray.config.cluster import ClusterConfig
from ehr_ray.config.search import Domain, Sample
from ehr_ray.errors import ResourcesUnavailableError
from ehr_ray.experiment import Experiment
from ehr_ray.runtime.screen import Screen
from ehr_ray.runtime.tuning.plan import limited
from ehr_ray.runtime.tuning.proposals import Closing, Samples
from ehr_ray.runtime.tuning.schedulers import ray_domains, scheduler
from ehr_ray.runtime.tuning.trial import run_trial, trial_dir, write_trial
from ehr_ray.storage.paths import local

NESTED: Final[Mapping[str, float]] = {"node:__internal_head__": 0.001}
"""What a trial reserves that trains by Ray Train: it only waits for its workers, so no CPU."""


def fit_trials(
    experiment: Experiment,
    space: Mapping[str, Domain],
    search: Any,
    proposals: Any,
    known: dict[int, Sample],
    at_once: int,
    data: Any,
    screen: Screen,
) -> None:
    """Run the trials of a search until they end."""
    total, root = max(proposals.total, len(known)), local(search.root)
    cluster, plan = experiment.cluster, experiment.tune
    grace = plan.grace_steps or max(1, _steps(experiment, data) // 8)
    param_space: dict[str, Any] = {}
    if search.exploits:
        # Ray's PBT takes no searcher: the first samples are listed, and numbers are trial ids'.
        points = _points(root, proposals, known, total)
        param_space = {"trial": ray.tune.choice(range(total))} | ray_domains(space)
        # All are begun and take turns, or a trial could take over those beside it alone.
        limit = at_once if limited(plan) else 0
        chooser: Any = BasicVariantGenerator(points_to_evaluate=points, max_concurrent=limit)
        numbers = lambda t: int(str(t.trial_id).rsplit("_", 1)[-1])  # noqa: E731
    else:
        chooser = Samples(root, proposals, known)
        numbers = lambda t: int(t.config["trial"])  # noqa: E731
    closing = Closing(root, numbers, total, screen.say)
    # Ray Tune would end a search on Ctrl-C as if all were done; here it is left as it is.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    scratch = root / ".ray"
    shutil.rmtree(scratch, ignore_errors=True)
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(run_trial, search=search),
        ray.tune.PlacementGroupFactory([_reserved(cluster, nested=search.nested)]),
    )
    try:
        ray.tune.Tuner(
            trainable,
            param_space=param_space,
            tune_config=ray.tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=total,
                max_concurrent_trials=None if search.exploits else at_once,
                search_alg=chooser,
                scheduler=scheduler(experiment, space, grace),
                reuse_actors=not search.nested,
            ),
            run_config=ray.tune.RunConfig(
                name=uuid.uuid4().hex,
                storage_path=str(scratch),
                verbose=0,
                failure_config=ray.tune.FailureConfig(max_failures=cluster.max_failures),
                callbacks=[closing],
            ),
        ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if closing.lacks:
        raise ResourcesUnavailableError(f"{root.name}: trials could not go on: {closing.lacks}")


def _reserved(cluster: ClusterConfig, *, nested: bool) -> dict[str, float]:
    """Return the resources that a trial reserves while it runs."""
    if nested:
        return dict(NESTED)
    gpus = {"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {}
    return {"CPU": cluster.cpus_per_worker, **gpus}


def _points(
    root: Path, proposals: Any, known: dict[int, Sample], total: int
) -> list[dict[str, Any]]:
    """Return the first sample of each trial; those that were not `known` are drawn and kept."""
    for number in range(total):
        if number not in known:
            known[number] = proposals.sample(number)
            write_trial(trial_dir(root, number), number, known[number])
    return [{"trial": n, **known[n]} for n in range(total)]


def _steps(experiment: Experiment, data: Any) -> int:
    """Return the optimizer steps of a run of the search."""
    rows = len(next(iter(data.parts.values())).here().own.store("train"))
    plan = experiment.train
    total = plan.max_epochs * math.ceil(rows / experiment.data.batch_size)
    return min(total, plan.max_steps or total)
