import math
from types import SimpleNamespace

import pytest

from ehr_ray.config.search import Choice, LogUniform, TuneConfig, Uniform
from ehr_ray.runtime.tracking import RUN_FILE, UNTOLD
from ehr_ray.runtime.training.ranking import MEASURES, WORST
from ehr_ray.runtime.tuning.proposals import (
    STARTUP_TRIALS,
    Closing,
    Proposals,
    Samples,
    known_trials,
)
from ehr_ray.runtime.tuning.trial import trial_dir, write_trial
from ehr_ray.train import history

SPACE = {"train.lr": LogUniform(1e-5, 1e-1), "model.mask": Choice((["a"], ["b"]))}


def test_optuna_learns_from_what_trials_scored():
    proposals = Proposals(SPACE, TuneConfig(method="optuna", trials=60), seed=1)
    early, late = [], []
    for number in range(60):
        sample = proposals.sample(number)
        distance = abs(math.log10(sample["train.lr"]) + 3) + (sample["model.mask"] == ["b"])
        (early if number < 10 else late).append(distance)
        proposals.tell(number, sample, -distance if number % 10 else WORST)
    assert sum(late[-20:]) / 20 < 0.6 * sum(early) / len(early)


def test_optuna_is_told_trials_of_before_without_asking_again():
    proposals = Proposals(SPACE, TuneConfig(method="optuna"), seed=1)
    proposals.tell(0, {"train.lr": 1e-3, "model.mask": ["b"]}, 0.5)
    proposals.tell(1, {"train.lr": 1e-3, "model.mask": ["a"]}, WORST)
    (told,) = proposals._study.trials
    assert told.value == 0.5
    assert told.params["train.lr"] == 1e-3


@pytest.mark.parametrize("cut", [1, 5, 11, 14])
def test_optuna_asks_after_a_resume_what_it_would_have_asked(cut):
    """Trials one after the other; the search ends while trial `cut` is trained."""
    plan = TuneConfig(method="optuna", trials=16)

    def worth(sample):
        return -abs(math.log10(sample["train.lr"]) + 3) - (sample["model.mask"] == ["b"])

    def go_on(proposals, samples, begun=None):
        for number in range(len(samples) - (begun is not None), 16):
            sample = samples[number] if number == begun else proposals.sample(number)
            if number != begun:
                samples.append(sample)
            proposals.tell(number, sample, worth(sample))
        return samples

    whole = go_on(Proposals(SPACE, plan, seed=1), [])
    assert len({sample["train.lr"] for sample in whole}) == 16
    resumed = Proposals(SPACE, plan, seed=1)
    for number in range(cut):
        resumed.tell(number, whole[number], worth(whole[number]))
    resumed.begin(cut, whole[cut])
    assert go_on(resumed, whole[: cut + 1], begun=cut) == whole


def test_optuna_asks_for_nothing_near_what_is_still_trained():
    """What was begun before a resume counts as poor until it has ended, as it did."""
    plan, drawn = TuneConfig(method="optuna"), {}
    for begun in (True, False):
        proposals = Proposals(SPACE, plan, seed=1)
        for number in range(STARTUP_TRIALS + 4):
            sample = proposals.sample(number)
            proposals.tell(number, sample, -abs(math.log10(sample["train.lr"]) + 3))
        waiting = {"train.lr": 1e-3, "model.mask": ["a"]}
        for number in range(20, 26):
            if begun:
                proposals.begin(number, waiting)
        later = [math.log10(proposals.sample(n)["train.lr"]) for n in range(30, 50)]
        drawn[begun] = sum(abs(value + 3) < 0.1 for value in later)
    assert drawn[True] < drawn[False]


def test_samples_hand_out_ended_trials_then_begun_ones_then_new_ones(tmp_path):
    plan = TuneConfig(trials=5)
    for number, status in ((0, "finished"), (1, "running"), (2, "failed")):
        write_trial(trial_dir(tmp_path, number), number, {"train.lr": 0.1 * number}, status)
    known = known_trials(tmp_path)
    assert known == {0: {"train.lr": 0.0}, 1: {"train.lr": 0.1}, 2: {"train.lr": 0.2}}
    proposals = Proposals({"train.lr": Uniform(0, 1)}, plan, seed=0)
    samples = Samples(tmp_path, proposals, known)
    given = [samples.suggest(f"t{i}") for i in range(5)]
    assert [g["trial"] for g in given] == [0, 2, 1, 3, 4]
    assert given[3]["train.lr"] == proposals.sample(3)["train.lr"]
    assert known_trials(tmp_path)[4] == {"train.lr": given[4]["train.lr"]}
    assert samples.suggest("t5") == Samples.FINISHED


def test_the_method_learns_nothing_good_from_a_latent_that_collapsed(tmp_path):
    """Trials before a resume are told at once, with their best report that tells patients apart."""
    given = {0: [(-3.0, 0.0), (-1.0, 1.0)], 1: [(-0.5, 1.0)], 2: [(-2.0, 0.0)]}
    for number, rows in given.items():
        folder = trial_dir(tmp_path, number)
        status = "failed" if number == 2 else "finished"
        write_trial(folder, number, {"train.lr": 0.1 * number}, status)
        for step, (value, collapsed) in enumerate(rows, start=1):
            row = {"step": step, "epoch": 1.0, "score": value, "latent/collapsed": collapsed}
            history.append(folder, row, MEASURES)
    told = {}
    proposals = SimpleNamespace(total=3, tell=lambda number, _, value: told.update({number: value}))
    Samples(tmp_path, proposals, known_trials(tmp_path))
    assert told == {0: -3.0, 1: WORST, 2: WORST}


def test_of_a_trial_whose_run_nobody_made_mlflow_is_told_later(tmp_path, monkeypatch):
    """A call on it would be repeated without end, before all those that others wait for."""
    monkeypatch.setattr("ehr_ray.runtime.tuning.proposals.Tracker", None)
    folder = trial_dir(tmp_path, 0)
    write_trial(folder, 0, {"train.lr": 0.1})
    (folder / RUN_FILE).write_text("uri: http://host\nexperiment: e\nkey: abc\n")
    said = []
    closing = Closing(tmp_path, lambda _trial: 0, 1, said.append)
    closing.on_trial_complete(trial=SimpleNamespace(last_result={}))
    assert (folder / UNTOLD).is_file()
    assert said == ["trial 0 stopped (1/1)"]
