from dataclasses import dataclass

import pytest
from pydantic import TypeAdapter, ValidationError

from ehr_ray.config.messages import message, not_finite, outside, unknown
from ehr_ray.config.schedules import Constant, Cycle, Ramp


@dataclass(frozen=True, kw_only=True)
class Section:
    share: tuple[float, float] = (0.1, 0.25)
    maybe: tuple[int, int] | None = (3, 4)
    many: tuple[str, ...] = ()

    def __post_init__(self):
        if self.share[0] > self.share[1]:
            raise ValueError(f"share {list(self.share)} must be smallest, largest")


def told(value):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Section).validate_python(value)
    return [message(Section, item, "model") for item in caught.value.errors()]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (0.3, "model.share: must be a list of 2, as in [0.1, 0.25] (got 0.3)"),
        ([0.3], "model.share: must be a list of 2, as in [0.1, 0.25]"),
        ([1, 2, 3], "model.share: must be a list of 2, as in [0.1, 0.25] (got [1, 2, 3])"),
    ],
)
def test_a_pair_that_is_none_gets_an_example_of_one(value, line):
    assert told({"share": value}) == [line]


def test_a_pair_that_may_be_null_and_a_list_of_any_length_are_told_apart():
    assert told({"maybe": 3}) == ["model.maybe: must be a list of 2, as in [3, 4] (got 3)"]
    assert told({"many": "x"}) == ["model.many: must be a list, as in [x]"]


def test_an_entry_is_named_by_its_place():
    (line,) = told({"share": [0.1, "y"]})
    assert line.startswith("model.share.1: input should be a valid number")


def test_a_check_over_fields_does_not_show_the_whole_section():
    assert told({"share": [2, 1]}) == ["model.share [2.0, 1.0] must be smallest, largest"]


def test_an_unknown_key_has_the_nearest_or_all():
    assert unknown("a.shre", "shre", ["share", "many"]) == (
        "a.shre: unknown key; did you mean share?"
    )
    assert unknown("a.zz", "zz", ["share", "many"]) == "a.zz: unknown key; known: share, many"


def test_numbers_that_are_not_finite_are_found_at_any_depth():
    values = {"a": {"b": [1.0, float("inf")]}, "c": float("nan"), "d": 3, "e": "inf", "f": None}
    assert list(not_finite(values, "model")) == [
        "model.a.b.1: must be a finite number (got inf)",
        "model.c: must be a finite number (got nan)",
    ]


@pytest.mark.parametrize(
    ("schedule", "lines"),
    [
        (Constant(value=1.0), []),
        (Constant(value=1.5), ["schedules.m: must be between 0 and 1 (got 1.5)"]),
        (
            Ramp(start=-0.5, end=1.0, steps=3),
            ["schedules.m.start: must be between 0 and 1 (got -0.5)"],
        ),
        (Cycle(start=0.5, end=2.0, steps=3), ["schedules.m.end: must be between 0 and 1 (got 2)"]),
    ],
)
def test_a_schedule_stays_within_its_limits(schedule, lines):
    schedules = {"m": schedule, "free": Constant(value=99.0)}
    assert list(outside(schedules, {"m": (0.0, 1.0)})) == lines
