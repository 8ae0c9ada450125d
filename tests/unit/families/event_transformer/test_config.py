import pytest

from ehr_ray.config.idle import refusals
from ehr_ray.events.options import TokenOptions
from ehr_ray.experiment import ConfigError, parse
from ehr_ray.families.event_transformer.config import SCHEMA

BARE = {"family": "event_transformer", "name": "x", "data": {"cohort": "c"}}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"model_dim": 20, "n_heads": 4}, "even multiple of n_heads 4"),
        ({"pooling": []}, "at least one of mean"),
        ({"arch": "encoder", "next_time_weight": 0.1}, "needs arch decoder"),
        ({"arch": "encoder", "time_to_event_weight": 0.1}, "needs arch decoder"),
        ({"time_to_event_bins": [4, 1]}, "must ascend"),
        ({"time_to_event_bins": []}, "one at least"),
        ({"time_to_event_codes": []}, "at least one code"),
        ({"time_to_event_codes": ["HR", "HR"]}, "each once"),
        ({"time_to_event_codes": 0}, "model.time_to_event_codes"),
        ({"arch": "encoder", "future_value_weight": 0.1}, "needs arch decoder"),
        ({"future_value_hours": [12, 6]}, "must ascend"),
        ({"future_value_codes": []}, "at least one code"),
        ({"next_event_weight": 0}, "leaves nothing to train"),
        ({"positions": ["learned"]}, "model.positions"),
    ],
)
def test_what_cannot_be_is_named(model, message):
    with pytest.raises(ConfigError, match=message):
        parse({**BARE, "model": model})


def test_options_of_a_head_that_is_not_there_are_refused():
    for head in ("time_to_event", "future_value"):
        given = {"arch": "decoder", f"{head}_codes": ["HR"]}
        (line,) = refusals(parse({**BARE, "model": given}), SCHEMA)
        assert line.startswith(f"model.{head}_codes=('HR',): does nothing")
        given[f"{head}_weight"] = 1
        assert not [*refusals(parse({**BARE, "model": given}), SCHEMA)]
    given |= {"next_event_weight": 0, "head": "tied"}
    (line,) = refusals(parse({**BARE, "model": given}), SCHEMA)
    assert line.startswith("model.head=tied: does nothing with model.next_event_weight=0")


def test_the_options_of_tokens_are_the_models():
    model = parse({**BARE, "model": {"values": "own", "gaps": "none", "levels": 4}}).model
    assert model.token_options == TokenOptions(values="own", gaps="none", levels=4)


def test_sizes_are_the_published_ones_unless_told():
    model = parse(BARE).model
    assert (model.model_dim, model.n_heads, model.n_layers) == (256, 8, 6)
    assert (model.dropout, model.max_length, model.pooling) == (0.1, 512, ("mean",))
    assert model.text_model == "all-MiniLM-L6-v2"
