from ehr_ray.evaluation.report.comparison import comparison
from ehr_ray.evaluation.report.page import Page, render


def test_a_model_and_its_baselines_have_numbers_differences_and_a_strip(task_context):
    table = comparison(task_context)[0].blocks[0]
    model, trees, blend = table.rows
    assert [row.is_model for row in table.rows] == [True, False, False]
    assert (model.estimates[0].value, model.estimates[0].low) == ("0.840", "0.810")
    assert not model.estimates[0].is_best
    assert blend.estimates[0].is_best
    assert model.gaps == [None, None]
    assert (trees.gaps[0].value, trees.gaps[0].tone) == ("-0.031", "bad")
    assert trees.strip.text == "0.871, from 0.841 to 0.901"
    assert len(table.columns) == len(model.estimates) + len(model.gaps)


def test_without_metrics_nothing_is_compared(task_context):
    assert comparison(type(task_context)(title="bare")) == []


def test_the_average_with_the_trees_is_shown_by_its_gain(task_context, parse):
    cards = comparison(task_context)
    page = Page(title="t", facts={}, tone="good", verdict=["v"], cards=cards)
    _, text = parse(render(page))
    assert "The trees and this model, averaged" in text
    assert "no gain shown" in text
    assert "The gradient-boosted trees win on: AUROC (-0.031 [-0.052, -0.010])" in text
