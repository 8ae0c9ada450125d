"""Which report is the best so far, and whether a run has waited for a better one long enough."""

import math
from collections.abc import Mapping

from ehr_ray.config.schedules import Cycle
from ehr_ray.config.sections import TrainConfig
from ehr_ray.errors import ConfigError
from ehr_ray.experiment import Experiment
from ehr_ray.family import AnyFamily, Select
from ehr_ray.train.checkpoint import Progress

Metrics = dict[str, float]


def update_best(progress: Progress, family: AnyFamily, row: Metrics, plan: TrainConfig) -> bool:
    """Record a report in `progress`; return whether it is the best so far."""
    value = row.get(family.select.metric)
    better = value is None or family.select.better(value, progress.best)
    if better:
        progress.best = value
        progress.best_step = progress.step
        progress.reports_since_best = 0
    else:
        progress.reports_since_best += 1
        progress.reductions += progress.reports_since_best % (plan.plateau_patience + 1) == 0
    patience = plan.patience
    progress.finished = patience is not None and progress.reports_since_best >= patience
    return better


def update_others(progress: Progress, others: Mapping[str, Select], row: Metrics) -> list[str]:
    """Record the best of each of `extra_checkpoints`; return those this report is the best of."""
    better = []
    for name, select in others.items():
        value = row.get(select.metric)
        if value is not None and select.better(value, progress.bests.get(name)):
            progress.bests[name] = value
            better.append(name)
    return better


def cycles_without_better(experiment: Experiment, progress: Progress, per_epoch: int) -> bool:
    """Whether `train.patience_cycles` whole cycles have passed since that of the best report.

    Cycles are those of the longest cyclical schedule; a report at a cycle's last step belongs
    to it. Raises ConfigError without such a schedule.
    """
    patience = experiment.train.patience_cycles
    if patience is None:
        return False
    periods = [s.period(per_epoch) for s in experiment.schedules.values() if isinstance(s, Cycle)]
    if not periods:
        raise ConfigError("train.patience_cycles: no schedule is a cycle; use train.patience")
    period = max(periods)
    of_best = math.ceil(progress.best_step / period)
    return progress.step // period - of_best >= patience
