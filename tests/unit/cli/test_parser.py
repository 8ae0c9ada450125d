"""Options of the command line: paths, URIs, and options that are added when a verb is parsed."""

from pathlib import Path

import pytest

from ehr_ray.cli.main import build_parser, main
from ehr_ray.cli.parser import Parser, relative


def test_a_uri_reaches_a_verb_as_it_was_written():
    words = ["embed", "s3://b/runs/a", "--cohort", "gs://c/p12", "--output", "out.parquet"]
    parsed = build_parser().parse_args(words)
    assert (parsed.run_folder, parsed.cohort) == ("s3://b/runs/a", "gs://c/p12")
    assert parsed.output == Path.cwd() / "out.parquet"


@pytest.mark.parametrize(
    "words",
    [["quickstart"], ["benchmark"], ["export-pt", "config.yaml"]],
    ids=lambda words: words[0],
)
def test_a_verb_that_takes_paths_only_refuses_a_uri(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*words, "--output", "s3://b/out"])
    assert caught.value.code == 2
    assert "s3://b/out: a URI; this verb takes paths only" in capsys.readouterr().err


def test_options_are_added_once_and_only_to_the_verb_that_is_parsed():
    filled = []
    parser = Parser()
    verbs = parser.add_subparsers(dest="verb")
    for name in ("one", "two"):
        sub = verbs.add_parser(name)
        sub.fill = lambda given, name=name: (filled.append(name), given.add_argument("--x"))
    assert parser.parse_args(["two", "--x", "3"]).x == "3"
    assert parser.parse_args(["two", "--x", "4"]).x == "4"
    assert filled == ["two"]


def test_a_path_is_shown_as_it_would_be_typed_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert relative(tmp_path / "runs" / "a") == Path("runs/a")
    assert relative("/elsewhere/a") == "/elsewhere/a"
    assert relative("s3://b/runs/a") == "s3://b/runs/a"
