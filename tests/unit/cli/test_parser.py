"""Options of the command line: paths, URIs, and options that are added when a verb is parsed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ehr_ray.cli.main import build_parser, main
from ehr_ray.cli.parser import Parser, relative


def test_a_uri_reaches_a_verb_as_it_was_written():
    words = ["embed", "s3://b/runs/a", "--cohort", "gs://c/p12", "--output", "out.parquet"]
    parsed = build_parser().parse_args(words)
    assert (parsed.run_folder, parsed.cohort) == ("s3://b/runs/a", "gs://c/p12")
    assert parsed.output == Path.cwd() / "out.parquet"


def test_what_follows_two_dashes_is_no_option():
    parsed = build_parser().parse_args(["export", "--torch-export", "--", "-run", "out"])
    assert (parsed.run_folder.name, parsed.output.name, parsed.torch_export) == (
        "-run",
        "out",
        True,
    )


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


def test_options_may_be_added_before_anything_is_parsed():
    parser = Parser()
    parser.fill = lambda given: given.add_argument("--x")
    parser.add_options()
    assert "--x" in parser.format_help()
    assert parser.parse_args(["--x", "3"]).x == "3"


def test_a_path_is_shown_as_it_would_be_typed_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert relative(tmp_path / "runs" / "a") == Path("runs/a")
    assert relative("/elsewhere/a") == "/elsewhere/a"
    assert relative("s3://b/runs/a") == "s3://b/runs/a"
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert relative("/elsewhere/a") == "/elsewhere/a"


def test_a_shell_that_completes_a_line_is_told_options_and_verbs(tmp_path):
    pytest.importorskip("argcomplete", reason="needs argcomplete: pip install -e '.[complete]'")
    line = "ehr-ray embed --min"
    asked = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "told"),
    }
    command = [sys.executable, "-m", "ehr_ray.cli.main"]
    subprocess.run(command, env={**os.environ, **asked}, check=True, capture_output=True)
    assert (tmp_path / "told").read_text().strip() == "--min-known-events"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian", "x"], "VERB trian: no such one; did you mean train?"),
        (["ingest", "--source", "sinthetic", "--output", "x"], "sinthetic: not available; did you"),
        (
            ["ingest", "--source", "synthetic", "--patiens", "3", "--output", "x"],
            "mean --patients?",
        ),
        (
            ["evaluate", "runs/x", "--taks", "a"],
            "unrecognized arguments: --taks a; did you mean --",
        ),
        (["zzz"], "invalid choice: 'zzz' (choose from"),
    ],
)
def test_of_a_verb_or_option_that_is_none_the_nearest_is_named(words, line, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
