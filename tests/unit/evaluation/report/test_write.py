import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from ehr_ray.errors import ResourcesUnavailableError
from ehr_ray.evaluation.report.content import ReportContext
from ehr_ray.evaluation.report.write import (
    PREDICTIONS,
    write_metrics,
    write_predictions,
    write_report,
    write_results,
)


def test_the_report_is_one_page_that_needs_nothing_from_outside(tmp_path, context, parse):
    path = write_report(tmp_path, context)
    page, text = parse(path.read_text())
    assert path == tmp_path / "report.html"
    assert all(a.startswith("data:image/png;base64,") for a in page.addresses)
    assert "http" not in path.read_text()
    assert (tmp_path / "figures" / "kl_per_dimension.png").read_bytes()[1:4] == b"PNG"
    for expected in ("physionet2012", "800", "12 of 4,000 rows", "Lower is best.", "torch"):
        assert expected in text


@pytest.mark.parametrize("split", ["train", "tuning"])
def test_a_split_that_was_used_before_is_reported_with_a_caution(tmp_path, split, context, parse):
    label = {f"{split}/auroc": 0.9}
    for name in (split, "held_out"):
        changed = replace(context, split=name, metrics={**context.metrics, **label})
        _, text = parse(write_report(tmp_path, changed).read_text())
        write_results(tmp_path, changed)
        told = "Caution: " in text, "Caution: " in (tmp_path / "results.md").read_text()
        assert told == ((True, True) if name == split else (False, False))


def test_writing_a_report_twice_gives_the_same_bytes(tmp_path, context):
    first = write_report(tmp_path / "a", context).read_bytes()
    assert write_report(tmp_path / "b", context).read_bytes() == first


def test_metrics_are_flat_sorted_and_without_nan(tmp_path):
    path = tmp_path / "run" / "metrics.json"
    values = {"b": np.float32(0.5), "a": 1.0, "c": np.nan, "c/low": np.nan, "c/high": np.nan}
    assert write_metrics(path, values) == ["c"]
    found = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert found == {"a": 1.0, "b": 0.5, "c/undefined": 1.0}
    assert list(found) == sorted(found)
    assert [p.name for p in path.parent.iterdir()] == ["metrics.json"]


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_metrics(path, {"a": 1.0})

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(ResourcesUnavailableError, match=r"metrics\.json: disk full; "):
        write_metrics(path, {"a": 2.0})
    assert json.loads(path.read_text()) == {"a": 1.0}
    assert len(list(tmp_path.iterdir())) == 1


def test_predictions_follow_the_meds_evaluation_schema(tmp_path):
    path = tmp_path / "predictions" / "held_out.parquet"
    times = np.array(["2010-01-01T00:00", "2010-01-02T12:30"], dtype="datetime64[s]")
    write_predictions(path, np.array([7, 9]), times, np.array([True, False]), np.array([0.9, 0.1]))
    table = pq.read_table(path)
    assert table.schema.equals(PREDICTIONS)
    assert table.schema.field("prediction_time").type == pa.timestamp("us")
    assert table["subject_id"].to_pylist() == [7, 9]
    assert table["boolean_value"].to_pylist() == [True, False]
    assert table["predicted_boolean_probability"].to_pylist() == [0.9, 0.1]
    assert table["predicted_boolean_value"].to_pylist() == [None, None]
    assert str(table["prediction_time"][1].as_py()) == "2010-01-02 12:30:00"


def test_a_prediction_is_true_from_the_threshold_on(tmp_path):
    path, times = tmp_path / "held_out.parquet", np.zeros(3, "datetime64[us]")
    given = np.array([0.2, 0.3, 0.4])
    write_predictions(path, np.arange(3), times, np.ones(3, bool), given, threshold=0.3)
    assert pq.read_table(path)["predicted_boolean_value"].to_pylist() == [False, True, True]


def test_meds_evaluation_measures_the_predictions_as_they_are(tmp_path):
    evaluate = pytest.importorskip(
        "meds_evaluation.evaluate", reason="needs meds-evaluation: pip install meds-evaluation"
    )
    polars = pytest.importorskip("polars")
    path, times = tmp_path / "held_out.parquet", np.zeros(40, "datetime64[us]")
    label, risk = np.arange(40) % 4 == 0, np.random.default_rng(0).random(40)
    write_predictions(path, np.arange(40), times, label, risk, "died", threshold=0.5)
    found = evaluate.evaluate_binary_classification(polars.read_parquet(path))
    told = found["samples_equally_weighted"]
    assert told["roc_auc_score"] == pytest.approx(roc_auc_score(label, risk))
    assert told["binary_accuracy"] == pytest.approx(((risk >= 0.5) == label).mean())


def test_the_results_are_a_page_of_markdown_and_a_csv(tmp_path, task_context):
    write_results(tmp_path, task_context)
    text = (tmp_path / "results.md").read_text()
    assert "mortality on held_out: 800 rows, 14.0% positive." in text
    assert "loses -0.031 [-0.052, -0.010]" in text
    assert "The gradient-boosted trees win on: AUROC" in text
    assert "- Note: Tuning has one class only\n" in text
    for heading in ("Beside the baselines", "By hour", "By subgroup: who is ranked well"):
        assert f"## {heading}\n" in text
    assert "held_out,all,gbm,auroc,0.871," in (tmp_path / "results.csv").read_text()


def test_the_results_of_a_cohort_without_labels_say_so(tmp_path):
    write_results(tmp_path, ReportContext(title="bare"))
    assert "no labels: nothing was compared" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "results.csv").read_text().count("\n") == 1
