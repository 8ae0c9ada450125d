"""Who stops or replaces trials: Ray's schedulers, which judge no report a second time.

A trial that goes on after a kill, a loss or a pause reports again what it had reported. Ray takes
that for news: successive halving would stop a trial at a rung it had passed, since others have
reached the rung meanwhile, and the median would count a report twice. Here such reports, marked
`AGAIN`, are remembered and stop nobody, so that after a resume a scheduler knows what it knew.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import ray.tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from ehr_ray.config.search import Choice, Domain, LogUniform
from ehr_ray.experiment import Experiment

AGAIN: Final = "again"
"""Key of a report that its trial had made, and passed, before."""
LACKS: Final = "lacks"
"""Key of a report that is none: what its trial cannot go on without, so that it ends for now."""
CONTINUE: Final = TrialScheduler.CONTINUE


class Halving(AsyncHyperBandScheduler):
    """Asynchronous successive halving (Li et al. 2020)."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Put the report on its rung; decide on the trial if it is a new one."""
        if result.get(LACKS):
            return CONTINUE
        decision = str(super().on_trial_result(tune_controller, trial, result))
        return CONTINUE if result.get(AGAIN) else decision


class Median(MedianStoppingRule):
    """The median stopping rule (Golovin et al. 2017), which counts a report once."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Note the report; decide on the trial if it is a new one."""
        known = self._results[trial]
        if result.get(LACKS) or (known and result[self._time_attr] <= known[-1][self._time_attr]):
            return CONTINUE
        if result.get(AGAIN):
            known.append(result)
            return CONTINUE
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Do nothing: the last report was counted when it came."""


class Population(PopulationBasedTraining):
    """Population-based training (Jaderberg et al. 2017)."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Let bad trials take over good ones by new reports alone."""
        if result.get(AGAIN) or result.get(LACKS):
            return CONTINUE
        return str(super().on_trial_result(tune_controller, trial, result))


def scheduler(experiment: Experiment, space: Mapping[str, Domain], grace: int) -> Any:
    """Return Ray's scheduler; `grace` is in optimizer steps."""
    plan = experiment.tune
    if plan.scheduler == "asha":
        return Halving(
            time_attr="step",
            grace_period=grace,
            reduction_factor=plan.reduction_factor,
            max_t=10**12,  # a trial's own plan ends it
        )
    if plan.scheduler == "median":
        # Ray would pause a trial that has too few others to be compared with, and start it anew.
        return Median(time_attr="step", grace_period=grace, min_time_slice=math.inf)
    if plan.scheduler == "pbt":
        return Population(
            time_attr="step",
            perturbation_interval=grace,
            burn_in_period=grace,
            hyperparam_mutations=_mutations(space),
            custom_explore_fn=lambda config: _within(space, config),
        )
    return FIFOScheduler()


def _mutations(space: Mapping[str, Domain]) -> dict[str, Any]:
    """Return the domains as PBT takes them: of a list it goes on to a neighbour, or to any other.

    Given `ray.tune.choice` it would multiply the value, out of the list.
    """
    listed = {path: [*d.values] for path, d in space.items() if isinstance(d, Choice)}
    return ray_domains(space) | listed


def _within(space: Mapping[str, Domain], config: dict[str, Any]) -> dict[str, Any]:
    """Return a perturbed config with every value back in its domain."""
    kept = dict(config)
    for path, domain in space.items():
        if not isinstance(domain, Choice):
            kept[path] = min(max(float(config[path]), domain.low), domain.high)
    return kept


def ray_domains(space: Mapping[str, Domain]) -> dict[str, Any]:
    """Return the domains as Ray Tune writes them."""
    return {
        path: ray.tune.choice(list(domain.values))
        if isinstance(domain, Choice)
        else (ray.tune.loguniform if isinstance(domain, LogUniform) else ray.tune.uniform)(
            domain.low, domain.high
        )
        for path, domain in space.items()
    }
