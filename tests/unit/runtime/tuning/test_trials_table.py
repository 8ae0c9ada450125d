import math

import pytest

from ehr_ray.family import Select
from ehr_ray.runtime.training.ranking import MEASURES
from ehr_ray.runtime.tuning.trial import trial_dir, write_trial
from ehr_ray.runtime.tuning.trials_table import read_sweep
from ehr_ray.train import history


def test_the_table_ranks_collapsed_trials_after_the_others_and_failed_ones_last(tmp_path):
    given = [("finished", 3.0, 0.0), ("finished", 1.0, 1.0), ("failed", 0.1, 0.0)]
    given += [("stopped", 2.0, 0.5)]
    for number, (status, value, collapsed) in enumerate(given):
        folder = trial_dir(tmp_path, number)
        write_trial(folder, number, {"train.lr": number}, status, "why" * (status == "failed"))
        row = {"step": 4, "epoch": 1.0, "val/objective": value}
        history.append(folder, row)
        measured = {"step": 4, "epoch": 1.0, "score": -value, "latent/collapsed": collapsed}
        history.append(folder, measured, MEASURES)
    sweep = read_sweep(tmp_path, Select())
    assert sweep.frame["trial"].tolist() == [3, 0, 1, 2]
    assert sweep.frame["collapsed"].tolist() == [False, False, True, False]
    assert sweep.best["trial"] == 3
    assert sweep.frame["error"].tolist()[-1] == "why"
    assert math.isnan(sweep.frame["score"].tolist()[-1])
    none = read_sweep(tmp_path / "nothing", Select())
    assert none.best is None


@pytest.mark.parametrize("flag", ["latent/collapsed", "latent/untrained"])
def test_a_trial_that_was_stopped_is_not_the_best_where_all_that_ended_are_unfit(tmp_path, flag):
    """It was stopped as the worst, and would be the best as the least known."""
    for number, (status, value, unfit) in enumerate(
        [("finished", 1.0, 1.0), ("stopped", 9.0, 0.0), ("finished", 2.0, 1.0)]
    ):
        folder = trial_dir(tmp_path, number)
        write_trial(folder, number, {"train.lr": number}, status)
        row = {"step": 400, "epoch": 1.0, "val/objective": value}
        history.append(folder, row)
        history.append(folder, {"step": 400, "epoch": 1.0, flag: unfit}, MEASURES)
    sweep = read_sweep(tmp_path, Select())
    assert sweep.frame["trial"].tolist() == [1, 0, 2]
    assert sweep.best is None


def test_a_row_tells_how_far_a_trial_went_and_which_report_was_kept(tmp_path):
    """The state says which report was best; where it is damaged the last one stands for it."""
    folder = trial_dir(tmp_path, 0)
    write_trial(folder, 0, {"train.lr": 0.1}, "finished")
    for step, value in ((4, 1.0), (8, 2.0)):
        history.append(folder, {"step": step, "epoch": step / 4, "val/objective": value})
    state = folder / "state" / "000000000008"
    state.mkdir(parents=True)
    (state / "model.safetensors").write_bytes(b"cut")
    (row,) = read_sweep(tmp_path, Select()).frame.to_dict("records")
    assert (row["step"], row["epoch"], row["best_step"], row["score"]) == (8, 2.0, 8, 2.0)
