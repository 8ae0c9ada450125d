"""Options that the rest of a config makes meaningless: refused by name where a user gives one.

What says that something is off (0, false, null, an empty list) is true, and stays; so do sizes of
an architecture beside the chosen one. Ablations and trials are derived from a config, so theirs are
not looked at.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ehr_ray.config.schedules import Cycle
from ehr_ray.config.schema import AnySchema
from ehr_ray.config.search import TuneConfig
from ehr_ray.config.sections import TrainConfig
from ehr_ray.config.task import TaskConfig


def idle_paths(experiment: Any, schema: AnySchema) -> dict[str, str]:
    """Return each path that changes nothing under an experiment, and the setting that makes it so.

    A path stands for those below it, as `schedules.beta` for `schedules.beta.end`.
    """
    own = schema.idle
    found = dict(own(experiment.model, experiment.task is not None)) if own else {}
    if experiment.task is not None:
        found |= dict.fromkeys((f"schedules.{name}" for name in schema.schedules), "a task")
        found |= _task(experiment.task)
    found |= _train(experiment.train, experiment.schedules) | _tune(experiment.tune)
    if experiment.task is None:
        found |= dict.fromkeys(("evaluation.ensemble", "train.seeds"), "no task")
    elif experiment.task.kind != "binary":
        found["evaluation.ensemble"] = f"task.kind={experiment.task.kind}"
    elif not experiment.evaluation.baselines:
        found["evaluation.ensemble"] = "evaluation.baselines=false"
    if not experiment.evaluation.ensemble:
        found["evaluation.stack"] = "evaluation.ensemble=false"
    if not experiment.evaluation.hours:
        found["evaluation.hour_patients"] = "evaluation.hours=[]"
    if experiment.data.expanded is None:
        found["data.value_stats"] = "no data.expanded"
    if experiment.data.cache == "memory":
        found["data.cache_dir"] = "data.cache=memory"
    if experiment.tracking.experiment is None:
        found["tracking.uri"] = "tracking.experiment=null"
    if isinstance(experiment.cluster.num_workers, int):
        found["cluster.resize_seconds"] = "a fixed cluster.num_workers"
    if experiment.cluster.most_workers < 2:
        found["cluster.strategy"] = f"cluster.num_workers={experiment.cluster.num_workers}"
    return found


def is_idle(path: str, idle: Mapping[str, str]) -> bool:
    """Whether a path, or one above it, is among the idle ones."""
    return any(path == name or path.startswith(f"{name}.") for name in idle)


def refusals(experiment: Any, schema: AnySchema) -> Iterator[str]:
    """Yield a line for each idle path whose value is neither the default nor off."""
    for path, why in idle_paths(experiment, schema).items():
        section, _, name = path.partition(".")
        if section == "schedules":
            value, default = experiment.schedules[name], schema.schedules[name]
            shown = ""
        else:
            value = getattr(getattr(experiment, section), name)
            default = _default(type(getattr(experiment, section)), name)
            shown = f"={value}"
        if value != default and value not in (None, 0, (), {}):
            yield f"{path}{shown}: does nothing with {why}; drop it, or change that"


def _default(kind: type, name: str) -> Any:
    field = next(f for f in dataclasses.fields(kind) if f.name == name)
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _task(task: TaskConfig) -> dict[str, str]:
    found = {}
    if not task.hidden:
        found["task.hidden_dropout"] = "task.hidden=0"
    if task.loss != "focal":
        found["task.focal_gamma"] = f"task.loss={task.loss}"
    return found


def _train(train: TrainConfig, schedules: Mapping[str, Any]) -> dict[str, str]:
    found, shape = {}, f"train.lr_schedule={train.lr_schedule}"
    if train.warmup_epochs is not None:
        found["train.warmup_steps"] = "train.warmup_epochs"
    if train.keep_epochs is not None:
        found["train.keep_steps"] = "train.keep_epochs"
    if train.lr_schedule != "restarts":
        found |= dict.fromkeys(("train.restart_epochs", "train.restart_factor"), shape)
    if train.lr_schedule != "plateau":
        found["train.plateau_patience"] = shape
    if train.lr_schedule == "constant":
        found["train.min_lr_ratio"] = shape
    if not any(isinstance(schedule, Cycle) for schedule in schedules.values()):
        found["train.patience_cycles"] = "schedules none of which is a cycle"
    return found


def _tune(tune: TuneConfig) -> dict[str, str]:
    found = {}
    if tune.method != "grid":
        found["tune.grid_points"] = f"tune.method={tune.method}"
    if tune.scheduler != "asha":
        found["tune.reduction_factor"] = f"tune.scheduler={tune.scheduler}"
    if tune.scheduler == "none":
        found["tune.grace_steps"] = "tune.scheduler=none"
    if tune.rank == "metric":
        found["tune.probe_patients"] = "tune.rank=metric"
    return found
