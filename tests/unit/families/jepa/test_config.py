import pytest

from ehr_ray.config.idle import refusals
from ehr_ray.config.search import Choice, LogUniform
from ehr_ray.errors import ConfigError
from ehr_ray.experiment import parse
from ehr_ray.families.jepa.config import DEFAULT, SCHEMA
from ehr_ray.registry import get_family
from ehr_ray.runtime.tuning.plan import check_space, default_space
from ehr_ray.runtime.tuning.trial_data import data_paths


def model(**options):
    return parse({"family": "jepa", "name": "x", "data": {"cohort": "c"}, "model": options}).model


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("tiny", (192, 12, 3)),
        ("small", (384, 12, 6)),
        ("base", (768, 12, 12)),
        ("large", (1024, 24, 16)),
    ],
)
def test_a_preset_fills_the_sizes_that_are_not_given(name, size):
    whole = model(preset=name).size
    assert whole[:3] == size
    changed = model(preset=name, depth=3, predictor_depth=1).size
    assert changed == whole._replace(depth=3, predictor_depth=1)
    assert model(width=8, depth=1, heads=2, predictor_width=4).size == (8, 1, 2, 4, 2)
    assert model().size == (128, 4, 4, 64, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 10}, "width 10 must be a multiple of heads 4"),
        ({"predictor_width": 6}, "predictor_width 6 must be a multiple of heads 4"),
        ({"preset": "large", "heads": 12}, "width 1024 must be a multiple of heads 12"),
        ({"preset": "tiny", "predictor_width": 4}, "predictor_width 4 must be a multiple of"),
        (
            {"preset": "tiny", **DEFAULT._asdict()},
            "preset tiny has no say beside width, depth, heads",
        ),
        (
            {"block_share": [0.5, 0.2]},
            r"^model.block_share \[0.5, 0.2\] must be smallest, largest$",
        ),
        ({"block_share": 0.3}, r"^model.block_share: must be a list of 2, as in \[0.1, 0.25\]"),
        ({"regulariser_weight": "inf"}, r"^model.regulariser_weight: must be a finite number"),
        ({"pool": []}, "at least one of mean"),
        ({"target": "online", "embed_with": "target"}, "there is no other encoder"),
        ({"regulariser": "barlow"}, "model.regulariser"),
        ({"rows": "visits", "time_to_event_weight": 1}, "needs rows hours: a visit has no end"),
        ({"rows": "visits", "future_value_weight": 1}, "needs rows hours: a visit has no end"),
        ({"time_to_event_bins": [4, 1]}, "must ascend"),
        ({"future_value_hours": [12, 6]}, "must ascend"),
        ({"future_value_codes": []}, "at least one code"),
        ({"time_to_event_codes": ["A", "A"]}, "each once"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(options, message):
    with pytest.raises(ConfigError, match=message):
        model(**options)


def test_the_moving_average_is_the_published_one_over_the_whole_run():
    raw = {"family": "jepa", "name": "x", "data": {"cohort": "c"}}
    momentum = parse(raw).schedules["momentum"]
    assert [momentum.at(step, 7, run_steps=50) for step in (0, 50)] == [0.996, 1.0]
    assert momentum.at(50, 7, run_steps=100) == pytest.approx(0.998)


def test_rate_batch_and_length_of_a_sequence_can_be_searched():
    space = {
        "train.lr": LogUniform(1e-4, 1e-3),
        "data.batch_size": Choice((32, 64)),
        "model.max_rows": Choice((24, 48)),
        "model.context_rows": Choice((15, 30)),
    }
    raw = {"family": "jepa", "name": "x", "data": {"cohort": "c"}}
    experiment = parse(raw)
    check_space(experiment, space)
    assert data_paths(experiment, space) == []  # all its trials share their rows


def test_the_moving_average_keeps_between_none_and_all_of_itself():
    raw = {"family": "jepa", "name": "x", "data": {"cohort": "c"}}
    parse({**raw, "schedules": {"momentum": 1.0}})
    with pytest.raises(
        ConfigError, match=r"^schedules\.momentum: must be between 0 and 1 \(got 1.5"
    ):
        parse({**raw, "schedules": {"momentum": 1.5}})
    with pytest.raises(ConfigError, match=r"^schedules\.momentum\.start: .* \(got -0.1\)"):
        parse({**raw, "schedules": {"momentum": {"start": -0.1}}})


def test_the_moving_average_has_no_say_where_there_is_none():
    raw = {"family": "jepa", "name": "x", "data": {"cohort": "c"}}
    online = {"target": "online", "latent_loss": "infonce"}
    given = {**raw, "model": online, "schedules": {"momentum": 0.5}}
    (line,) = refusals(parse(given), SCHEMA)
    assert line.startswith("schedules.momentum")


@pytest.mark.parametrize("bare", [{}, {"regulariser": "sigreg", "regulariser_weight": 0}])
def test_states_told_from_themselves_alone_are_refused_with_what_to_add(bare):
    with pytest.raises(ConfigError) as error:
        model(target="online", **bare)
    assert str(error.value).startswith("model.target=online: states told from themselves alone")
    assert "add model.regulariser=sigreg or vicreg" in str(error.value)
    assert "\n" not in str(error.value)


def test_states_of_the_encoder_itself_are_targets_where_something_keeps_them_apart():
    for kept in ({"regulariser": "sigreg"}, {"regulariser": "vicreg"}, {"latent_loss": "infonce"}):
        assert model(target="online", **kept).target == "online"
    raw = {"family": "jepa", "name": "x", "data": {"cohort": "c"}, "model": {"target": "online"}}
    assert parse({**raw, "task": {"name": "death"}}).model.target == "online"  # labels train it


def test_no_search_takes_the_regulariser_from_states_that_collapse_without():
    raw = {"family": "jepa", "name": "x", "data": {"cohort": "c"}}
    for options, searched in (
        ({"target": "online", "regulariser": "sigreg"}, False),
        ({"target": "online", "latent_loss": "infonce"}, True),
        ({}, True),
    ):
        experiment = parse({**raw, "model": options})
        space = default_space(experiment, get_family("jepa"))
        assert ("model.regulariser" in space) == searched
        check_space(experiment, space)
