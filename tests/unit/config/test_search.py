import numpy as np
import pytest

from ehr_ray.config.search import (
    Choice,
    LogUniform,
    Uniform,
    draw,
    ends,
    grid,
    parse_domain,
    paths,
    shuffled,
    space_of,
)
from ehr_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("raw", "domain"),
    [
        ([1, "a", None], Choice((1, "a", None))),
        ({"choice": [[1, 2], 3]}, Choice(([1, 2], 3))),
        ({"uniform": [-1, 2]}, Uniform(-1.0, 2.0)),
        ({"loguniform": ["1e-4", 3.0e-3]}, LogUniform(1e-4, 3e-3)),
    ],
)
def test_plain_data_becomes_a_domain(raw, domain):
    assert parse_domain(raw, "search.x") == domain


@pytest.mark.parametrize(
    "raw",
    [
        {"choice": 3},
        {"uniform": [1]},
        {"uniform": [2, 1]},
        {"uniform": [1, 1]},
        {"uniform": ["low", "high"]},
        {"uniform": [None, 1]},
        {"uniform": [0, float("inf")]},
        {"uniform": [0, 1], "choice": [1]},
        {},
        3,
        None,
        "uniform",
    ],
)
def test_other_data_is_refused_with_its_path(raw):
    with pytest.raises(ConfigError, match=r"search\.x: not a search domain"):
        parse_domain(raw, "search.x")


def test_nested_and_dotted_paths_are_the_same():
    nested = {"train": {"lr": [1, 2]}, "schedules": {"beta": {"end": {"uniform": [0, 1]}}}}
    assert dict(paths(nested)) == {"train.lr": [1, 2], "schedules.beta.end": {"uniform": [0, 1]}}
    assert dict(paths({"a.b": {"choice": [{"uniform": [0, 1]}]}}))["a.b"]


FAMILY = {"train.lr": LogUniform(1e-4, 1e-2), "model.latent": Choice((8, 16))}


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ({}, FAMILY),
        ({"train.lr": "default"}, {"train.lr": FAMILY["train.lr"]}),
        ({"model.latent": [4]}, {"model.latent": Choice((4,))}),
        ({"train.lr": "default", "model.latent": None}, {"train.lr": FAMILY["train.lr"]}),
    ],
)
def test_a_config_replaces_or_narrows_the_family_s_space(search, found):
    assert space_of(search, FAMILY) == found


def test_a_choice_written_without_a_point_is_a_number():
    """YAML 1.1 reads 1e-3 as text."""
    values = parse_domain(["1e-3", 0.1, "1.0e+9", "e3", "1e"], "search.x").values
    assert values == (1e-3, 0.1, 1e9, "e3", "1e")


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"model.width": "default"}, r"model\.width: the family searches no such path; it has"),
        ({"cluster.num_workers": [1, 2]}, "cannot vary between trials"),
        ({"name": ["a"]}, "cannot vary between trials"),
        ({"data.cohort": ["a", "b"]}, "cannot vary between trials"),
        ({"a.b": {"loguniform": [0, 1]}}, "its low must be above 0"),
        ({"train.lr": None}, "nothing to vary"),
        ({"train.lr": 3}, "not a search domain"),
        ({"train.lr": []}, "a list without a choice"),
        ({"train.lr": {"choice": []}}, "a list without a choice"),
        ({"train.lr": {"lognormal": [1, 2]}}, r"train\.lr\.lognormal: .* did you mean loguniform"),
        ({"train": {"lr": {"choices": [1, 2]}}}, r"train\.lr\.choices: .* did you mean choice"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(search, message):
    with pytest.raises(ConfigError, match=message):
        space_of(search, FAMILY)


def test_a_draw_is_a_function_of_seed_and_number_and_stays_in_its_domain():
    samples = [draw(FAMILY, 3, number) for number in range(200)]
    assert samples == [draw(FAMILY, 3, number) for number in range(200)]
    assert draw(FAMILY, 4, 0) != samples[0]
    rates = np.array([s["train.lr"] for s in samples])
    assert ((rates >= 1e-4) & (rates <= 1e-2)).all()
    assert 0.4 < (rates < 1e-3).mean() < 0.6  # evenly by its logarithm
    assert {s["model.latent"] for s in samples} == {8, 16}


def test_a_grid_that_nobody_trains_is_refused_with_the_arithmetic():
    space = {name: Uniform(0.0, 1.0) for name in ("a", "b", "c", "d")}
    with pytest.raises(ConfigError, match=r"30 x 30 x 30 x 30 = 810,000 trials over a, b, c, d"):
        grid(space, 30)


def test_a_grid_has_every_combination_with_the_ends_of_ranges():
    points = grid(FAMILY | {"model.p": Uniform(0, 1)}, 3)
    assert len(points) == 3 * 2 * 3
    assert sorted({p["train.lr"] for p in points}) == pytest.approx([1e-4, 1e-3, 1e-2])
    assert sorted({p["model.p"] for p in points}) == [0.0, 0.5, 1.0]


def test_the_ends_of_a_domain_are_its_values_or_its_bounds():
    assert ends(Choice(("a", "b", "c"))) == ("a", "b", "c")
    assert ends(Uniform(0, 2)) == (0, 2)


def test_few_choices_are_tried_once_each_in_an_order_of_the_seed():
    space = {"a.b": Choice((1, 2, 3)), "a.c": Choice(("x", "y"))}
    points = shuffled(space, 1)
    assert sorted(map(str, points)) == sorted(map(str, grid(space, 2)))
    assert points == shuffled(space, 1)
    assert any(points != shuffled(space, seed) for seed in range(2, 6))
    assert shuffled(space | {"a.d": Uniform(0, 1)}, 1) is None
