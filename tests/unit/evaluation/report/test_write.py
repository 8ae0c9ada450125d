import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import ResourcesUnavailableError
from ehr_ray.evaluation.metrics.collapse import embedding_diagnostics, latent_diagnostics
from ehr_ray.evaluation.report import figures
from ehr_ray.evaluation.report.content import Rejected, ReportContext, SplitSize
from ehr_ray.evaluation.report.write import (
    PREDICTIONS,
    write_metrics,
    write_predictions,
    write_report,
    write_results,
)
from ehr_ray.evaluation.table import Interval, Table

VOID = {"meta", "br", "img", "line", "circle", "link"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed wrongly, collects text and every address."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.addresses = [], [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def read(path):
    page = Balanced()
    page.feed(path.read_text())
    assert page.open == []
    return page, " ".join(" ".join(page.text).split())


def metrics(difference=(-0.031, -0.052, -0.010)):
    out = {}
    for prefix, auroc in (("", 0.84), ("baseline/gbm/", 0.871)):
        for name, value in (("auroc", auroc), ("auprc", 0.5), ("brier", 0.09)):
            key = f"{prefix}held_out/{name}"
            out |= {key: value, f"{key}/low": value - 0.03, f"{key}/high": value + 0.03}
    key = "baseline/gbm/held_out/auroc_difference"
    out |= {key: difference[0], f"{key}/low": difference[1], f"{key}/high": difference[2]}
    return out | {"held_out/n": 800.0, "held_out/prevalence": 0.14, "held_out/ece": float("nan")}


def full():
    rng = np.random.default_rng(0)
    kl = latent_diagnostics(rng.normal(size=(50, 8)), np.full((50, 8), -2.0))
    return ReportContext(
        title="set_vae on <cohort>",
        run={"Family": "set_vae"},
        task="mortality",
        metrics=metrics(),
        verdicts=("loses to gradient-boosted trees by 0.031 [0.010, 0.052] AUROC",),
        notes=("Tuning has one class only",),
        latents={"z2": kl},
        embeddings={"pooled": embedding_diagnostics(rng.normal(size=(20, 4)))},
        reconstruction=Table(
            ("", "Error"), (("Train mean", 1.0), ("Model", 0.4)), "Lower is best."
        ),
        figures={"kl_per_dimension": figures.kl_per_dimension(kl.kl_per_dimension, kl.active)},
        cohort={"Source": "physionet2012"},
        splits=(SplitSize("train", 6400, 6400, 900), SplitSize("held_out", 800)),
        rejected=Rejected(12, 4000, {"no value": 12}),
        config="family: set_vae\nname: <b>",
        versions={"torch": "2.9"},
    )


def test_the_report_is_one_page_that_needs_nothing_from_outside(tmp_path):
    path = write_report(tmp_path, full())
    page, text = read(path)
    assert path == tmp_path / "report.html"
    assert all(a.startswith("data:image/png;base64,") for a in page.addresses)
    assert "http" not in path.read_text()
    assert (tmp_path / "figures" / "kl_per_dimension.png").read_bytes()[1:4] == b"PNG"
    for expected in ("physionet2012", "800", "12 of 4,000 rows", "Lower is best.", "torch"):
        assert expected in text


def test_a_report_without_anything_but_a_title_is_still_a_page(tmp_path):
    page, text = read(write_report(tmp_path, ReportContext(title="bare")))
    assert "nothing was judged" in text
    assert "Beside the baselines" not in text
    assert page.addresses == []


@pytest.mark.parametrize(
    "missing",
    [
        {"metrics": {}, "verdicts": (), "task": ""},
        {"latents": {}},
        {"latents": {}, "embeddings": {}},
        {"figures": {}},
        {"splits": (), "rejected": None, "cohort": {}},
        {"reconstruction": None, "notes": ()},
    ],
)
def test_a_missing_part_is_left_out(tmp_path, missing):
    read(write_report(tmp_path, replace(full(), **missing)))


def test_the_verdict_comes_first_and_admits_the_loss(tmp_path):
    _, text = read(write_report(tmp_path, full()))
    loss = "held-out patients: loses to gradient-boosted trees by 0.031 [0.010, 0.052] AUROC."
    assert loss in text
    assert text.index(loss) < text.index("Beside the baselines")
    assert 'class="verdict bad"' in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("split", ["train", "tuning"])
def test_a_split_that_was_used_before_is_reported_with_a_caution(tmp_path, split):
    label = {f"{split}/auroc": 0.9}
    for name in (split, "held_out"):
        context = replace(full(), split=name, metrics={**full().metrics, **label})
        _, text = read(write_report(tmp_path, context))
        write_results(tmp_path, context)
        told = "Caution: " in text, "Caution: " in (tmp_path / "results.md").read_text()
        assert told == ((True, True) if name == split else (False, False))


def test_a_collapsed_latent_is_bad_news_even_for_a_model_that_wins(tmp_path):
    dead = latent_diagnostics(np.zeros((20, 4)), np.zeros((20, 4)))
    winner = ("beats gradient-boosted trees by 0.020 [0.010, 0.030] AUROC",)
    context = replace(full(), verdicts=winner, latents={"z": dead})
    _, text = read(write_report(tmp_path, context))
    assert "The latent z is collapsed: KL is 0.000 nats a row" in text
    assert 'class="verdict bad"' in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("verdict", "tone"),
    [("beats PCA by 0.1", "good"), ("cannot be told apart from PCA", "mixed"), ("loses", "bad")],
)
def test_the_tone_follows_the_verdict(tmp_path, verdict, tone):
    write_report(tmp_path, replace(full(), verdicts=(verdict,)))
    assert f'class="verdict {tone}"' in (tmp_path / "report.html").read_text()


def test_text_from_outside_is_escaped(tmp_path):
    source = write_report(tmp_path, full()).read_text()
    assert "<cohort>" not in source
    assert "name: &lt;b&gt;" in source


def test_writing_a_report_twice_gives_the_same_bytes(tmp_path):
    first = write_report(tmp_path / "a", full()).read_bytes()
    assert write_report(tmp_path / "b", full()).read_bytes() == first


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
    assert str(table["prediction_time"][1].as_py()) == "2010-01-02 12:30:00"


def with_task_parts():
    groups = Table(
        ("Group", "AUROC, this model", "Verdict"),
        (("sex: female", Interval(0.8, 0.7, 0.9), "loses"), ("sex: <male>", "too few", "")),
        "By group.",
    )
    hours = Table(("Hour", "AUROC"), (("6 h", Interval(0.7, 0.6, 0.8)),))
    sections = {"By subgroup: who is ranked well": groups, "By hour": hours}
    gain = "baseline/trees_and_model/held_out"
    found = metrics() | {f"{gain}/auroc": 0.88, f"{gain}/n": 800.0}
    for end, value in (("", 0.01), ("/low", -0.001), ("/high", 0.02)):
        found[f"{gain}/auroc_gain{end}"] = value
    found |= {"baseline/gbm/held_out/n": 800.0}
    return replace(full(), sections=sections, metrics=found)


def test_hours_and_subgroups_follow_the_comparison(tmp_path):
    path = write_report(tmp_path, with_task_parts())
    _, text = read(path)
    order = ["Beside the baselines", "By hour", "By subgroup: who", "Did it collapse?"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "0.800 0.700–0.900" in text
    assert "sex: &lt;male&gt;" in path.read_text()
    assert '<td class="word bad">loses</td>' in path.read_text()


def test_the_average_with_the_trees_is_shown_by_its_gain(tmp_path):
    _, text = read(write_report(tmp_path, with_task_parts()))
    assert "The trees and this model, averaged" in text
    assert "no gain shown" in text
    assert "The gradient-boosted trees win on: AUROC (-0.031 [-0.052, -0.010])" in text


def test_the_results_are_a_page_of_markdown_and_a_csv(tmp_path):
    write_results(tmp_path, with_task_parts())
    text = (tmp_path / "results.md").read_text()
    assert "mortality on held_out: 800 rows, 14.0% positive." in text
    assert "loses -0.031 [-0.052, -0.010]" in text
    assert "The gradient-boosted trees win on: AUROC" in text
    for heading in ("Beside the baselines", "By hour", "By subgroup: who is ranked well"):
        assert f"## {heading}\n" in text
    assert "held_out,all,gbm,auroc,0.871," in (tmp_path / "results.csv").read_text()


def test_the_results_of_a_cohort_without_labels_say_so(tmp_path):
    write_results(tmp_path, ReportContext(title="bare"))
    assert "no labels: nothing was compared" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "results.csv").read_text().count("\n") == 1
