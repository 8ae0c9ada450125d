import ast
import copy
import dataclasses
import inspect
import json
import textwrap
import typing
from pathlib import Path

import pytest
import yaml

from ehr_ray.config.schedules import Constant, Cycle, Ramp
from ehr_ray.config.yaml_files import differences, override, parse_override, read_yaml
from ehr_ray.errors import ConfigError
from ehr_ray.experiment import Experiment, changes_since, dump, load, parse, to_yaml
from ehr_ray.registry import FAMILIES, get_schema

RAW = {"family": "set_vae", "name": "run", "data": {"cohort": "cohorts/x"}}


def parsed(**changes):
    return parse(override(RAW, {path.replace("__", "."): v for path, v in changes.items()}))


def message(changes):
    with pytest.raises(ConfigError) as caught:
        parse(override(RAW, changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reachable(kind, found):
    """All dataclasses in the fields of one, through containers and unions."""
    if dataclasses.is_dataclass(kind) and kind not in found:
        found.append(kind)
        for hint in typing.get_type_hints(kind).values():
            reachable(hint, found)
    for argument in typing.get_args(kind):
        reachable(argument, found)
    return found


def config_types():
    found = reachable(Experiment, [])
    for name in FAMILIES:
        reachable(get_schema(name).config, found)
    return found


def test_the_walk_reaches_sections_schedules_and_families():
    names = {kind.__name__ for kind in config_types()}
    assert {"Experiment", "DataConfig", "Cycle", "SetVAEConfig"} <= names


@pytest.mark.parametrize("kind", config_types(), ids=lambda kind: kind.__name__)
def test_every_config_is_frozen_and_forbids_unknown_keys(kind):
    assert kind.__pydantic_config__ == {"extra": "forbid"}
    assert kind.__dataclass_params__.frozen


@pytest.mark.parametrize("kind", config_types(), ids=lambda kind: kind.__name__)
def test_every_config_field_has_a_docstring_under_it(kind):
    fields = {field.name for field in dataclasses.fields(kind)}
    for origin in kind.__mro__[:-1]:  # a field may be a parent's
        body = ast.parse(textwrap.dedent(inspect.getsource(origin))).body[0].body
        for node, below in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and node.target.id in fields:
                text = getattr(getattr(below, "value", None), "value", None)
                assert isinstance(text, str), f"{origin.__name__}.{node.target.id}: no docstring"
                fields.discard(node.target.id)
    assert not fields


def test_defaults_are_filled_in():
    experiment = parsed()
    assert experiment.data.batch_size == 32
    assert experiment.model == get_schema("set_vae").config()
    assert experiment.schedules == dict(get_schema("set_vae").schedules)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train.lrr": 1}, "train.lrr: unknown key; did you mean lr?"),
        ({"model.latnt": 3}, "model.latnt: unknown key; did you mean latent?"),
        ({"trains": {}}, "trains: unknown key; did you mean train?"),
        ({"schedules.bta": 1}, "schedules.bta: unknown key; did you mean beta?"),
        ({"schedules.beta.ennd": 1}, "schedules.beta.ennd: unknown key; did you mean end?"),
        ({"schedules.beta.zz": 1}, "schedules.beta.zz: unknown key; known: end, start, steps"),
        ({"data.batch_size": "many"}, "data.batch_size: input should be a valid integer"),
        ({"data.batch_size": 1.5}, "data.batch_size: input should be a valid integer"),
        ({"data.batch_size": 0}, "data.batch_size: input should be greater than or equal to 1"),
        ({"train.lr": -1}, "train.lr: input should be greater than 0 (got -1)"),
        ({"train.lr": float("nan")}, "train.lr: "),
        ({"train.lr": float("inf")}, "train.lr: "),
        ({"train.weight_decay": "inf"}, "train.weight_decay: must be a finite number (got inf)"),
        ({"search": {"train.lr": {"uniform": [0.1, float("inf")]}}}, "search.train.lr"),
        ({"seed": -1}, "seed: "),
        ({"seed": 2**63}, "seed: "),
        ({"name": "a/b"}, "name: must be of letters A to Z or a to z, digits, _, -, ., and begin"),
        ({"freeze": "abc"}, "freeze: must be a list, as in [abc]"),
        ({"task": {"name": "x", "hours": 6}}, "task.hours: must be a list, as in [6]"),
        (
            {"task": {"name": "x", "class_weight": "y"}},
            "task.class_weight: input should be 'none' or 'balanced' (got 'y'); task.cl",
        ),
        ({"model": 5}, "model: input should be a dictionary"),
        ({"model.p_stale": 1.5}, "model.p_stale: input should be less than or equal to 1"),
        ({"model.pool": ["mea"]}, "model.pool.0: input should be 'mean'"),
        ({"model.width": 10}, "model.width 10 must be a multiple of heads 4"),
        ({"train": None}, "train: input should be a dictionary"),
        ({"schedules": [1]}, "schedules: input should be a valid dictionary"),
        ({"schedules.beta": "x"}, "schedules.beta: "),
        ({"schedules.beta": True}, "schedules.beta: "),
        ({"schedules.beta.kind": "rmp"}, "schedules.beta: input tag 'rmp'"),
        ({"schedules.beta": {"steps": 3, "epochs": 3}}, "schedules.beta: give its length"),
        ({"schedules.beta.end": float("nan")}, "schedules.beta.end: "),
        ({"schedules.beta.steps": 0}, "schedules.beta.steps: input should be greater than 0"),
        ({"search": [1]}, "search: input should be a valid dictionary, as in {key: value} (got"),
        ({"search": {"train.lr": {"uniform": ["a", 1]}}}, "search.train.lr: not a search domain"),
        ({"data.cohort": None}, "data.cohort: input should be a valid string"),
    ],
)
def test_a_bad_value_is_named_by_its_path(changes, expected):
    assert message(changes).startswith(expected)


def test_missing_values_are_named():
    with pytest.raises(ConfigError, match=r"name: missing; .* data: missing"):
        parse({"family": "set_vae"})
    with pytest.raises(ConfigError, match="family: missing"):
        parse({})
    with pytest.raises(ConfigError, match="unknown family 'nope'"):
        parse({**RAW, "family": "nope"})


def test_all_problems_are_reported_at_once():
    changes = {
        "model.latnt": 1,
        "data.batch_size": 0,
        "train.lr": "x",
        "schedules.bta": 1,
        "search": {"a": 3},
    }
    found = message(changes)
    for path in ("model.latnt", "data.batch_size", "train.lr", "schedules.bta", "search.a"):
        assert f"{path}: " in found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedules.beta": {"kind": "cycle", "end": 1.0, "epochs": 2, "cycles": 3}},
        {"schedules.beta": 0.1, "model.pool": ["last"], "freeze": ["reduce.*"]},
        {"search": {"train.lr": {"loguniform": [1e-4, 1e-2]}}, "model.always_carry": ["A", "B"]},
    ],
)
def test_dump_and_parse_are_inverse_through_json_and_yaml(changes):
    experiment = parse(override(RAW, changes))
    assert parse(dump(experiment)) == experiment
    assert parse(json.loads(json.dumps(dump(experiment)))) == experiment
    assert parse(yaml.safe_load(to_yaml(experiment))) == experiment


def test_override_changes_a_copy():
    raw = {"a": {"b": {"c": 1}}, "d": 2}
    before = copy.deepcopy(raw)
    changed = override(raw, {"a.b.c": 5, "a.x.y": 6, "d": {"e": 7}})
    assert raw == before
    assert changed == {"a": {"b": {"c": 5}, "x": {"y": 6}}, "d": {"e": 7}}


def test_override_opens_an_empty_section_but_not_a_value():
    assert override({"a": None}, {"a.b": 1}) == {"a": {"b": 1}}
    with pytest.raises(ConfigError, match=r"a\.b\.c: b is a value here"):
        override({"a": {"b": 3}}, {"a.b.c": 1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=1", ("a.b", 1)),
        ("a=x=y", ("a", "x=y")),
        ("a=", ("a", None)),
        ("a=null", ("a", None)),
        ("a=[1, b]", ("a", [1, "b"])),
        ("a={kind: ramp, end: 0.2}", ("a", {"kind": "ramp", "end": 0.2})),
    ],
)
def test_command_line_overrides_are_yaml(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["train.lr", "=3", "a=[1", "a={"])
def test_a_malformed_override_is_refused(text):
    with pytest.raises(ConfigError):
        parse_override(text)


def test_exponents_without_a_dot_are_numbers():
    texts = ["train.lr=1e-3", "schedules.free_bits=2e-3", "schedules.beta.end=3e-3"]
    experiment = parse(override(RAW, dict(parse_override(text) for text in texts)))
    assert experiment.train.lr == 1e-3
    assert experiment.schedules["free_bits"] == Constant(value=2e-3)
    assert experiment.schedules["beta"].end == 3e-3


def test_part_of_a_schedule_merges_with_the_default_of_the_family():
    default = get_schema("set_vae").schedules["beta"]
    assert isinstance(default, Ramp)
    assert parsed(schedules__beta__end=0.7).schedules["beta"] == dataclasses.replace(
        default, end=0.7
    )
    assert parsed(schedules__beta__epochs=2).schedules["beta"] == dataclasses.replace(
        default, steps=None, epochs=2
    )
    assert parsed(schedules__beta=0.1).schedules["beta"] == Constant(value=0.1)
    cycle = {"kind": "cycle", "end": 1.0, "steps": 5}
    assert parsed(schedules__beta=cycle).schedules["beta"] == Cycle(end=1.0, steps=5)
    assert parsed(schedules__beta=0.1).schedules["free_bits"] == parsed().schedules["free_bits"]


def test_load_reads_a_file_and_applies_overrides_in_order(tmp_path):
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(RAW))
    experiment = load(tmp_path / "x.yaml", ["seed=3", "seed=4", "train.lr=0.5", "output=there"])
    assert (experiment.seed, experiment.train.lr) == (4, 0.5)
    assert experiment.directory == Path("there/run").absolute()


@pytest.mark.parametrize("content", [None, "a: [1", "- 1", "", b"\xff\xfe\x00\xd8"])
def test_a_file_that_is_no_mapping_is_named(tmp_path, content):
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"x\.yaml: ") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_differences_name_every_changed_path():
    old, new = dump(parsed()), dump(parsed(train__lr=0.5, seed=2))
    assert list(differences(old, new)) == ["seed: 0 -> 2", "train.lr: 0.001 -> 0.5"]
    assert list(differences(old, old)) == []
    old, new = {"a": None, "b": {"c": 1}}, {"a": 2, "b": {"d": 3}}
    assert list(differences(old, new)) == ["a: null -> 2", "b.c: gone, was 1", "b.d: new, 3"]


def test_a_run_of_a_version_that_lacked_an_option_is_the_one_with_its_default(tmp_path):
    experiment, path = parse(RAW), tmp_path / "experiment.yaml"
    before = dump(experiment)
    del before["train"]["seeds"], before["model"]["latent"]
    path.write_text(yaml.safe_dump(before))
    assert changes_since(path, experiment) == []
    other = override(RAW, {"model.latent": 3})
    latent = experiment.model.latent
    assert changes_since(path, parse(other)) == [f"model.latent: {latent} -> 3"]
    del before["data"]["scale"]  # values were standard then
    before["model"]["of_then"] = 1
    path.write_text(yaml.safe_dump(before))
    assert "data.scale: new, robust" in changes_since(path, experiment)
    assert "model.of_then: gone, was 1" in changes_since(path, experiment)
    del before["model"]["of_then"]
    path.write_text(yaml.safe_dump(before))
    assert changes_since(path, experiment) == ["data.scale: new, robust"]


def test_places_are_paths_or_the_copies_of_uris(monkeypatch, tmp_path):
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path))
    here = parsed()
    assert (here.location, str(here.directory)) == ("runs/run", "runs/run")
    assert (str(here.cohort), str(here.cache)) == ("cohorts/x", "runs/.cache")
    away = parsed(output="s3://b/runs", data__cohort="s3://b/x")
    assert away.location == "s3://b/runs/run"
    assert away.directory == tmp_path / "s3" / "b" / "runs" / "run"
    assert away.cohort == tmp_path / "s3" / "b" / "x"
    assert away.cache == tmp_path / "s3" / "b" / "runs" / ".cache"
    assert parse(dump(away)) == away
    assert parsed(output="s3://b/runs", data__cache_dir="/fast").cache == Path("/fast")


def test_a_key_that_is_given_twice_is_named_with_its_line(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\ntrain:\n  lr: 0.1\n  lr: 0.2\n")
    with pytest.raises(ConfigError, match=r"lr is given twice at line 4, column 3"):
        read_yaml(path)
    path.write_text("train: {lr: 0.1}\ntask: {lr: 0.2}\n")
    assert read_yaml(path) == {"train": {"lr": 0.1}, "task": {"lr": 0.2}}
    with pytest.raises(ConfigError, match="is not YAML"):
        parse_override("train={lr: 0.1, lr: 0.2}")
