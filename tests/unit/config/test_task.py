import pytest

from ehr_ray.errors import ConfigError
from ehr_ray.experiment import dump, parse

RAW = {"family": "set_vae", "name": "x", "data": {"cohort": "c"}}


def with_task(**task):
    return parse({**RAW, "task": {"name": "mortality", **task}})


def test_a_task_round_trips_and_is_absent_by_default():
    assert parse(RAW).task is None
    experiment = with_task(hours=[6, 12], class_weight="balanced", members=3)
    assert experiment.task.hours == (6.0, 12.0)
    assert parse(dump(experiment)) == experiment


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"hours": [0]}, r"task\.hours\.0"),
        ({"loss": "mse"}, r"task\.loss"),
        ({"class_weight": "heavy"}, r"task\.class_weight"),
        ({"label_ratio": 0}, r"task\.label_ratio"),
        (
            {"start_at_rate": True, "statistics": {}, "hidden": 4},
            r"task\.start_at_rate true with statistics: heads start there anyhow; drop it",
        ),
        (
            {"start_at_rate": True, "kind": "regression"},
            r"task\.start_at_rate true of a regression: it starts at the mean; drop it",
        ),
        (
            {"start_at_rate": True, "class_weight": "balanced"},
            r"task\.start_at_rate true with class_weight: such rows have another rate; use none",
        ),
        ({"focal": 1}, r"task\.focal: unknown key; did you mean focal_gamma"),
    ],
)
def test_a_wrong_task_is_refused_with_its_path(task, message):
    with pytest.raises(ConfigError, match=message):
        with_task(**task)


def test_a_weight_may_be_a_number():
    assert with_task(class_weight=3.5).task.class_weight == 3.5
