import dataclasses
import json

import pytest

import ehr_ray
from ehr_ray.commands.export.card import model_card, task_of


@pytest.fixture(scope="module")
def card(evaluated_run):
    return model_card(ehr_ray.load(evaluated_run), "outcome", {"model.safetensors": "ab12"})


def section(card, title):
    return card.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_the_results_are_those_of_the_run_with_their_intervals(card, evaluated_run):
    results = section(card, "Results")
    metrics = json.loads((evaluated_run / "metrics.json").read_text())
    brier = (metrics[f"held_out/brier{end}"] for end in ("", "/low", "/high"))
    assert "{:.3f} [{:.3f}, {:.3f}]".format(*brier) in results
    assert "### By subgroup: who is ranked well" in results
    assert "\n# " not in results


def test_the_card_and_the_report_tell_how_large_the_model_is(card, evaluated_run):
    size = sum(p.numel() for p in ehr_ray.load(evaluated_run).model.parameters())
    assert f"with {size:,} parameters" in card
    page = " ".join((evaluated_run / "report.html").read_text().split())
    assert "parameters" in page
    assert f"{size:,}" in page


def test_the_card_tells_how_many_models_answer(tiny_run, tiny_experiment):
    model = ehr_ray.load(tiny_run)
    changes = {"task": {"name": "outcome"}, "train.seeds": 3}
    several = dataclasses.replace(model, experiment=tiny_experiment("set_vae", changes))
    assert "trained for the task outcome as 3 models that are averaged" in model_card(
        several, None, {}
    )
    alone = tiny_experiment("set_vae", {"task": {"name": "outcome"}})
    assert "averaged" not in model_card(dataclasses.replace(model, experiment=alone), None, {})


def test_the_data_are_those_of_the_cohort(card):
    data = section(card, "Data")
    assert "Cohort: synthetic." in data
    assert "| Split | Patients | Labels of outcome | Positive |" in data
    assert data.count("\n| train |") == data.count("\n| held_out |") == 1
    rows = [line.split(" | ") for line in data.splitlines() if line.startswith("| t")]
    assert sum(int(row[1]) for row in rows) < 60


def test_what_it_is_not_for_follows_from_the_run(card):
    said = section(card, "It must not be used for")
    assert "no medical device" in said
    assert "Groups marked" in said  # five held-out patients: every group is too small
    assert "was not evaluated" not in said
    assert "| model.safetensors | ab12 |" in section(card, "Files")


def test_the_task_is_the_one_that_was_evaluated(evaluated_run, tiny_run):
    assert task_of(ehr_ray.load(evaluated_run)) == "outcome"
    assert task_of(ehr_ray.load(tiny_run)) is None


def test_without_the_cohort_the_card_says_so(evaluated_run, monkeypatch):
    model = ehr_ray.load(evaluated_run)
    monkeypatch.setattr(type(model.experiment), "cohort", evaluated_run / "gone")
    data = section(model_card(model, "outcome", {}), "Data")
    assert "The cohort was not at hand" in data
    assert "| Split |" not in data


def test_the_card_says_how_values_are_scaled_and_counts_no_labels_of_no_task(tiny_run):
    model = ehr_ray.load(tiny_run)
    card = model_card(model, None, {})
    assert model.vocabulary.scaling == "robust"
    assert "scaled by the median and interquartile range in `vocabulary.parquet`" in card
    standard = dataclasses.replace(model.vocabulary, scaling="standard")
    plain = model_card(dataclasses.replace(model, vocabulary=standard), None, {})
    assert "scaled by the mean and standard deviation in `vocabulary.parquet`" in plain
    assert "| Split | Patients |\n" in section(card, "Data")
    assert "\\`" not in card
