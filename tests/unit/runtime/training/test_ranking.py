import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ehr_ray.errors import ConfigError, LeaseLostError
from ehr_ray.family import Select
from ehr_ray.runtime.training.ranking import (
    MEASURES,
    PROBE,
    WORST,
    RankingBackend,
    collapse_flags,
    measured,
    rank_of,
    score,
)
from ehr_ray.storage import sync
from ehr_ray.storage.paths import STAGING, local
from ehr_ray.train.task import family_of


def test_a_loss_whose_beta_is_swept_ranks_nothing(tiny_config):
    families = ("set_vae", "seqset_poe", "vitals_vae", "hcat", "visit_jepa", "event_decoder")
    ranks = {}
    for name in families:
        one = tiny_config(name)
        family = family_of(one)
        ranks[name] = rank_of(one, family)
        swept = {path.split(".")[1] for path in family.search_space if ".schedules" in f".{path}"}
        # An objective is the sum of terms at `eval_scheduled`: each of them is fixed there.
        assert swept - {"momentum"} <= set(family.eval_scheduled)
    assert ranks["visit_jepa"] == PROBE
    assert ranks["vitals_vae"].metric == "val/mse_hidden"
    assert rank_of(tiny_config(**{"tune.rank": "probe"}), family_of(tiny_config())) == PROBE
    metric = tiny_config("visit_jepa", **{"tune.rank": "metric"})
    assert rank_of(metric, family_of(metric)).metric == "val/value"
    tuned = tiny_config("seqset_finetune", **{"tune.rank": "probe"})
    with pytest.raises(ConfigError, match="a run with a task has a metric of its own"):
        rank_of(tuned, family_of(tuned))


def test_a_score_is_higher_where_the_metric_is_better():
    low, high = Select("m", "min"), Select("m", "max")
    assert score(low, {"m": 2.0}) == -2.0
    assert score(high, {"m": 2.0}) == 2.0
    assert score(low, {"m": math.nan}) == score(high, {}) == WORST


@pytest.mark.parametrize(
    ("posteriors", "lines", "early", "collapsed", "untrained"),
    [
        ({"latent/collapsed": 1.0}, [], False, 1.0, 0.0),  # a family's silence excuses nothing
        ({"latent/collapsed": 0.5}, None, False, 0.5, 0.0),
        ({}, ["collapsed codebook: perplexity 1.0"], False, 1.0, 0.0),
        ({}, ["not learned: skill 0"], False, 0.0, 0.0),
        ({"latent/collapsed": 1.0}, [], True, 0.0, 1.0),
    ],
)
def test_a_latent_has_collapsed_where_anything_says_so(
    posteriors, lines, early, collapsed, untrained
):
    flags = collapse_flags(posteriors, lines, early=early)
    assert flags == {"latent/collapsed": collapsed, "latent/untrained": untrained}


def test_where_nothing_watches_the_latent_nothing_is_said_of_it():
    assert collapse_flags({}, None, early=False) == {}


def test_measures_are_stored_where_the_state_they_are_of_is(tmp_path, monkeypatch):
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    uri = f"file://{tmp_path}/store/trial"
    told, arrived = [], [False, True, LeaseLostError("taken over")]
    inner = SimpleNamespace(
        device=torch.device("cpu"), rank=0, world=1, wrap=lambda model: model, report=told.append
    )

    def stored():
        answer = arrived.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def backend():
        measures = {"score": 1.0}
        return RankingBackend(inner, lambda *_: measures, local(uri), lambda *_: None, stored)

    ranking = backend()
    ranking.wrap(nn.Linear(1, 1))
    ranking.report({"step": 1, "epoch": 0.0})
    assert not sync.names_in(uri)
    assert measured(local(uri)) == 1
    ranking.report({"step": 2, "epoch": 0.0})
    assert sync.names_in(uri) == {MEASURES}
    assert [row["step"] for row in told] == [1, 2]
    with pytest.raises(LeaseLostError):
        ranking.report({"step": 3, "epoch": 0.0})
    assert measured(sync.fetch(uri)) == 2
