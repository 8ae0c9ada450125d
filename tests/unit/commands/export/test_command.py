import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import ehr_ray
from ehr_ray.commands.export.command import export
from ehr_ray.errors import InputError


@pytest.fixture(scope="module")
def exported(evaluated_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "ours"
    export(evaluated_run, folder)
    return folder


@pytest.fixture(scope="module")
def events(synthetic_cohort):
    return pq.read_table(synthetic_cohort / "data" / "held_out" / "0.parquet")


def test_the_folder_says_the_same_as_the_run(exported, evaluated_run, events):
    ours, theirs = ehr_ray.load(exported), ehr_ray.load(evaluated_run)
    assert ours.predict(events).equals(theirs.predict(events))
    assert ours.embed(events).equals(theirs.embed(events))


def test_every_file_has_its_hash(exported):
    sums = dict(
        reversed(line.split("  ")) for line in (exported / "SHA256SUMS").read_text().splitlines()
    )
    files = {p.relative_to(exported).as_posix(): p for p in exported.rglob("*") if p.is_file()}
    assert sums.keys() == files.keys() - {"SHA256SUMS"}
    assert sums.keys() == {
        "README.md",
        "experiment.yaml",
        "metrics.json",
        "model.safetensors",
        "predict.py",
        "probes/outcome.safetensors",
        "vocabulary.parquet",
    }
    for name, digest in sums.items():
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == digest
    card = (exported / "README.md").read_text()
    assert all(digest in card for name, digest in sums.items() if name != "README.md")


def test_predict_py_needs_no_ray_and_gives_the_probabilities(exported, events, tmp_path):
    pq.write_table(events, tmp_path / "events.parquet")
    words = [str(exported / "predict.py"), "events.parquet", "risk.parquet"]
    code = (
        f"import runpy, sys; sys.argv = {words!r}; runpy.run_path({words[0]!r}); "
        "assert not {'ray', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    found = pq.read_table(tmp_path / "risk.parquet")
    assert found.column_names == ["subject_id", "probability"]
    expected = ehr_ray.load(exported).predict(events)["probability"].to_numpy()
    np.testing.assert_allclose(found["probability"].to_numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("file", ["gone.parquet", "README.md"])
def test_predict_py_says_in_one_line_what_it_cannot_read(exported, file, tmp_path):
    (tmp_path / "README.md").write_text("no table")
    command = [sys.executable, str(exported / "predict.py"), file, "risk.parquet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"predict.py {file}: ")
    assert "Traceback" not in done.stderr


def test_nothing_in_the_folder_names_a_place_of_this_machine(exported, evaluated_run):
    places = [str(evaluated_run.parent), str(exported.parent), str(exported.parents[1])]
    for path in exported.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [place for place in places if place.encode() in content], path.name


def test_a_run_without_a_checkpoint_is_told(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=r"run: no checkpoint here.*; give the folder of a run"):
        export(tmp_path / "run", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_with_something_in_it_is_left_alone(evaluated_run, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="there already; name a new folder"):
        export(evaluated_run, tmp_path)
    with pytest.raises(InputError, match="there already"):
        export(evaluated_run, tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_folder_one_stands_in_is_refused_before_the_run_is_read(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match=r"here: is the folder you stand in, .*; name a folder"):
        export(tmp_path / "run", Path("new/.."))


def test_a_model_that_predicts_nothing_embeds(tiny_run, events, tmp_path):
    export(tiny_run, tmp_path / "model")
    assert "model.embed(events)" in (tmp_path / "model" / "predict.py").read_text()
    frame = ehr_ray.load(tmp_path / "model").embed(events.to_pandas())
    assert isinstance(frame, pd.DataFrame)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "was not evaluated: nothing is known" in card
    assert "predict(" not in card.split("## Intended use")[0].replace("predict(...", "")
