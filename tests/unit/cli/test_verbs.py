"""The table of verbs: each has its help, its example and its job script."""

from pathlib import Path

import pytest

from ehr_ray.cli.main import build_parser, main
from ehr_ray.cli.verbs import VERBS as TABLE

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


def test_every_verb_has_its_job_script():
    assert {p.stem for p in (ROOT / "jobs").glob("*.py")} == set(VERBS)


def test_help_of_the_program_lists_the_verbs():
    text = build_parser().format_help()
    assert all(verb in text for verb in VERBS)
