from types import SimpleNamespace

import pytest

from ehr_ray.config.schedules import Cycle
from ehr_ray.config.sections import TrainConfig
from ehr_ray.family import Select
from ehr_ray.train.checkpoint import Progress
from ehr_ray.train.selection import cycles_without_better, update_best, update_others


def choosing(select=None):
    return SimpleNamespace(select=select or Select("m"))


@pytest.mark.parametrize(
    ("best", "step", "patience", "over"),
    [(3, 7, 1, False), (3, 8, 1, True), (4, 8, 1, True), (5, 8, 1, False), (3, 11, 2, False)],
)
def test_cycles_are_counted_from_that_of_the_best(best, step, patience, over):
    experiment = SimpleNamespace(
        train=TrainConfig(patience_cycles=patience), schedules={"beta": Cycle(end=1.0, steps=4)}
    )
    progress = Progress(step=step, best_step=best)
    assert cycles_without_better(experiment, progress, 10) is over


@pytest.mark.parametrize(
    ("mode", "values", "better"),
    [
        ("min", [3.0, 2.0, 2.0, 1.0], [True, True, False, True]),
        ("max", [3.0, 2.0, 4.0, 4.0], [True, False, True, False]),
        ("min", [float("nan"), 2.0, float("nan")], [False, True, False]),
    ],
)
def test_the_best_report_is_chosen_by_the_families_metric(mode, values, better):
    family, progress = choosing(Select("m", mode)), Progress()
    assert [update_best(progress, family, {"m": v}, TrainConfig()) for v in values] == better
    assert not progress.finished


def test_a_plateau_is_counted_from_the_last_best_and_from_the_last_reduction():
    family, progress = choosing(), Progress()
    plan = TrainConfig(lr_schedule="plateau", plateau_patience=1)
    key, seen = family.select.metric, []
    for value in [3.0, 4.0, 4.0, 4.0, 4.0, 2.0, 5.0, 5.0]:
        update_best(progress, family, {key: value}, plan)
        seen.append(progress.reductions)
    assert seen == [0, 0, 1, 1, 2, 2, 2, 3]  # torch's ReduceLROnPlateau with patience 1


def test_other_bests_are_kept_by_their_own_metrics():
    also = {"low": Select("a", "min"), "high": Select("b", "max")}
    progress = Progress()
    rows = [{"a": 2.0, "b": 2.0}, {"a": 1.0, "b": 1.0}, {"a": 3.0}]
    assert [update_others(progress, also, row) for row in rows] == [["low", "high"], ["low"], []]
    assert progress.bests == {"low": 1.0, "high": 2.0}
