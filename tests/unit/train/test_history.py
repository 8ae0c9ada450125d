import os

import pytest

from ehr_ray.train import history


def test_rows_are_kept_in_order_with_columns_that_come_later(tmp_path):
    history.append(tmp_path, {"step": 2, "epoch": 0.5, "a": 1.0})
    history.append(tmp_path, {"step": 4, "epoch": 1, "a": 2.0, "b": 3.0})
    frame = history.read(tmp_path)
    assert frame["step"].tolist() == [2, 4]
    assert frame["a"].tolist() == [1.0, 2.0]
    assert frame["b"].isna().tolist() == [True, False]
    assert str(frame["step"].dtype) == "int64"
    assert history.read(tmp_path, before=4)["step"].tolist() == [2]


def test_rows_of_the_same_or_a_later_step_are_replaced(tmp_path):
    for step in (2, 4, 6):
        history.append(tmp_path, {"step": step, "epoch": 0, "a": 0.0})
    history.append(tmp_path, {"step": 4, "epoch": 0, "a": 9.0})
    assert history.read(tmp_path)[["step", "a"]].values.tolist() == [[2, 0.0], [4, 9.0]]


def test_a_run_without_history_is_empty(tmp_path):
    assert len(history.read(tmp_path)) == 0
    assert len(history.read(tmp_path, before=3)) == 0


def test_a_kill_while_writing_leaves_the_old_history(tmp_path, monkeypatch):
    history.append(tmp_path, {"step": 2, "epoch": 0})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        history.append(tmp_path, {"step": 4, "epoch": 0})
    assert history.read(tmp_path)["step"].tolist() == [2]
