"""An evaluation in this process; on Ray, and all it can show, in tests/ray/test_inference.py."""

import json

import pytest
import ray

from ehr_ray.commands.evaluate.command import evaluate
from ehr_ray.commands.train.command import train

CHANGES = {
    "cluster.num_workers": 0,
    "tracking.experiment": None,
    "train.max_steps": 1,
    "evaluation.baselines": False,
    "evaluation.bootstrap": 10,
    "evaluation.hours": [24],
}


@pytest.fixture(scope="module")
def run(tiny_experiment, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    return train(tiny_experiment("set_vae", {**CHANGES, "output": str(output)})).run


def test_without_baselines_the_model_is_measured_alone_and_has_its_report(run, tmp_path):
    lines = evaluate(run, output=tmp_path, on_ray=False)
    assert not ray.is_initialized()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert "held_out/auroc" in metrics or "held_out/auroc/undefined" in metrics
    assert not [name for name in metrics if name.startswith("baseline/")]
    assert not (tmp_path / "predictions" / "baselines").exists()
    assert (tmp_path / "report.html").is_file()
    assert any(line.startswith("report: ") for line in lines)


def test_without_pages_metrics_and_predictions_are_the_same(run, tmp_path):
    evaluate(run, output=tmp_path / "whole", on_ray=False)
    lines = evaluate(run, output=tmp_path / "bare", on_ray=False, pages=False)
    for name in ("metrics.json", "predictions/held_out.parquet"):
        assert (tmp_path / "bare" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {p.name for p in (tmp_path / "bare").iterdir()} == {
        "metrics.json",
        "predictions",
        "embeddings",
    }
    assert not any(line.startswith("report: ") for line in lines)
