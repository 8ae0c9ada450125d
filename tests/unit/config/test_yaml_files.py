from pathlib import Path

import pytest

from ehr_ray.config.yaml_files import differences, override, parse_override, read_yaml
from ehr_ray.errors import ConfigError


def test_an_override_reaches_into_sections_and_leaves_the_original_alone():
    raw = {"train": {"lr": 1.0, "layers": {"a": 1}}, "name": "x"}
    changed = override(raw, {"train.lr": 2.0, "data.cohort": "c", "train.layers.b": 3})
    assert changed == {
        "train": {"lr": 2.0, "layers": {"a": 1, "b": 3}},
        "name": "x",
        "data": {"cohort": "c"},
    }
    assert raw == {"train": {"lr": 1.0, "layers": {"a": 1}}, "name": "x"}
    with pytest.raises(ConfigError, match=r"name\.first: name is a value here, not a section"):
        override(raw, {"name.first": 1})


@pytest.mark.parametrize(
    ("text", "value"),
    [("a.b=0.5", 0.5), ("a.b=null", None), ("a.b=[1, 2]", [1, 2]), ("a.b=x=y", "x=y")],
)
def test_an_override_is_read_as_yaml(text, value):
    assert parse_override(text) == ("a.b", value)


@pytest.mark.parametrize("text", ["a.b", "=1", "a=[1", "a={b: 1, b: 2}"])
def test_what_is_no_override_is_refused(text):
    with pytest.raises(ConfigError):
        parse_override(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [("- 1", "expected `key: value` lines, got list"), ("a: 1\na: 2", "a is given twice")],
)
def test_a_file_that_is_no_mapping_or_gives_a_key_twice_is_refused(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_yaml(path)
    with pytest.raises(ConfigError, match="no such config; "):
        read_yaml(tmp_path / "b.yaml")
    with pytest.raises(ConfigError, match=f"c/b.yaml: no such config in {Path.cwd()}; "):
        read_yaml("c/b.yaml")


def test_differences_name_each_path_with_both_values():
    old = {"a": {"b": 1, "c": 2}, "gone": 0, "same": [1]}
    new = {"a": {"b": 1, "c": 3}, "new": "x", "same": [1]}
    assert list(differences(old, new)) == ["a.c: 2 -> 3", "gone: gone, was 0", "new: new, x"]


def test_a_folder_in_place_of_a_config_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=f"^{tmp_path}: is a folder; name a YAML file"):
        read_yaml(tmp_path)
