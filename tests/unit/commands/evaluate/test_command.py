"""An evaluation in this process; on Ray, and all it can show, in tests/ray/test_inference.py."""

import json

import ray

from ehr_ray.commands.evaluate.command import evaluate


def test_without_baselines_the_model_is_measured_alone_and_has_its_report(tiny_run, tmp_path):
    lines = evaluate(tiny_run, output=tmp_path, on_ray=False)
    assert not ray.is_initialized()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert "held_out/auroc" in metrics or "held_out/auroc/undefined" in metrics
    assert not [name for name in metrics if name.startswith("baseline/")]
    assert not (tmp_path / "predictions" / "baselines").exists()
    assert (tmp_path / "report.html").is_file()
    assert any(line.startswith("report: ") for line in lines)


def test_without_pages_metrics_and_predictions_are_the_same(tiny_run, tmp_path):
    evaluate(tiny_run, output=tmp_path / "whole", on_ray=False)
    lines = evaluate(tiny_run, output=tmp_path / "bare", on_ray=False, pages=False)
    for name in ("metrics.json", "predictions/held_out.parquet"):
        assert (tmp_path / "bare" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {p.name for p in (tmp_path / "bare").iterdir()} == {
        "metrics.json",
        "predictions",
        "embeddings",
        "probes",
    }
    assert not any(line.startswith("report: ") for line in lines)
