"""Which trial comes next: those of before, then random draws, grid points or Optuna's proposals."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from ray.tune import Callback
from ray.tune.search import Searcher

from ehr_ray.config.search import (
    Choice,
    Domain,
    LogUniform,
    Sample,
    TuneConfig,
    draw,
    grid,
    shuffled,
)
from ehr_ray.errors import RunError
from ehr_ray.runtime.tracking import Tracker, find_run, untold
from ehr_ray.runtime.training.ranking import MEASURES, WORST
from ehr_ray.runtime.tuning.schedulers import LACKS
from ehr_ray.runtime.tuning.trial import (
    FINAL,
    STATUS,
    known_progress,
    read_trial,
    trial_dir,
    write_trial,
)
from ehr_ray.storage import runs
from ehr_ray.train import history

STARTUP_TRIALS: Final = 8
"""Random trials before Optuna's estimator proposes."""


def known_trials(root: Path) -> dict[int, Sample]:
    """Return the samples of the trials a search has begun, by number."""
    found = {}
    for folder in sorted((root / "trials").glob("[0-9]*")):
        record = read_trial(folder)
        if record and folder.name.isdigit():
            found[int(folder.name)] = dict(record["sample"])
    return found


class Proposals:
    """New samples by a method; what trials scored is told to it where it learns."""

    def __init__(self, space: Mapping[str, Domain], plan: TuneConfig, seed: int) -> None:
        self._space, self._seed = space, seed
        self._study: Any = None
        self._points = grid(space, plan.grid_points) if plan.method == "grid" else []
        self.total = len(self._points) or plan.trials
        if plan.method == "random" and (points := shuffled(space, seed)) is not None:
            self._points, self.total = points, min(plan.trials, len(points))
        self._asked: dict[int, Any] = {}
        if plan.method == "optuna":
            self._study = _study(seed)
            self._distributions = {path: _distribution(d) for path, d in space.items()}

    def sample(self, number: int) -> Sample:
        """Return the values of trial `number`."""
        if self._points:
            return self._points[number]
        if self._study is None:
            return draw(self._space, self._seed, number)
        self._study.sampler = _sampler(self._seed, number)
        trial = self._asked[number] = self._study.ask(self._distributions)
        return {path: _value(domain, trial.params[path]) for path, domain in self._space.items()}

    def tell(self, number: int, sample: Sample, score: float) -> None:
        """Take note of what a trial scored; higher is better."""
        if self._study is None:
            return
        import optuna

        failed = score <= WORST
        if number in self._asked:
            state = optuna.trial.TrialState.FAIL if failed else None
            self._study.tell(self._asked.pop(number), None if failed else score, state=state)
        elif not failed:
            self._add(sample, value=score)

    def begin(self, number: int, sample: Sample) -> None:
        """Take note of a trial that was asked for before, and has not ended."""
        if self._study is not None:
            import optuna

            self._add(sample, state=optuna.trial.TrialState.RUNNING)
            self._asked[number] = len(self._study.trials) - 1

    def _add(self, sample: Sample, **how: Any) -> None:
        import optuna

        params = {path: _param(self._space[path], sample[path]) for path in self._space}
        trial = optuna.trial.create_trial(params=params, distributions=self._distributions, **how)
        self._study.add_trial(trial)


class Samples(Searcher):
    """Hands trials to Ray Tune by number, and writes each down before it starts."""

    def __init__(self, root: Path, proposals: Proposals, known: Mapping[int, Sample]) -> None:
        super().__init__(metric="score", mode="max")
        self._root, self._proposals, self._known = root, proposals, dict(known)
        ended = [n for n in known if read_trial(trial_dir(root, n)).get("status") in FINAL]
        begun = [n for n in known if n not in set(ended)]
        for number in known:
            if number in begun:
                proposals.begin(number, known[number])
            else:
                proposals.tell(number, known[number], self._best(number))
        self._told = set(ended)
        # Trials that have ended come first, so that a scheduler too knows all of them early.
        new = [n for n in range(max(proposals.total, len(known))) if n not in known]
        self._order = [*ended, *begun, *new][: max(proposals.total, len(known))]
        self._live: dict[str, int] = {}

    def set_search_properties(self, *_args: Any, **_kwargs: Any) -> bool:
        """Metric and mode are known."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial's number and values, or that there are no more."""
        if not self._order:
            return str(Searcher.FINISHED)
        number = self._live[trial_id] = self._order.pop(0)
        if number not in self._known:
            self._known[number] = self._proposals.sample(number)
            write_trial(trial_dir(self._root, number), number, self._known[number])
        return {"trial": number, **self._known[number]}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Tell the method what the trial scored at best; start no more where one lacks room."""
        number = self._live.pop(trial_id)
        if result and result.get(LACKS):
            self._order.clear()
        elif number not in self._told:
            self._proposals.tell(number, self._known[number], self._best(number))

    def _best(self, number: int) -> float:
        folder = trial_dir(self._root, number)
        rows = history.read(folder, file=MEASURES)
        for flag in ("latent/collapsed", "latent/untrained"):
            if flag in rows:  # such a trial ranks last, whatever its score
                rows = rows[~(rows[flag] >= 1)]
        failed = read_trial(folder).get("status") == "failed"
        return float(rows["score"].max()) if len(rows) and not failed else WORST

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the trials' own folders say all."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: a search goes on from its trials' folders."""
        raise RunError(f"{checkpoint_path}: searches are resumed from their trials")


class Closing(Callback):
    """Writes how a trial ended, closes its MLflow run and says so."""

    def __init__(
        self, root: Path, numbers: Callable[[Any], int], total: int, say: Callable[[str], None]
    ) -> None:
        self._root, self._number, self._total, self._say = root, numbers, total, say
        self._ended: set[int] = set()
        self.lacks = ""
        """What trials could not go on without."""

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
        """Note that a trial ended by itself, or was stopped by the scheduler."""
        if lacks := (trial.last_result or {}).get(LACKS):
            self.lacks = str(lacks)
            self._say(f"trial {self._number(trial)} cannot go on: {lacks}")
            return
        self._close(self._number(trial), "")

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        """Note that a trial's process was lost more often than `cluster.max_failures`."""
        lines = str(getattr(trial, "error_file", "") and _last_line(trial.error_file))
        self._close(self._number(trial), lines or "its process was lost")

    def _close(self, number: int, error: str) -> None:
        folder = runs.fetch_run(trial_dir(self._root, number), missing_ok=True)
        record = read_trial(folder)
        before = record.get("status")
        if before not in FINAL:
            progress = known_progress(folder)
            ended = progress is not None and progress.finished
            status = "failed" if error else "finished" if ended else "stopped"
            record |= {"status": status, "error": error}
            write_trial(folder, number, record["sample"], status, error)
        self._ended.add(number)
        tracked = find_run(folder)
        if tracked is not None and tracked.run_id:
            Tracker(tracked).close(STATUS.get(record["status"], "FAILED"))
        elif tracked is not None:  # a call on a run that nobody makes would hold up all others
            untold(folder)
        why = f": {record['error']}" if record.get("error") else ""
        done = len(self._ended)
        self._say(f"trial {number} {record['status']}{why} ({done}/{self._total})")


def _last_line(path: str) -> str:
    try:
        lines = [line for line in Path(path).read_text().splitlines() if line.strip()]
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""


def _study(seed: int) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(direction="maximize", sampler=_sampler(seed, 0))


def _sampler(seed: int, number: int) -> Any:
    """Return Optuna's estimator for one trial, whose draws do not hang on how many were before."""
    import optuna

    # Trials run side by side: what is still running counts as poor, so that it is not asked twice.
    return optuna.samplers.TPESampler(
        seed=int(np.random.default_rng((seed, number)).integers(2**32)),
        n_startup_trials=STARTUP_TRIALS,
        constant_liar=True,
    )


def _distribution(domain: Domain) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(domain, Choice):
        # By place: a value may be a list, which Optuna's storage does not take.
        return CategoricalDistribution(tuple(range(len(domain.values))))
    return FloatDistribution(domain.low, domain.high, log=isinstance(domain, LogUniform))


def _value(domain: Domain, param: Any) -> Any:
    return domain.values[int(param)] if isinstance(domain, Choice) else float(param)


def _param(domain: Domain, value: Any) -> Any:
    return domain.values.index(value) if isinstance(domain, Choice) else float(value)
