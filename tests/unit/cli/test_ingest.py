"""`ingest` on the command line: the options of the sources, and what is wrong with them."""

import dataclasses

import pyarrow.parquet as pq
import pytest

from ehr_ray.cli.main import build_parser, main
from ehr_ray.commands.ingest import ingest
from ehr_ray.sources.source import SOURCES, get_source
from ehr_ray.train import allocator


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--source", "nope", "--output", "x"], "nope"),
        (["--source", "hospital", "--input", ".", "--output", "x"], "hospital"),
        (["--source", "physionet2012", "--output", "x"], "--input"),
        (["--source", "table", "--input", "missing.csv", "--output", "x"], "missing.csv"),
        (["--source", "synthetic", "--output", "x", "--splits", "0.5,0.9"], "--splits"),
        (["--source", "synthetic", "--output", "x", "--patients", "few"], "patients"),
        (["--source", "meds", "--input", ".", "--output", "x", "--patients", "3"], "--patients"),
    ],
)
def test_bad_ingest_arguments_are_named(capsys, arguments, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["ingest", *arguments])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    assert list(tmp_path.iterdir()) == []


def test_every_option_of_every_source_is_a_flag(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["ingest", "--help"])
    told = capsys.readouterr().out
    for name in SOURCES:
        for field in dataclasses.fields(get_source(name).options):
            assert f"--{field.name.replace('_', '-')} " in told, (name, field.name)
    assert "patient-parquet, table: " in " ".join(told.split())  # what two say alike is said once


def test_an_option_reaches_its_source(tmp_path, capsys):
    out = tmp_path / "made"
    main(
        ["ingest", "--source", "synthetic", "--output", str(out), "--patients", "7", "--cpus", "1"]
    )
    assert "7 subjects" in "".join(capsys.readouterr())
    assert len(pq.read_table(out / "metadata" / "subject_splits.parquet")) == 7


def test_the_verb_alone_changes_how_its_process_frees_memory(tmp_path, monkeypatch):
    """Who calls `ingest` from a program of their own keeps their allocator as it is."""
    told = []
    monkeypatch.setattr(allocator, "_told", lambda settings: told.append(settings) or True)
    ingest("synthetic", None, tmp_path / "a", options={"patients": 3}, cpus=1)
    assert not told
    given = ["--output", str(tmp_path / "b"), "--patients", "3", "--cpus", "1"]
    main(["ingest", "--source", "synthetic", *given])
    assert len(told) == 1
