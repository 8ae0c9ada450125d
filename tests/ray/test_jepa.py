"""A JEPA pretrained on two workers, its report, and the two ways to train a head on it."""

import json
from pathlib import Path

import pytest

from ehr_ray.config import load
from ehr_ray.runtime.evaluation import evaluate
from ehr_ray.runtime.trainer import train
from ehr_ray.train import history

pytestmark = pytest.mark.ray
TINY = Path(__file__).parents[2] / "configs" / "tiny"


@pytest.fixture(scope="module")
def make(cohort, tmp_path_factory):
    """A tiny experiment of a config file: make("jepa", **{path: value})."""
    output = tmp_path_factory.mktemp("jepa")

    def build(config, **changes):
        settings = {
            "data.cohort": cohort,
            "output": output,
            "tracking.experiment": "null",
            "evaluation.bootstrap": 20,
            "train.max_epochs": 1,
            **changes,
        }
        return load(TINY / f"{config}.yaml", [f"{k}={v}" for k, v in settings.items()])

    return build


@pytest.fixture(scope="module")
def pretrained(cluster, make):
    return train(make("jepa", **{"cluster.num_workers": 2})).run


def test_a_report_says_whether_predictions_learned_beside_baselines(pretrained):
    lines = evaluate(pretrained)
    assert sum(line.startswith("prediction: ") for line in lines) == 1
    metrics = json.loads((pretrained / "metrics.json").read_text())
    wanted = {f"held_out/prediction/{n}" for n in ("skill", "shuffled_gap", "value_estimate")}
    assert wanted | {"held_out/auroc", "baseline/untrained/held_out/auroc"} <= set(metrics)
    assert "Predicting hidden rows" in (pretrained / "report.html").read_text()
    assert "val/skill" in history.read(pretrained)


@pytest.mark.parametrize("config", ["jepa_finetune", "jepa_probe"])
def test_a_head_is_trained_on_a_pretrained_encoder(pretrained, make, config):
    run = train(make(config, init_from=pretrained, **{"cluster.num_workers": 0})).run
    assert "base.encoder.embed.0.weight: copied" in (run / "init_from.txt").read_text()
    lines = evaluate(run)
    assert not any(line.startswith("prediction: ") for line in lines)
    assert "val/auroc" in history.read(run)
    assert "held_out/auroc" in json.loads((run / "metrics.json").read_text())
