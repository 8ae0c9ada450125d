"""What a search may do: how many trials run at a time, valid domains, what trials can hand over."""

import contextlib
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ehr_ray.config.idle import idle_paths, is_idle
from ehr_ray.config.search import KINDS, Domain, TuneConfig, ends
from ehr_ray.config.yaml_files import override
from ehr_ray.errors import ConfigError
from ehr_ray.experiment import Experiment, dump, parse
from ehr_ray.family import AnyFamily
from ehr_ray.registry import get_schema
from ehr_ray.runtime.tuning.trial_data import Datasets, data_paths


def concurrency(
    experiment: Experiment, trials: int, have: Mapping[str, float] | None = None
) -> int:
    """Return how many trials run at a time; ConfigError with the arithmetic where none can.

    `have` are the cluster's CPUs and GPUs, by default those of the Ray this process is joined to.
    """
    if have is None:
        import ray

        have = ray.cluster_resources()
    cluster, plan = experiment.cluster, experiment.tune
    workers = max(1, cluster.most_workers)
    joined = bool(cluster.address or os.environ.get("RAY_ADDRESS"))
    most = float(min(trials, plan.concurrent or trials))
    for name, each, spare in (
        ("CPU", cluster.cpus_per_worker, plan.spare_cpus),
        ("GPU", cluster.gpus_per_worker, 0.0),
    ):
        if not each:
            continue
        there = have.get(name, 0.0) - spare
        fits = there // (workers * each - 1e-9) if math.isfinite(there) else there
        if fits < 1 and not joined:
            key = f"cluster.{name.lower()}s_per_worker"
            kept = f" - tune.spare_cpus={spare:g}" if spare else ""
            raise ConfigError(
                f"a trial needs cluster.num_workers={workers} x {key}={each:g} = "
                f"{workers * each:g} {name}s, but there are {have.get(name, 0.0):g}{kept}"
                + (f" = {there:g}" if spare else "")
                + f"; ask for fewer workers or a smaller {key}"
            )
        if fits >= 1:
            most = min(most, fits)
    return max(1, int(most))


def limited(plan: TuneConfig) -> bool:
    """Whether fewer trials run at a time than the cluster can hold, so that none takes turns."""
    return bool(plan.concurrent or plan.spare_cpus)


def default_space(experiment: Experiment, family: AnyFamily) -> dict[str, Domain]:
    """Return the family's search space without what changes nothing under this config."""
    inactive_paths = family.training.inactive_paths
    more = inactive_paths(experiment.model, experiment.task is not None) if inactive_paths else ()
    idle = idle_paths(experiment, family.schema) | dict.fromkeys(more, "")
    return {p: domain for p, domain in family.search_space.items() if not is_idle(p, idle)}


def check_space(experiment: Experiment, space: Mapping[str, Domain]) -> None:
    """Raise ConfigError naming the first end of a domain that makes no valid experiment."""
    plain = dump(replace(experiment, search={}))
    _check_read(plain, space)
    for path, domain in space.items():
        for value in ends(domain):
            try:
                parse(override(plain, {path: value}))
            except ConfigError as error:
                parent, _, kind = path.rpartition(".")
                if "is a value here, not a section" in str(error):
                    raise ConfigError(
                        f"search.{parent}: {kind} is no kind of domain; known: {', '.join(KINDS)}"
                    ) from None
                raise ConfigError(
                    f"search.{path}: {value} makes no valid config: {error}"
                ) from None


def _check_read(plain: Mapping[str, Any], space: Mapping[str, Domain]) -> None:
    """Raise ConfigError for a path that changes nothing, whatever one other path is set to."""
    changes = [{path: value} for path, domain in space.items() for value in ends(domain)]
    idle: list[Mapping[str, str]] = []
    for change in ({}, *changes):
        with contextlib.suppress(ConfigError):  # what makes no config is named later
            trial = parse(override(plain, change))
            idle.append(idle_paths(trial, get_schema(trial.family)))
    for path in space:
        if idle and all(is_idle(path, one) for one in idle):
            why = next(w for name, w in idle[0].items() if is_idle(path, {name: w}))
            raise ConfigError(f"search.{path}: does nothing with {why}; drop it, or change that")


def check_exploits(
    experiment: Experiment, family: AnyFamily, space: Mapping[str, Domain], data: Datasets
) -> None:
    """Refuse PBT over what decides shapes or rows: weights of another trial would not fit."""
    if rows := data_paths(experiment, space):
        raise ConfigError(
            f"tune.scheduler=pbt: search.{rows[0]} changes the data of a trial, so none can go on "
            "from another one's weights; search it by another scheduler, or set it to null"
        )
    part = next(iter(data.parts.values()))

    def shapes(path: str, value: Any) -> dict[str, Any]:
        model = family.build(parse(override(part.base, {path: value})).model, part.own.vocabulary)
        return {name: tensor.shape for name, tensor in model.state_dict().items()}

    for path, domain in space.items():
        if path.startswith("model.") or path == "init_from":
            first, *others = (shapes(path, value) for value in ends(domain))
            if any(other != first for other in others):
                raise ConfigError(
                    f"tune.scheduler=pbt: search.{path} changes the shape of weights, which trials "
                    "take over from each other; search it by another scheduler, or set it to null"
                )
