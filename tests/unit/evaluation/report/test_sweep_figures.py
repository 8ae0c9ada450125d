import math

import numpy as np
import pandas as pd
import pytest

from ehr_ray.evaluation.report import sweep_figures as figures


def trials(number=24, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "trial": range(number),
            "status": "finished",
            "schedules.beta.end": np.exp(rng.uniform(-4, 0, number)),
            "schedules.free_bits": rng.uniform(0, 0.2, number),
            "model.mask": [("future", "blocks")[i % 2] for i in range(number)],
            "error": "",
        }
    )
    frame["score"] = np.log(frame["schedules.beta.end"]) + 0.01 * rng.normal(size=number)
    frame["latent/kl_per_row"] = 5 / frame["schedules.beta.end"].clip(lower=0.1)
    frame["latent/active_share"] = 0.5
    frame["collapsed"] = frame["schedules.beta.end"] > 0.7
    frame["untrained"] = False
    return frame


PATHS = ("schedules.beta.end", "schedules.free_bits", "model.mask")


@pytest.mark.parametrize(("mode", "sign"), [("min", -1), ("max", 1)])
def test_what_decides_the_score_is_what_mattered(mode, sign):
    found = figures.importance(trials(), PATHS, mode)
    assert max(found.share, key=found.share.get) == "schedules.beta.end"
    assert sum(found.share.values()) == pytest.approx(1)
    assert found.explained > 0.5
    assert found.rank["schedules.beta.end"] * sign > 0.95
    assert math.isnan(found.rank["model.mask"])


def test_scores_without_a_cause_explain_nothing_of_trials_not_seen():
    frame = trials(40)
    frame["score"] = np.random.default_rng(1).normal(size=40)
    assert figures.importance(frame, PATHS, "min").explained < 0.2


def test_few_scored_trials_say_nothing_of_importance():
    frame = trials(12)
    frame.loc[:5, "score"] = math.nan
    assert figures.importance(frame, PATHS, "min") is None


def test_every_trial_is_a_line_and_the_best_is_drawn_thickest():
    figure = figures.parallel(trials(), PATHS, "val/objective", "min", 3)
    (axis,) = figure.axes
    lines = [line for line in axis.lines if len(line.get_xdata()) > 2]
    assert len(lines) == 24
    dashed = [line for line in lines if line.get_linestyle() == "--"]
    assert len(dashed) == int(trials()["collapsed"].sum())
    assert max(lines, key=lambda line: line.get_linewidth()).get_color() == figures.ORANGE
    labels = [text.get_text() for text in axis.get_xticklabels()]
    assert labels == ["beta.end", "free_bits", "mask", "val/objective"]


def test_a_low_score_is_at_the_top_where_low_is_better():
    frame = trials(4)
    (axis,) = figures.parallel(frame, PATHS, "m", "min", None).axes
    lines = [line for line in axis.lines if len(line.get_xdata()) > 2]
    tops = sorted(lines, key=lambda line: line.get_ydata()[-1])
    assert tops[-1].get_ydata()[-1] == 1.0
    assert tops[-1].get_ydata()[0] == 0.0  # the lowest beta has the lowest score


def test_failed_trials_without_a_score_are_drawn_to_their_last_value():
    frame = trials(4)
    frame.loc[0, "score"] = math.nan
    (axis,) = figures.parallel(frame, PATHS, "m", "min", None).axes
    assert sorted(len(line.get_xdata()) for line in axis.lines)[-4:] == [3, 4, 4, 4]


@pytest.mark.parametrize(
    ("paths", "label"),
    [(PATHS, "free_bits"), (PATHS[:1], "KL, nats a row"), (PATHS[1:], "KL, nats a row")],
)
def test_collapse_is_mapped_over_what_was_swept(paths, label):
    figure = figures.collapse(trials()[[*paths, "collapsed", *KL]], paths)
    axis = figure.axes[0]
    assert axis.get_ylabel() == label
    marked = [len(marks.get_offsets()) for marks in axis.collections if hasattr(marks, "get_sizes")]
    assert sum(marked[-2:]) == 24
    assert marked[-1] == int(trials()["collapsed"].sum())


KL = ("latent/kl_per_row", "latent/active_share")


def test_there_is_no_map_without_beta_or_without_a_latent():
    frame = trials()
    assert figures.collapse(frame, ("model.mask",)) is None
    assert figures.collapse(frame.drop(columns=list(KL)), PATHS) is None


def test_curves_leave_out_reports_without_a_score():
    rows = pd.DataFrame({"step": [1, 2, 3], "score": [-1e30, 0.5, 0.6]})
    (axis,) = figures.curves({0: rows, 1: rows.iloc[:0]}, 0).axes
    (line,) = axis.lines
    assert line.get_ydata().tolist() == [0.5, 0.6]


def test_bars_are_sorted_by_importance():
    found = figures.Importance({"a": 0.1, "train.lr": 0.9}, {"a": 0.0, "train.lr": 0.0}, 0.3)
    (axis,) = figures.bars(found).axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "lr"]
