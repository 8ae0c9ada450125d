import math

import pandas as pd
import pytest

from ehr_ray.evaluation.report.sweep_page import table_lines, verdict, write_sweep


def trials():
    return pd.DataFrame(
        {
            "trial": [2, 0, 1],
            "status": ["finished", "finished", "failed"],
            "score": [0.5, 0.7, math.nan],
            "collapsed": [False, True, False],
            "untrained": False,
            "step": [10, 10, 3],
            "train.lr": [1e-3, 1e-2, 1e30],
            "model.mask": ["a", None, ["b", "<i>"]],
            "error": ["", "", "recon is not finite"],
        }
    )


BEST = {"trial": 2, "score": 0.5}


def written(folder, frame, best):
    return write_sweep(
        folder,
        frame,
        ["train.lr", "model.mask"],
        metric="val/objective",
        mode="min",
        curves={},
        best=best,
        about={"family": "set_vae"},
        config="name: <sweep>",
    )


def test_a_search_leaves_a_file_a_page_and_lines(tmp_path):
    lines = written(tmp_path, trials(), BEST)
    frame = pd.read_parquet(tmp_path / "trials.parquet")
    assert frame["trial"].tolist() == [2, 0, 1]
    assert frame["model.mask"].tolist()[2] == "['b', '<i>']"
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64") == 2
    assert "http" not in page.split("</style>")[1]
    assert "&lt;i&gt;" in page
    assert "<i>" not in page
    assert "recon is not finite" in page
    assert "Fewer than 8 trials" in page
    assert (tmp_path / "figures" / "parallel.png").is_file()
    assert any(line.startswith("best: trial 2, val/objective 0.5") for line in lines)


def test_the_verdict_names_what_went_wrong():
    tone, lines = verdict(trials(), BEST, "m")
    assert tone == "mixed"
    assert "1 of 3 trials failed" in lines
    assert "1 of 3 latents collapsed; these rank last" in lines
    assert "judge the trial on held-out patients" in lines[-1]


@pytest.mark.parametrize(
    ("score", "status", "said"),
    [
        (math.nan, "failed", "no trial has a score: all failed"),
        (math.nan, "finished", "no trial has a score: m is undefined"),
        (1.0, "finished", "no trial is fit to be the best: 3 collapsed; train longer, or"),
    ],
)
def test_without_a_best_the_verdict_is_bad(score, status, said):
    frame = trials().assign(score=score, status=status, collapsed=True)
    tone, lines = verdict(frame, None, "m")
    assert tone == "bad"
    assert lines[0].startswith(said)


def test_trials_that_are_new_or_were_stopped_are_told_from_those_that_collapsed():
    status = ["finished", "finished", "stopped"]
    frame = trials().assign(score=1.0, status=status, untrained=[True, False, False])
    _, lines = verdict(frame, None, "m")
    assert lines[0].startswith(
        "no trial is fit to be the best: 1 untrained, 1 collapsed, 1 stopped early; train longer"
    )
    assert any(line.startswith("1 of 3 are untrained") for line in lines)
    assert table_lines(frame, [], "m")[1].split()[1:3] == ["finished,", "untrained"]


def test_the_table_marks_collapsed_and_failed_trials():
    head, *rows = table_lines(trials(), ["train.lr"], "m")
    assert head.split() == ["trial", "status", "m", "lr"]
    assert rows[1].split()[1:3] == ["finished,", "collapsed"]
    assert rows[2].split()[:3] == ["1", "failed", "-"]


def test_a_long_table_is_cut_on_the_screen():
    frame = pd.concat([trials()] * 5, ignore_index=True)
    assert table_lines(frame, ["train.lr"], "m")[-1] == "... and 5 more in trials.parquet"


def test_equal_scores_are_said_to_be_equal():
    frame = trials().assign(score=[0.5, 0.5, 0.5])  # the second one has collapsed
    _, lines = verdict(frame, BEST, "m")
    assert "2 trials share that score; the first of them is taken" in lines
    assert not any("share that score" in line for line in verdict(trials(), BEST, "m")[1])
