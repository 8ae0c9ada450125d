"""Whatever a user can name a path by is typed as one, and means the folder the command is given in.

A field that is text and no path stands in a list below, with the reason.
"""

import argparse
import dataclasses
import typing
from pathlib import Path

import pytest

from ehr_ray.cli.main import build_parser
from ehr_ray.cli.parser import number, positive
from ehr_ray.config.locations import Mark, marks_of
from ehr_ray.config.yaml_files import override
from ehr_ray.experiment import (
    Experiment,
    changes_since,
    dump,
    load,
    parse,
    to_yaml,
    with_absolute_paths,
)
from ehr_ray.registry import FAMILIES, get_schema
from ehr_ray.sources.source import SOURCES, get_source, options_of

OF_SETS = ("data.expanded", "data.value_stats")
PATTERNS = "patterns of codes or of parameter names"
NO_PATHS = {
    "Experiment.family": "a key of the registry",
    "Experiment.name": "a name without slashes",
    "Experiment.freeze": PATTERNS,
    "Experiment.model": "the family's own class, which is looked at too",
    "Experiment.schedules": "names of scheduled values",
    "Experiment.search": "domains of other fields: choices of a path are paths",
    "TaskConfig.name": "a label file of the cohort by its name",
    "TaskConfig.classes": "names of classes",
    "TrainConfig.layers": PATTERNS,
    "ClusterConfig.address": "host and port",
    "DataConfig.origin": "codes",
    "EvaluationConfig.task": "a label file of the cohort by its name",
    "EvaluationConfig.subgroups": "names",
    "CrossvalConfig.tasks": "label files of the cohort by their names",
    "CrossvalConfig.variants": "overrides of other fields: values of a path are paths",
    "CrossvalConfig.chosen": "names",
    "TrackingConfig.experiment": "a name in MLflow",
    "Subgroup.codes": PATTERNS,
    "Subgroup.births": PATTERNS,
    "Subgroup.groups": PATTERNS,
    "SetVAEConfig.always_carry": "codes",
    "SeqSetVAEConfig.always_carry": "codes",
    "Scale.name": "a name",
    "Vital.name": "a name",
    "Vital.codes": PATTERNS,
    "Vital.unit": "a unit",
    "EventTransformerConfig.time_to_event_codes": "codes",
    "JEPAConfig.time_to_event_codes": "codes",
    "EventTransformerConfig.future_value_codes": "codes",
    "JEPAConfig.future_value_codes": "codes",
    "JEPAConfig.outcomes": PATTERNS,
    "JEPAConfig.flows": PATTERNS,
    "JEPAConfig.discharges": PATTERNS,
    "HCATConfig.codes": PATTERNS,
    "Outcome.name": "a name",
    "Outcome.event": PATTERNS,
    "Outcome.competing": PATTERNS,
    "Outcome.end": PATTERNS,
}
NO_PATH_OPTIONS = {
    "source": "a key of the registry",
    "name": "of a family",
    "splits": "shares, or a table that is read before anything starts",
    "origin": "codes",
    "ranges": "none, a name, or a table that is read before anything starts",
    "units": "none, a name, or a table that is read before anything starts",
    "code_map": "a name, or a table that is read before anything starts",
    "split_by": "a code",
    "scale": "robust or standard",
    "device": "cpu or cuda",
    "repeats": "keep or drop",
    "unlisted": "refuse or drop",
    "always_carry": "codes",
    "address": "host and port",
    "task": "a label file of the cohort by its name",
    "overrides": "read as the config is",
    "split": "a name",
    "label_shares": "numbers",
    "zero_shot": "a code",
    "variants": "names",
    "only": "names",
    "experiment": "a name",
    "tracking_uri": "an address, or a file that is made absolute as that of a config",
}
NO_PATH_OF_SOURCES = [
    *("id_column", "time_column", "code_column", "value_column", "label_columns"),
    *("unit_column", "encoding", "delimiter", "label_numbers", "label_classes"),
    "tasks",  # or a file, made absolute where it is found to be none that is shipped
]


def reachable(kind, found):
    """All dataclasses in the fields of one, through containers and unions."""
    if dataclasses.is_dataclass(kind) and kind not in found:
        found.append(kind)
        for hint in typing.get_type_hints(kind).values():
            reachable(hint, found)
    for argument in typing.get_args(kind):
        reachable(argument, found)
    return found


def is_untyped_text(hint):
    if typing.get_origin(hint) is typing.Annotated and any(map(is_mark, hint.__metadata__)):
        return False
    if typing.get_origin(hint) is typing.Literal:
        return False
    return hint in (str, typing.Any) or any(map(is_untyped_text, typing.get_args(hint)))


def is_mark(value):
    return isinstance(value, Mark)


def marks_in(hint):
    """The marks written in a hint, without those of the dataclasses it names."""
    own = [value for value in getattr(hint, "__metadata__", ()) if is_mark(value)]
    return own + [mark for argument in typing.get_args(hint) for mark in marks_in(argument)]


def config_types():
    found = reachable(Experiment, [])
    for name in FAMILIES:
        reachable(get_schema(name).config, found)
    return found


def bare(family):
    return {"family": family, "name": "x", "data": {"cohort": "c"}}


def paths_of(family):
    schema = get_schema(family)
    paths = [*dict(marks_of(Experiment)), *dict(marks_of(schema.config, "model."))]
    return [path for path in paths if schema.takes_sets or path not in OF_SETS]


def at(plain, path):
    for key in path.split("."):
        plain = plain[key]
    return plain


def test_every_text_of_a_config_is_typed_as_a_path_or_known_to_be_none():
    hints = {
        f"{kind.__name__}.{name}": hint
        for kind in config_types()
        for name, hint in typing.get_type_hints(kind, include_extras=True).items()
    }
    assert {name for name, hint in hints.items() if is_untyped_text(hint)} == set(NO_PATHS)


def test_the_walk_finds_every_path_that_a_type_is_written_for():
    written = sum(
        len(marks_in(hint))
        for kind in (Experiment, *config_types()[1:])
        for hint in typing.get_type_hints(kind, include_extras=True).values()
    )
    sections = set(dict(marks_of(Experiment)))
    configs = {get_schema(name).config for name in FAMILIES}
    assert written == len(sections) + sum(len(dict(marks_of(config))) for config in configs)
    data = {f"data.{name}" for name in ("cohort", "cache_dir", "expanded", "value_stats")}
    assert {*data, "output", "init_from", "tracking.uri"} == sections


@pytest.mark.parametrize("family", FAMILIES)
def test_every_path_of_a_config_means_the_folder_of_the_command(family, tmp_path, monkeypatch):
    folder = tmp_path / "folder of a user"
    folder.mkdir()
    monkeypatch.chdir(folder)
    path = tmp_path / "elsewhere.yaml"
    given = {name: f"of/the/{name}" for name in paths_of(family)}
    path.write_text(to_yaml(parse(override(bare(family), given))))
    experiment = load(path)
    for name, text in given.items():
        assert at(dump(experiment), name) == str(folder / text)
    assert parse(dump(experiment)) == experiment
    monkeypatch.chdir("/")
    assert with_absolute_paths(experiment) == experiment


@pytest.mark.parametrize("family", FAMILIES)
def test_uris_and_what_is_not_given_stay(family, tmp_path):
    path = tmp_path / "x.yaml"
    # What was expanded is looked into at once, for what it was made with.
    names = [name for name in paths_of(family) if name not in OF_SETS]
    changes = {name: f"s3://bucket/{name}" for name in names}
    path.write_text(to_yaml(parse(override(bare(family), changes))))
    assert [at(dump(load(path)), name) for name in changes] == [*changes.values()]
    plain = dump(load(path, [f"{name}=null" for name in changes if name in optional(family)]))
    assert all(at(plain, name) is None for name in optional(family))


def optional(family):
    plain = dump(parse(bare(family)))
    return [name for name in paths_of(family) if at(plain, name) is None]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_of_relative_paths_is_the_one_of_the_same_places(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = parse(override(bare(family), {name: f"of/the/{name}" for name in paths_of(family)}))
    Path("experiment.yaml").write_text(to_yaml(before))
    assert changes_since(Path("experiment.yaml"), with_absolute_paths(before)) == []
    (tmp_path / "another").mkdir()
    monkeypatch.chdir("another")
    changed = changes_since(Path("../experiment.yaml"), load("../experiment.yaml"))
    assert changed == []
    here = load("../experiment.yaml")
    monkeypatch.chdir(tmp_path)
    changed = [line.partition(": ")[0] for line in changes_since(Path("experiment.yaml"), here)]
    assert sorted(changed) == sorted(paths_of(family))


def options():
    verbs = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for verb, parser in verbs.choices.items():
        if parser.fill is not None:  # options are added to the verb that is asked for
            parser.fill(parser)
            parser.fill = None
        for action in parser._actions:
            if action.nargs != 0 and not action.dest.startswith("opt_"):
                yield verb, parser, action


def test_every_text_of_the_command_line_is_typed_as_a_path_or_known_to_be_none():
    text = {action.dest for _, _, action in options() if action.type in (None, str)}
    assert text == set(NO_PATH_OPTIONS)
    of_sources = [option for name in SOURCES for option in options_of(get_source(name))]
    text = {option.name for option in of_sources if option.type is str and not option.choices}
    assert text == set(NO_PATH_OF_SOURCES)


def test_every_path_on_the_command_line_means_the_folder_of_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = set()
    for verb, parser, action in options():
        # The config itself is read at once, and named as it was typed.
        if action.type not in (None, int, float, number, positive) and action.dest != "config":
            assert parser._get_value(action, "a/b") == tmp_path / "a" / "b"
            if isinstance(action.default, str):
                assert parser.parse_args([]).output == tmp_path / action.default
            seen.add((verb, action.dest))
    assert {("ingest", "input"), ("evaluate", "run_folder"), ("expand", "value_stats")} <= seen
    assert {("quickstart", "output"), ("benchmark", "cohort"), ("prepare", "export")} <= seen
