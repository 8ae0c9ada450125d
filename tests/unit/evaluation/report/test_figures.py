import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from ehr_ray.evaluation.report import embedding_map, figures


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def drawn(figure):
    """Layout and rendering fail late, so each figure is really drawn."""
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    return figure.axes


def history(rows=5):
    step = np.arange(1, rows + 1)
    return pd.DataFrame(
        {
            "step": step,
            "epoch": step / 2,
            "seconds": step * 1.0,
            "lr": 1e-3 / step,
            "beta": 0.2,
            "unused": 0.0,
            "grad_norm": 1.0,
            "train/recon": 1 / step,
            "val/recon": 2 / step,
            "train/objective": 3 / step,
            "val/kl": np.nan,
        }
    )


def test_loss_curves_have_a_panel_for_each_term_and_one_of_the_schedules():
    axes = drawn(figures.loss_curves(history()))
    assert [a.get_title(loc="left") for a in axes] == ["objective", "recon", "schedules"]
    assert legend(axes[1]) == ["train", "validation"]
    assert legend(axes[2]) == ["lr (max 0.001)", "beta (max 0.2)"]


def test_a_single_report_is_visible_as_a_point():
    axes = drawn(figures.loss_curves(history(1)))
    assert all(line.get_marker() == "o" for line in axes[0].lines)


def test_a_history_without_losses_is_an_empty_figure():
    drawn(figures.loss_curves(pd.DataFrame({"step": [1, 2]})))


def test_kl_bars_are_sorted_and_active_units_counted():
    kl, active = np.array([0.1, 3.0, 1.0]), np.array([False, True, True])
    axis = drawn(figures.kl_per_dimension(kl, active))[0]
    assert [p.get_height() for p in axis.patches] == [3.0, 1.0, 0.1]
    assert legend(axis) == ["active (2 of 3)", "not active"]
    assert axis.get_title(loc="right") == "4.1 nats a row in total"


def test_a_long_reconstruction_is_cut_and_says_so():
    token = {"variable": "HR", "value": 1.0, "reconstructed": 0.5, "masked": True}
    example = {"title": "patient 1", "tokens": [token] * 20}
    axes = drawn(figures.reconstruction([example, {"title": "short", "tokens": [token]}]))
    assert axes[0].get_title(loc="left") == "patient 1 (+4 more)"
    assert axes[1].get_title(loc="left") == "short"
    drawn(figures.reconstruction([]))


def test_a_code_with_dollars_is_drawn_as_it_is():
    """Between two dollars matplotlib reads a formula, and stops where it is none."""
    token = {"variable": r"$\frac{$", "value": 1.0, "reconstructed": 0.5, "masked": True}
    axis = drawn(figures.reconstruction([{"title": "t", "tokens": [token]}]))[0]
    assert axis.get_yticklabels()[0].get_text() == r"\$\frac{\$"


def test_curves_name_every_model_with_its_area(rng):
    label = rng.random(300) < 0.3
    probabilities = {"model": np.clip(label * 0.3 + rng.random(300) * 0.7, 0, 1)}
    probabilities["gbm"] = rng.random(300)
    roc, pr = drawn(figures.roc_pr(label, probabilities))
    area = roc_auc_score(label, probabilities["model"])
    assert legend(roc)[0] == f"{area:.3f}  this model"
    assert legend(pr)[1].endswith("gradient-boosted trees")


def test_calibration_is_drawn_with_and_without_the_uncalibrated_line(rng):
    label, p = rng.random(200) < 0.2, rng.random(200)
    assert legend(drawn(figures.calibration(label, p, p / 2))[0]) == ["before", "after calibration"]
    assert legend(drawn(figures.calibration(label, p))[0]) == ["after calibration"]
    drawn(figures.calibration(label[:3], p[:3]))


def test_every_captioned_figure_exists():
    drawn_by = {**vars(embedding_map), **vars(figures)}
    assert all(callable(drawn_by[name]) for name in figures.CAPTIONS)
