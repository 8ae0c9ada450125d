import math

import pytest

from ehr_ray.config.search import Choice, Uniform
from ehr_ray.errors import ConfigError
from ehr_ray.runtime.tuning.plan import check_space, concurrency, default_space
from ehr_ray.train.task import family_of


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
def test_as_many_trials_run_as_the_cluster_has_room_for(
    tiny_config, have, changes, trials, found, monkeypatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert concurrency(tiny_config(**changes), trials, have) == found


@pytest.mark.parametrize(
    ("have", "changes", "message"),
    [
        ({"CPU": 2}, {"cluster.cpus_per_worker": 3}, "1 x .* = 3 CPUs, but there are 2; ask"),
        ({"CPU": 4}, {"tune.spare_cpus": 4}, "there are 4 - tune.spare_cpus=4 = 0; ask"),
        ({"CPU": 4}, {"cluster.gpus_per_worker": 1}, "= 1 GPUs, but there are 0; ask"),
    ],
)
def test_what_can_never_run_is_refused_with_the_arithmetic(
    tiny_config, have, changes, message, monkeypatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=message):
        concurrency(tiny_config(**changes), 4, have)
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # an autoscaler may bring what is missing
    assert concurrency(tiny_config(**changes), 4, have) == 4


def test_before_ray_tells_of_gpus_there_may_be_any_number(tiny_config, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    wanted = tiny_config(**{"cluster.gpus_per_worker": 1})
    assert concurrency(wanted, 9, {"CPU": 4, "GPU": math.inf}) == 4


def test_an_end_of_a_domain_that_makes_no_config_is_named(tiny_config):
    with pytest.raises(ConfigError, match=r"search\.train\.lr: -1\.0 makes no valid config: "):
        check_space(tiny_config(), {"train.lr": Uniform(-1.0, 1.0)})
    with pytest.raises(ConfigError, match=r"search\.train\.lr: gauss is no kind of domain; known"):
        check_space(tiny_config(), {"train.lr.gauss": Choice((1, 0.1))})
    with pytest.raises(ConfigError, match=r"search\.model\.latnt: 8 makes no valid config"):
        check_space(tiny_config(), {"model.latnt": Choice((8,))})


@pytest.mark.parametrize(
    ("name", "changes", "idle", "swept"),
    [
        ("event_encoder", {"task": "null", "model.head": "plain"}, [], ["model.mask_ratio"]),
        ("event_encoder", {}, ["model.mask_ratio"], ["model.dropout"]),
        ("event_decoder", {}, ["model.mask_ratio"], ["model.dropout"]),
        (
            "vitals_vq",
            {},
            ["schedules.beta.end", "schedules.free_bits", "model.latent"],
            ["model.codebook", "model.code_groups"],
        ),
        ("vitals_vae", {"model.fallback": "vq"}, ["model.codebook"], ["schedules.free_bits"]),
        (
            "vitals_lstm",
            {"model.objective": "published"},
            ["model.evidence", "model.hide", "model.width", "model.branch_weight"],
            ["schedules.beta.end", "model.latent"],
        ),
        ("hcat", {}, [], ["schedules.free_bits", "model.mask_ratio"]),
        (
            "hcat",
            {"model.missing": "mask", "schedules.beta": "null"},
            ["schedules.free_bits", "model.mask_ratio"],
            ["model.preset"],
        ),
        (
            "seqset_finetune",
            {},
            ["schedules.beta.end", "schedules.free_bits", "model.p_stale"],
            ["model.prior_width", "train.lr"],
        ),
        ("visit_jepa_finetune", {}, ["model.mask", "model.predictor_depth"], ["model.width"]),
    ],
)
def test_what_changes_nothing_under_a_config_is_not_swept(tiny_config, name, changes, idle, swept):
    experiment = tiny_config(name, **changes)
    space = set(default_space(experiment, family_of(experiment)))
    assert (space & set(idle), set(swept) - space) == (set(), set())


def test_a_search_over_what_no_trial_reads_is_refused(tiny_config):
    lstm = tiny_config("vitals_lstm", **{"model.objective": "published"})
    with pytest.raises(
        ConfigError, match=r"^search\.model\.hide: does nothing with model\.objective=published; "
    ):
        check_space(lstm, {"model.hide": Uniform(0.0, 0.3)})
    both = {"model.hide": Uniform(0.1, 0.3), "model.objective": Choice(("elbo", "published"))}
    check_space(lstm, both)  # some of its trials read it
