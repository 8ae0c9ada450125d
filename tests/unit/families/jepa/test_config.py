import pytest

from ehr_ray.config import parse
from ehr_ray.errors import ConfigError


def model(**options):
    return parse({"family": "jepa", "name": "x", "data": {"cohort": "c"}, "model": options}).model


@pytest.mark.parametrize(
    ("name", "size"),
    [("tiny", (192, 12, 3)), ("small", (384, 12, 6)), ("base", (768, 12, 12))],
)
def test_a_preset_overrides_the_free_sizes(name, size):
    assert model(preset=name, width=8).size[:3] == size
    assert model(width=8, depth=1, heads=2, predictor_width=4).size == (8, 1, 2, 4, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 10}, "width 10 must be a multiple of heads 4"),
        ({"predictor_width": 6}, "predictor_width 6 must be a multiple of heads 4"),
        ({"block_share": [0.5, 0.2]}, "smallest, largest"),
        ({"pool": []}, "at least one of mean"),
        ({"regulariser": "barlow"}, "model.regulariser"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(options, message):
    with pytest.raises(ConfigError, match=message):
        model(**options)
