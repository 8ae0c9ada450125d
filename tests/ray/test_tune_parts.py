"""Parts of a search that need no cluster: proposals, arithmetic, data and the table."""

import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from ehr_ray.config.search import Choice, LogUniform, TuneConfig, Uniform
from ehr_ray.errors import ConfigError, InputError
from ehr_ray.experiment import load
from ehr_ray.family import Select
from ehr_ray.runtime.session import _stopped_like_interrupted
from ehr_ray.runtime.training.ranking import MEASURES, PROBE, WORST, rank_of, score
from ehr_ray.runtime.tuning.plan import check_space, concurrency, default_space
from ehr_ray.runtime.tuning.proposals import STARTUP_TRIALS, Proposals, Samples, known_trials
from ehr_ray.runtime.tuning.trial import trial_dir, write_trial
from ehr_ray.runtime.tuning.trial_data import data_paths, datasets
from ehr_ray.runtime.tuning.trials_table import read_sweep
from ehr_ray.train import history
from ehr_ray.train.task import family_of

ROOT = Path(__file__).parents[2]


def experiment(config="set_vae", **changes):
    settings = {"data.cohort": "cohort", **changes}
    path = ROOT / "configs" / "tiny" / f"{config}.yaml"
    return load(path, [f"{k}={v}" for k, v in settings.items()])


@pytest.mark.parametrize(
    ("have", "changes", "trials", "found"),
    [
        ({"CPU": 8}, {}, 100, 8),
        ({"CPU": 8}, {}, 3, 3),
        ({"CPU": 8}, {"tune.spare_cpus": 3}, 100, 5),
        ({"CPU": 8}, {"tune.concurrent": 2}, 100, 2),
        ({"CPU": 8}, {"cluster.cpus_per_worker": 3}, 100, 2),
        ({"CPU": 2}, {"cluster.cpus_per_worker": 0.5}, 100, 4),
        ({"CPU": 8}, {"cluster.num_workers": 2}, 100, 4),
        ({"CPU": 2}, {"cluster.num_workers": 2}, 100, 1),
        ({"CPU": 64, "GPU": 3}, {"cluster.gpus_per_worker": 1}, 100, 3),
        ({"CPU": 2}, {"cluster.num_workers": 0}, 100, 2),
    ],
)
def test_as_many_trials_run_as_the_cluster_has_room_for(have, changes, trials, found, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert concurrency(experiment(**changes), trials, have) == found


@pytest.mark.parametrize(
    ("have", "changes", "message"),
    [
        ({"CPU": 2}, {"cluster.cpus_per_worker": 3}, "1 x .* = 3 CPUs, but there are 2; ask"),
        ({"CPU": 4}, {"tune.spare_cpus": 4}, "there are 4 - tune.spare_cpus=4 = 0; ask"),
        ({"CPU": 4}, {"cluster.gpus_per_worker": 1}, "= 1 GPUs, but there are 0; ask"),
    ],
)
def test_what_can_never_run_is_refused_with_the_arithmetic(have, changes, message, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=message):
        concurrency(experiment(**changes), 4, have)
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # an autoscaler may bring what is missing
    assert concurrency(experiment(**changes), 4, have) == 4


def test_before_ray_tells_of_gpus_there_may_be_any_number(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    wanted = experiment(**{"cluster.gpus_per_worker": 1})
    assert concurrency(wanted, 9, {"CPU": 4, "GPU": math.inf}) == 4


def test_an_end_of_a_domain_that_makes_no_config_is_named():
    with pytest.raises(ConfigError, match=r"search\.train\.lr: -1\.0 makes no valid config: "):
        check_space(experiment(), {"train.lr": Uniform(-1.0, 1.0)})
    with pytest.raises(ConfigError, match=r"search\.train\.lr: gauss is no kind of domain; known"):
        check_space(experiment(), {"train.lr.gauss": Choice((1, 0.1))})
    with pytest.raises(ConfigError, match=r"search\.model\.latnt: 8 makes no valid config"):
        check_space(experiment(), {"model.latnt": Choice((8,))})


def test_what_changes_nothing_under_a_config_is_not_swept():
    fills_in = experiment("event_encoder", **{"model.head": "plain"})
    others = [experiment("event_encoder"), experiment("event_decoder")]
    space, *less = [set(default_space(one, family_of(one))) for one in (fills_in, *others)]
    assert [space - one for one in less] == [{"model.mask_ratio"}] * 2
    assert all(one < space for one in less)


def test_a_loss_whose_beta_is_swept_ranks_nothing():
    families = ("set_vae", "seqset_poe", "vitals_vae", "hcat", "visit_jepa", "event_decoder")
    ranks = {}
    for name in families:
        one = experiment(name)
        family = family_of(one)
        ranks[name] = rank_of(one, family)
        swept = {path.split(".")[1] for path in family.search_space if ".schedules" in f".{path}"}
        # An objective is a sum of terms at `eval_scheduled`: each scheduled weight is fixed there.
        assert swept - {"momentum"} <= set(family.eval_scheduled)
    assert ranks["visit_jepa"] == PROBE
    assert ranks["vitals_vae"].metric == "val/mse_hidden"
    assert rank_of(experiment(**{"tune.rank": "probe"}), family_of(experiment())) == PROBE
    metric = experiment("visit_jepa", **{"tune.rank": "metric"})
    assert rank_of(metric, family_of(metric)).metric == "val/value"
    tuned = experiment("seqset_finetune", **{"tune.rank": "probe"})
    with pytest.raises(ConfigError, match="a run with a task has a metric of its own"):
        rank_of(tuned, family_of(tuned))


def test_a_score_is_higher_where_the_metric_is_better():
    low, high = Select("m", "min"), Select("m", "max")
    assert score(low, {"m": 2.0}) == -2.0
    assert score(high, {"m": 2.0}) == 2.0
    assert score(low, {"m": math.nan}) == score(high, {}) == WORST


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


def test_only_what_changes_rows_is_data(cohort):
    given = experiment(**{"data.cohort": cohort})
    space = {
        "train.lr": Uniform(0.1, 1.0),
        "model.latent": Choice((8, 16)),
        "data.batch_size": Choice((8, 16)),
        "model.carry_minutes": Choice((60, 600)),
        "data.min_code_count": Choice((1, 5)),
    }
    assert data_paths(given, space) == ["model.carry_minutes", "data.min_code_count"]


def test_each_choice_of_data_gets_its_dataset_and_a_range_is_refused(cohort, tmp_path):
    given = experiment(**{"data.cohort": cohort, "output": tmp_path})
    space = {"model.carry_minutes": Choice((60, 600)), "train.lr": Uniform(0.1, 1.0)}
    with datasets(given, space, "outcome", on_ray=False) as found:
        samples = [{"model.carry_minutes": m, "train.lr": 0.2} for m in (60, 600)]
        parts = [found.of(sample).here() for sample in samples]
        assert [p.base["model"]["carry_minutes"] for p in parts] == [60, 600]
        rows = [p.own.store("train") for p in parts]
        assert rows[0].lengths.sum() < rows[1].lengths.sum()
        assert set(parts[0].probe.store("tuning").column("label").tolist()) <= {0.0, 1.0}
    space["model.carry_minutes"] = Uniform(60, 600)
    with (
        pytest.raises(ConfigError, match=r"search\.model\.carry_minutes: changes the model-ready"),
        datasets(given, space, None, on_ray=False),
    ):
        pass


def test_the_table_ranks_collapsed_trials_after_the_others_and_failed_ones_last(tmp_path):
    given = [("finished", 3.0, 0.0), ("finished", 1.0, 1.0), ("failed", 0.1, 0.0)]
    given += [("stopped", 2.0, 0.5)]
    for number, (status, value, collapsed) in enumerate(given):
        folder = trial_dir(tmp_path, number)
        write_trial(folder, number, {"train.lr": number}, status, "why" * (status == "failed"))
        row = {"step": 4, "epoch": 1.0, "val/objective": value}
        history.append(folder, row)
        measured = {"step": 4, "epoch": 1.0, "score": -value, "latent/collapsed": collapsed}
        history.append(folder, measured, MEASURES)
    sweep = read_sweep(tmp_path, Select())
    assert sweep.frame["trial"].tolist() == [3, 0, 1, 2]
    assert sweep.frame["collapsed"].tolist() == [False, False, True, False]
    assert sweep.best["trial"] == 3
    assert sweep.frame["error"].tolist()[-1] == "why"
    assert math.isnan(sweep.frame["score"].tolist()[-1])
    none = read_sweep(tmp_path / "nothing", Select())
    assert none.best is None


def test_a_row_tells_how_far_a_trial_went_and_which_report_was_kept(tmp_path):
    """The state says which report was best; where it is damaged the last one stands for it."""
    folder = trial_dir(tmp_path, 0)
    write_trial(folder, 0, {"train.lr": 0.1}, "finished")
    for step, value in ((4, 1.0), (8, 2.0)):
        history.append(folder, {"step": step, "epoch": step / 4, "val/objective": value})
    state = folder / "state" / "000000000008"
    state.mkdir(parents=True)
    (state / "model.safetensors").write_bytes(b"cut")
    (row,) = read_sweep(tmp_path, Select()).frame.to_dict("records")
    assert (row["step"], row["epoch"], row["best_step"], row["score"]) == (8, 2.0, 8, 2.0)


@pytest.mark.parametrize("content", ["", "- 1", "cut", "trial: 0\nstatus: running\n"])
def test_a_damaged_record_of_a_trial_is_named_with_the_remedy(tmp_path, content):
    folder = trial_dir(tmp_path, 1)
    write_trial(folder, 1, {"train.lr": 0.00123})
    whole = (folder / "trial.yaml").read_text()
    cut = whole[: whole.index("123")]  # half a number is one too
    (folder / "trial.yaml").write_text(cut if content == "cut" else content)
    with pytest.raises(InputError, match=r"0001/trial\.yaml: .*; remove .*0001 to run this trial"):
        known_trials(tmp_path)


def test_a_program_that_is_told_to_end_does_so_as_by_ctrl_c():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), _stopped_like_interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
