"""Whatever is written in a config, the answer is an experiment or one line."""

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr_ray.commands.train.pipeline import is_pipeline, load_pipeline
from ehr_ray.config.yaml_files import override, parse_override, read_yaml
from ehr_ray.errors import ConfigError, UserError
from ehr_ray.experiment import dump, load, parse
from ehr_ray.registry import FAMILIES

CONFIGS = Path(__file__).parents[2] / "configs" / "tiny"
FILES = sorted(path for path in CONFIGS.glob("*.yaml") if not is_pipeline(path))
RAWS = [read_yaml(path) for path in FILES]

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.dates()
    | st.text(max_size=6)
    | st.sampled_from(["set_vae", "ramp", "cycle", "1e-2", "all", "*", ".inf"])
)
keys = st.text(max_size=5) | st.integers() | st.none() | st.booleans() | st.dates()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)


def places(raw, at=()):
    """Every path of a nested mapping, sections too."""
    for key, value in raw.items():
        yield (*at, key)
        if isinstance(value, dict):
            yield from places(value, (*at, key))


def answered(action):
    """Run it; what it raises may only be one line to the user."""
    try:
        return action()
    except UserError as error:
        line = str(error)
    assert line.strip()
    assert "\n" not in line
    return None


@settings(max_examples=120, derandomize=True)
@given(st.data())
def test_any_value_at_any_place_of_a_config_is_answered(data):
    raw = copy.deepcopy(data.draw(st.sampled_from(RAWS)))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(sorted(places(raw), key=repr)))
        node = raw
        for key in path[:-1]:
            node = node[key]
        if data.draw(st.booleans()):
            node[path[-1]] = data.draw(values)
        elif isinstance(node[path[-1]], dict):
            node[path[-1]][data.draw(keys)] = data.draw(values)
        else:
            del node[path[-1]]
    experiment = answered(lambda: parse(raw))
    if experiment is not None:
        assert parse(dump(experiment)) == experiment


@settings(max_examples=60, derandomize=True)
@given(st.sampled_from(sorted(FAMILIES)), st.dictionaries(keys, values, max_size=4))
def test_any_mapping_is_answered(family, raw):
    answered(lambda: parse({"family": family, **raw}))
    answered(lambda: parse(raw))


@settings(max_examples=60, derandomize=True)
@given(st.text(max_size=12), st.text(max_size=12), st.sampled_from(RAWS))
def test_any_override_is_answered(path, value, raw):
    for text in (path, f"{path}={value}", f"train.{path}={value}", f"train.lr={value}"):
        answered(lambda text=text: parse(override(raw, dict([parse_override(text)]))))


@settings(max_examples=80, derandomize=True)
@given(st.binary(max_size=60), st.integers(0, 2000), st.booleans())
def test_any_bytes_in_a_file_are_answered(tmp_path_factory, junk, at, insert):
    path = tmp_path_factory.getbasetemp() / "junk.yaml"
    text = FILES[at % len(FILES)].read_bytes()
    cut = at % len(text)
    path.write_bytes(text[:cut] + junk + (text[cut:] if insert else b""))
    answered(lambda: load(path))
    path.write_bytes(junk)
    answered(lambda: load(path))
    answered(lambda: is_pipeline(path) and load_pipeline(path))


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['true']",
        "family: !!python/name:os.system ''",
        "a: &a [*a]",
        "a: &a {b: *a}",
        "{" * 3000,
        "[" * 3000,
        "? [a, b]\n: 1",
        "1: 2",
        "family: set_vae\nfamily: jepa",
    ],
)
def test_tricks_of_yaml_are_answered_and_nothing_is_built(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_the_fuzz_starts_from_configs_that_parse():
    assert len(RAWS) >= len(FAMILIES)
    assert [parse(yaml.safe_load(yaml.safe_dump(raw))) for raw in RAWS]
