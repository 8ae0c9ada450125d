"""The table of verbs: each has its help, its example and its job script."""

import dataclasses
import re
from pathlib import Path

import pytest

from ehr_ray.cli.main import build_parser, main
from ehr_ray.cli.verbs import VERBS as TABLE
from ehr_ray.commands.benchmark.command import GPU, LONG, PARTS
from ehr_ray.config.search import TuneConfig

ROOT = Path(__file__).parents[3]
VERBS = (
    "quickstart",
    "ingest",
    "expand",
    "labels",
    "phrases",
    "export-pt",
    "prepare",
    "train",
    "crossval",
    "tune",
    "evaluate",
    "embed",
    "export",
    "benchmark",
    "doctor",
    "new-family",
)


def test_the_table_holds_these_verbs_and_no_others():
    assert {verb.name for verb in TABLE} == set(VERBS)


@pytest.mark.parametrize("verb", TABLE, ids=lambda verb: verb.name)
def test_an_example_is_a_command_the_parser_takes(verb):
    for line in verb.example.splitlines():
        program, *words = line.split()
        assert program == "ehr-ray"
        assert build_parser().parse_args(words).run is verb.run


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([verb, "--help"])
    assert exit_.value.code == 0
    assert f"ehr-ray {verb}" in capsys.readouterr().out.split("example:")[1]


@pytest.mark.parametrize("verb", TABLE, ids=lambda verb: verb.name)
def test_the_list_of_verbs_has_a_short_line_of_each(verb):
    assert len(verb.help) <= 95
    assert not verb.help.endswith((",", "."))


def helped(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    return " ".join(capsys.readouterr().out.split())


def test_help_names_what_an_option_is_where_it_is_left_out(capsys):
    assert "(default held_out)" in helped("evaluate", capsys)
    *first, last = PARTS
    assert f"(default {', '.join(first)} and {last};" in helped("benchmark", capsys)
    named = helped("benchmark", capsys).split("with --config model); ")[1]
    listed, only = named.split(" only by name")[0].replace(" and ", ", "), {*LONG, GPU}
    assert set(listed.split(", ")) == only


def test_help_of_a_search_says_how_it_is_chosen(capsys):
    said = helped("tune", capsys)
    for name in re.findall(r"tune\.(\w+)=", said):
        assert name in {field.name for field in dataclasses.fields(TuneConfig)}
    assert "tune.method=random|grid|optuna" in said


@pytest.mark.parametrize("verb", ["train", "crossval", "export-pt", "prepare", "doctor"])
def test_changes_stand_before_or_behind_an_option(verb):
    option = {
        "train": ["--smoke"],
        "crossval": ["--folds", "3"],
        "export-pt": ["--output", "pt"],
        "prepare": ["--export", "rows.h5"],
        "doctor": ["--ray"],
    }[verb]
    changes = ["data.cohort=x", "name=y"]
    orders = (
        ["c.yaml", *changes, *option],
        ["c.yaml", *option, *changes],
        [*option, "c.yaml", *changes],
        ["c.yaml", changes[0], *option, changes[1]],
    )
    for words in orders:
        parsed = build_parser().parse_args([verb, *words])
        assert (parsed.config, parsed.overrides) == (Path("c.yaml"), changes), words
    assert build_parser().parse_args([verb, "c.yaml", *option]).overrides == []


def test_every_verb_has_its_job_script():
    assert {p.stem for p in (ROOT / "jobs").glob("*.py")} == set(VERBS)


def test_help_of_the_program_lists_the_verbs():
    text = build_parser().format_help()
    assert all(verb in text for verb in VERBS)
