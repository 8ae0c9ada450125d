"""A pretrained JEPA, its report, and the two ways to train a head on it."""

import json

import pytest

from ehr_ray.commands.evaluate.command import evaluate
from ehr_ray.commands.ingest import ingest
from ehr_ray.commands.train.command import train
from ehr_ray.errors import ConfigError, InputError
from ehr_ray.train import history

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def pretrained(cluster, make):
    return train(make("visit_jepa", **{"cluster.num_workers": 0})).run


def test_a_report_says_whether_predictions_learned_beside_baselines(pretrained):
    lines = evaluate(pretrained)
    assert sum(line.startswith("prediction: ") for line in lines) == 1
    metrics = json.loads((pretrained / "metrics.json").read_text())
    wanted = {f"held_out/prediction/{n}" for n in ("skill", "shuffled_gap", "value_estimate")}
    assert wanted | {"held_out/auroc", "baseline/untrained/held_out/auroc"} <= set(metrics)
    assert "Predicting hidden rows" in (pretrained / "report.html").read_text()
    assert "val/skill" in history.read(pretrained)


@pytest.mark.parametrize("config", ["visit_jepa_finetune", "visit_jepa_probe"])
def test_a_head_is_trained_on_a_pretrained_encoder(pretrained, make, config):
    run = train(make(config, init_from=pretrained, **{"cluster.num_workers": 0})).run
    assert "base.encoder.embed.0.weight: copied" in (run / "init_from.txt").read_text()
    assert "val/auroc" in history.read(run)
    if config == "visit_jepa_finetune":
        lines = evaluate(run)
        assert not any(line.startswith("prediction: ") for line in lines)
        assert "held_out/auroc" in json.loads((run / "metrics.json").read_text())


@pytest.fixture(scope="module")
def admissions(tmp_path_factory):
    path = tmp_path_factory.mktemp("cohorts") / "admissions"
    ingest("synthetic", None, path, options={"patients": 60, "admissions": 6}, cpus=1)
    return path


def test_admissions_are_rows_to_pretrain_on_and_readmission_is_predicted_from(make, admissions):
    common = {"data.cohort": admissions, "cluster.num_workers": 0, "train.warmup_steps": 0}
    run = train(make("visit_jepa_admissions", **common)).run
    assert history.read(run)[["val/skill", "val/value"]].notna().all(axis=None)
    task = {"model.rows": "visits", "task.name": "readmission_30d", "name": "readmission"}
    again = train(make("visit_jepa_finetune", init_from=run, **common, **task)).run
    assert history.read(again)["val/auroc"].notna().all()


def test_a_cohort_that_cannot_be_learned_from_is_refused_in_one_line(make, admissions):
    with pytest.raises(InputError, match=r"train split: none of .* HOSPITAL_ADMISSION"):
        train(make("visit_jepa", name="once", **{"model.rows": "visits", "cluster.num_workers": 0}))
    changes = {"data.cohort": admissions, "cluster.num_workers": 0, "model.outcomes": "['*']"}
    with pytest.raises(ConfigError, match=r"^model\.outcomes: \['\*'\]") as caught:
        train(make("visit_jepa_admissions", name="nothing", **changes))
    assert "\n" not in str(caught.value)
