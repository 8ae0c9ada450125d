import pytest

from ehr_ray.errors import ConfigError
from ehr_ray.search import Choice, LogUniform, Uniform, parse_domain


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
        [],
        {"choice": []},
        {"choice": 3},
        {"uniform": [1]},
        {"uniform": [2, 1]},
        {"uniform": [1, 1]},
        {"uniform": ["low", "high"]},
        {"uniform": [None, 1]},
        {"uniform": [0, float("inf")]},
        {"loguniform": [0, 1]},
        {"normal": [0, 1]},
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
