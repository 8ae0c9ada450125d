"""Schedulers of searches: who is stopped, and that a resume changes no verdict."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ehr_ray.config.search import Choice, LogUniform
from ehr_ray.experiment import load
from ehr_ray.runtime.tuning.schedulers import AGAIN, scheduler

TRIALS, ROUNDS, GRACE = 8, 9, 2
CONFIG = Path(__file__).parents[4] / "configs" / "tiny" / "set_vae.yaml"
SPACE = {"train.lr": LogUniform(1e-4, 1e-2)}


class Search:
    """A scheduler fed with reports of trials, as Ray Tune does, and what it knew of them."""

    def __init__(self, kind):
        settings = ["data.cohort=cohort", f"tune.scheduler={kind}"]
        settings += ["tune.reduction_factor=2"] * (kind == "asha")
        self.scheduler = scheduler(load(CONFIG, settings), SPACE, GRACE)
        self.scheduler.set_search_properties("score", "max")
        self.trials = [FakeTrial(str(n)) for n in range(TRIALS)]
        for trial in self.trials:
            self.scheduler.on_trial_add(self, trial)

    def get_live_trials(self):
        return [trial for trial in self.trials if trial.status == "RUNNING"]

    get_trials = get_live_trials
    search_alg = None

    def report(self, number, step, score, **more):
        result = {"step": step, "score": score, AGAIN: False, **more}
        return self.scheduler.on_trial_result(self, self.trials[number], result)


class FakeTrial(SimpleNamespace):
    """What a scheduler reads of a trial."""

    def __init__(self, name):
        keeps = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        super().__init__(
            trial_id=name,
            experiment_tag=name,
            status="RUNNING",
            config={"train.lr": 1e-3},
            evaluated_params={},
            run_metadata=SimpleNamespace(checkpoint_manager=keeps),
            is_finished=lambda: False,
        )

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def events(rng):
    """Return (trial, step, score) in some order in which the trials of a search may report."""
    left = np.repeat(np.arange(TRIALS), ROUNDS)
    rng.shuffle(left)
    steps, found = np.zeros(TRIALS, int), []
    level = rng.normal(size=TRIALS)
    for number in left:
        steps[number] += 1
        found.append((number, int(steps[number]), float(level[number] + 0.3 * rng.normal())))
    return found


def play(search, reports, stopped):
    """Return the verdicts on reports; trials that are stopped report no more."""
    verdicts = []
    for number, step, score in reports:
        if number not in stopped:
            verdicts.append((number, step, search.report(number, step, score)))
            if verdicts[-1][-1] == "STOP":
                stopped.add(number)
    return verdicts


@pytest.mark.parametrize("kind", ["asha", "median"])
@pytest.mark.parametrize("seed", range(12))
def test_a_resumed_search_stops_whom_it_would_have_stopped(kind, seed):
    """Killed after any report; the trials, in any order, make theirs again."""
    rng = np.random.default_rng(seed)
    reports = events(rng)
    whole = play(Search(kind), reports, set())
    assert {"STOP", "CONTINUE"} == {verdict for *_, verdict in whole}
    for cut in rng.integers(1, len(reports), 6):
        gone = set()
        before = play(Search(kind), reports[:cut], gone)
        told = {(number, step) for number, step, _ in before}
        resumed = Search(kind)
        for trial in rng.permutation(TRIALS):
            for number, step, score in reports[:cut]:
                if number == trial and (number, step) in told:
                    assert resumed.report(number, step, score, **{AGAIN: True}) == "CONTINUE"
        assert before + play(resumed, reports[cut:], gone) == whole


@pytest.mark.parametrize("kind", ["asha", "median"])
@pytest.mark.parametrize("seed", range(12))
def test_who_leads_at_every_report_is_stopped_in_no_order(kind, seed):
    rng = np.random.default_rng(seed)
    leader = int(rng.integers(TRIALS))
    reports = [(n, s, score + 100 * (n == leader)) for n, s, score in events(rng)]
    stopped = set()
    play(Search(kind), reports, stopped)
    assert stopped
    assert leader not in stopped


def test_the_median_counts_a_report_once():
    """A trial whose process is lost makes its reports again in the same search."""
    once, twice = Search("median"), Search("median")
    for step in (1, 2, 3):
        for search, times in ((once, 1), (twice, 2)):
            for number in range(TRIALS - 1):
                for turn in range(times):
                    search.report(number, step, step * number, **{AGAIN: turn > 0})
    verdicts = [s.report(TRIALS - 1, 3, 7.0) for s in (once, twice)]
    assert verdicts[0] == verdicts[1]
    assert [len(r) for r in twice.scheduler._results.values()] == [3] * (TRIALS - 1) + [1]


def test_nobody_takes_over_by_reports_of_before():
    search = Search("pbt")
    for number in range(TRIALS):
        for step in range(1, 2 * GRACE):
            assert search.report(number, step, float(number), **{AGAIN: True}) == "CONTINUE"
    assert search.scheduler.last_scores(search.trials) == []
    search.report(3, 2 * GRACE, 3.0)
    assert search.scheduler.last_scores(search.trials) == [3.0]


def test_a_population_stays_within_its_domains():
    space = {"train.lr": LogUniform(1e-4, 1e-2), "train.schedule": Choice(("cosine", "constant"))}
    space["model.width"] = Choice((8, 16, 32))
    experiment = load(CONFIG, ["data.cohort=cohort", "tune.scheduler=pbt"])
    population = scheduler(experiment, space, GRACE)
    config = {"train.lr": 9e-3, "train.schedule": "cosine", "model.width": 32}
    drawn = []
    for _ in range(100):
        config, _ = population._get_new_config(None, SimpleNamespace(config=config))
        drawn.append(config)
    assert all(1e-4 <= one["train.lr"] <= 1e-2 for one in drawn)
    for path in ("train.schedule", "model.width"):
        assert {one[path] for one in drawn} == set(space[path].values)
