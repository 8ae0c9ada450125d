"""A pipeline from phrases to the evaluation, by one command."""

import json
from pathlib import Path

import pytest

from ehr_ray.cli.main import main

pytestmark = pytest.mark.ray
TINY = Path(__file__).parents[2] / "configs" / "tiny"


def test_a_pipeline_ends_with_held_out_patients_judged(
    cluster, synthetic_cohort, synthetic_patients, tmp_path
):
    settings = {
        "data.cohort": synthetic_cohort,
        "output": tmp_path,
        "cluster.num_workers": 0,
        "tracking.experiment": "null",
        "train.max_steps": 2,
    }
    main(["train", str(TINY / "event_pipeline.yaml"), *(f"{k}={v}" for k, v in settings.items())])
    run = tmp_path / "tiny_event_encoder"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["held_out/n"] == len(synthetic_patients["held_out"])
    assert 0 <= metrics["held_out/auroc"] <= 1
    assert (run / "predictions" / "held_out.parquet").is_file()
    assert (run / "report.html").is_file()
