"""Every mistake a user can make on the command line is one line that names it, and exit 2."""

import argparse
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ehr_ray.cli.main import main
from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import RunError

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs" / "tiny" / "set_vae.yaml"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "cohort"
    ingest("synthetic", None, path, options={"patients": 30})
    return path


def refused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in arguments])
    assert exit_.value.code == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1, message
    assert "Traceback" not in message
    return message


def test_a_verb_of_a_trained_run_takes_no_overrides(capsys):
    message = refused(capsys, "evaluate", "runs/x", "evaluation.bootstrap=10")
    assert "takes no a.b=value" in message
    assert message.startswith("ehr-ray evaluate: ")


def test_a_config_is_missed_alone_and_its_changes_are_not(capsys):
    message = refused(capsys, "train")
    assert message.startswith("ehr-ray train: ")
    assert "required: config;" in message


def test_what_no_option_is_of_a_verb_that_takes_changes_is_told_by_the_verb(capsys):
    message = refused(capsys, "train", TINY, "--smoky", "data.cohort=x")
    assert message.startswith("ehr-ray train: unrecognized")
    assert "did you mean --smoke?; see ehr-ray train --help" in message


def test_an_option_in_place_of_a_key_of_the_config_is_told_how_that_is_changed(capsys):
    assert "changed by key=value, as train.max_epochs=3" in refused(
        capsys, "train", TINY, "--epochs", "3"
    )


def test_a_pipeline_whose_cohort_is_missing_is_refused_before_its_first_stage(capsys, tmp_path):
    message = refused(
        capsys, "train", TINY.with_name("event_pipeline.yaml"), f"data.cohort={tmp_path / 'no'}"
    )
    assert "data.cohort=" in message
    assert "1/4" not in message


def test_a_path_is_told_with_all_its_spaces(capsys, tmp_path, monkeypatch):
    (tmp_path / "a  b").mkdir()
    monkeypatch.chdir(tmp_path / "a  b")
    for run in ("runs  1", tmp_path / "a  b" / "runs  1"):
        message = refused(capsys, "evaluate", run)
        assert message.startswith("ehr-ray: runs  1: no such folder"), message
    for run in (Path("..", "a  b", "run"), tmp_path / "c  d"):
        assert f"{run}: no such folder" in refused(capsys, "evaluate", run)


@pytest.mark.parametrize("only", [(), ("--only", "model")])
def test_changes_of_no_config_are_refused(capsys, only):
    message = refused(capsys, "benchmark", "train.max_steps=3", *only)
    assert message == "ehr-ray: train.max_steps=3: changes a config; name it by --config CONFIG"


@pytest.mark.parametrize(
    "words", [("ingest", "--source", "synthetic", "--output", "x"), ("crossval", TINY)]
)
def test_no_cpus_are_refused(capsys, words):
    for number in ("0", "-2", "two"):
        message = refused(capsys, *words, "--cpus", number)
        assert f"--cpus: {number}: give a whole number, 1 or more" in message


@pytest.mark.parametrize("source", ["synthetic", "synthetic-vitals"])
def test_an_input_of_a_source_that_reads_none_is_refused(capsys, tmp_path, source):
    words = ("--source", source, "--input", tmp_path, "--output", tmp_path / "cohort")
    message = refused(capsys, "ingest", *words)
    assert f"--source {source} makes its own patients; drop --input" in message


def test_an_empty_config_is_told_as_empty(capsys, tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert "empty.yaml: is empty; see configs/" in refused(capsys, "train", tmp_path / "empty.yaml")


def test_unknown_config_key_is_named_with_the_closest_one(capsys):
    message = refused(capsys, "train", TINY, "model.latnt=3")
    assert "model.latnt" in message
    assert "did you mean latent?" in message


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("train.lr=-1", "train.lr"),
        ("train.max_epochs=many", "train.max_epochs"),
        ("data.batch_size=0", "data.batch_size"),
        ("model.heads=3", "model"),
        ("schedules.gamma=1", "schedules.gamma"),
        ("schedules.beta.kind=spline", "schedules.beta"),
        ("name=a/b", "name"),
        ("family=vae", "family"),
        ("nonsense", "nonsense"),
    ],
)
def test_wrong_type_or_range_is_named_before_anything_starts(capsys, change, name):
    assert name in refused(capsys, "train", TINY, change)


def test_missing_config_and_cohort_are_named(capsys, tmp_path):
    assert "nowhere.yaml" in refused(capsys, "train", "nowhere.yaml")
    message = refused(
        capsys,
        "train",
        TINY,
        f"data.cohort={tmp_path}/none",
        "cluster.num_workers=0",
        f"output={tmp_path}/runs",
    )
    assert "data.cohort" in message
    assert not (tmp_path / "runs").exists()


def test_too_few_cpus_are_refused_with_the_arithmetic(capsys, cohort, tmp_path):
    message = refused(
        capsys,
        "train",
        TINY,
        f"data.cohort={cohort}",
        "cluster.num_workers=500",
        f"output={tmp_path}/runs",
    )
    assert "needs 500 CPUs" in message
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_is_no_run_is_named(capsys, cohort, tmp_path):
    assert "no checkpoint here" in refused(capsys, "evaluate", tmp_path)
    out = tmp_path / "e.parquet"
    assert "no checkpoint" in refused(
        capsys, "embed", tmp_path, "--cohort", cohort, "--output", out
    )


def test_expand_names_a_folder_that_is_no_cohort(capsys, tmp_path):
    assert "not a cohort" in refused(capsys, "expand", tmp_path, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_usage_is_one_line(capsys):
    assert "see ehr-ray --help" in refused(capsys, "trian")


def test_the_console_script_and_the_module_are_one_program():
    done = subprocess.run(
        [sys.executable, "-m", "ehr_ray.cli.main", "train"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "config" in done.stderr


@pytest.mark.parametrize(
    ("verb", "goes_on"), [("train", True), ("tune", True), ("evaluate", False)]
)
def test_an_interrupted_verb_says_whether_it_would_go_on(verb, goes_on, monkeypatch, capsys):
    def run(*_):
        raise KeyboardInterrupt

    parsed = argparse.Namespace(verb=verb, verbose=False, run=run)
    parser = argparse.ArgumentParser()
    monkeypatch.setattr(parser, "parse_args", lambda _: parsed)
    monkeypatch.setattr("ehr_ray.cli.main.build_parser", lambda **_: parser)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 130
    said = capsys.readouterr().err
    assert "interrupted; run the same command again" in said
    assert ("last saved state" in said) == goes_on


@pytest.mark.parametrize(
    ("verbose", "line"),
    [(False, "cdm: no deaths\n"), (True, "WARNING:ehr_ray.sources.omop:cdm: no deaths\n")],
)
def test_a_warning_names_the_module_that_gives_it_only_where_logs_are_asked_for(
    verbose, line, monkeypatch, capsys
):
    def run(*_):
        logging.getLogger("ehr_ray.sources.omop").warning("%s: no deaths", "cdm")

    parsed = argparse.Namespace(verb="ingest", verbose=verbose, run=run)
    parser = argparse.ArgumentParser()
    monkeypatch.setattr(parser, "parse_args", lambda _: parsed)
    monkeypatch.setattr("ehr_ray.cli.main.build_parser", lambda **_: parser)
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.root.level)
    main([])
    assert capsys.readouterr().err == line


def test_an_error_on_a_terminal_replaces_the_line_of_what_was_going_on(monkeypatch, capsys):
    def run(_parsed, screen):
        screen.passing("embedded 1/3")
        raise RunError("disk full")

    parsed = argparse.Namespace(verb="embed", verbose=False, run=run)
    parser = argparse.ArgumentParser()
    monkeypatch.setattr(parser, "parse_args", lambda _: parsed)
    monkeypatch.setattr("ehr_ray.cli.main.build_parser", lambda **_: parser)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2)
    monkeypatch.setattr("os.get_terminal_size", lambda _: os.terminal_size((80, 24)))
    with pytest.raises(SystemExit, match="1"):
        main([])
    assert capsys.readouterr().err == "\r\x1b[Kembedded 1/3\r\x1b[Kehr-ray: disk full\n"
