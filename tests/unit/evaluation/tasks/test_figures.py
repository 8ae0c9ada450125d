from ehr_ray.evaluation.table import Interval
from ehr_ray.evaluation.tasks import figures
from ehr_ray.evaluation.tasks.figures import Estimate, by_step, forest

A = Interval(0.8, 0.75, 0.85)
B = Interval(0.7, 0.65, 0.72)


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_early_warning_has_a_panel_a_metric_and_a_line_a_model():
    found = {m: {"model": [B, A], "gbm": [A, A]} for m in ("auroc", "auprc")}
    figure = by_step(["6", "48"], "hours", found)
    figure.canvas.draw()
    assert [axis.get_ylabel() for axis in figure.axes] == ["AUROC", "AUPRC"]
    first = figure.axes[0]
    assert legend(figure) == ["this model", "gradient-boosted trees"]
    assert [tick.get_text() for tick in first.get_xticklabels()] == ["6", "48"]
    assert list(first.containers[0].lines[0].get_ydata()) == [0.7, 0.8]


def test_one_hour_and_an_undefined_bound_can_be_drawn():
    point = Interval(0.8, float("nan"), float("nan"))
    by_step(["6"], "hours", {"auroc": {"model": [point]}}).canvas.draw()


def test_the_forest_has_a_row_a_group_in_order_and_the_model_as_reference():
    rows = [Estimate("everybody", {"model": A, "gbm": B}), Estimate("sex: female", {"model": B})]
    figure = forest(rows, "AUROC")
    figure.canvas.draw()
    (axis,) = figure.axes
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["everybody", "sex: female"]
    assert axis.get_ylim()[0] > 1 > 0 > axis.get_ylim()[1]
    assert len(axis.containers[0].lines[0].get_xdata()) == 2
    assert len(axis.containers[1].lines[0].get_xdata()) == 1


def test_every_captioned_figure_is_named_in_words():
    assert set(figures.CAPTIONS) == {"early_warning", "few_labels", "subgroups"}
