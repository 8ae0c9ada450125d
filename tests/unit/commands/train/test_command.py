"""Whether a run goes on, by where its paths lead; without Ray."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from ehr_ray.cli.main import main
from ehr_ray.commands.crossval.command import claim
from ehr_ray.commands.train.command import artifacts_of, without_labels
from ehr_ray.commands.tune import SEARCH, check_folder
from ehr_ray.config.task import TaskConfig
from ehr_ray.config.yaml_files import read_yaml
from ehr_ray.errors import ConfigError
from ehr_ray.experiment import load, parse, to_yaml
from ehr_ray.train import history

TINY = Path(__file__).parents[4] / "configs" / "tiny"


@pytest.fixture
def folder(tmp_path, monkeypatch, synthetic_cohort):
    """A user's folder, with the cohort in it."""
    (tmp_path / "user" / "cohorts").mkdir(parents=True)
    (tmp_path / "user" / "cohorts" / "synthetic").symlink_to(synthetic_cohort)
    monkeypatch.chdir(tmp_path / "user")
    return tmp_path / "user"


def train(*overrides):
    common = ("cluster.num_workers=0", "tracking.experiment=null", "train.max_steps=1")
    main(["train", str(TINY / "set_vae.yaml"), *common, *overrides])


def test_a_run_goes_on_where_its_paths_lead_to_the_same_places(folder, capsys, monkeypatch):
    train("name=first")
    again = ("name=second", "init_from=runs/first")
    train(*again)
    stored = folder / "runs" / "second" / "experiment.yaml"
    assert read_yaml(stored)["init_from"] == str(folder / "runs" / "first")
    # As a version wrote it that kept these two as they were typed.
    before = read_yaml(stored) | {"output": "runs", "init_from": "runs/first"}
    for content in (read_yaml(stored), before):
        stored.write_text(yaml.safe_dump(content))
        capsys.readouterr()
        train(*again)
        assert "second: already trained" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train("name=second", "init_from=runs/other")
    assert "init_from: " in capsys.readouterr().err
    (folder / "notes.txt").write_text("")
    for other, said in (("runs/none", "no such folder"), ("notes.txt", "no checkpoint here")):
        with pytest.raises(SystemExit):
            train("name=third", f"init_from={other}")
        assert f"init_from={other}: {said}" in capsys.readouterr().err
    (folder / "runs").rename(folder / "moved")
    with pytest.raises(SystemExit):
        train("name=second", "output=moved", "init_from=moved/first")
    assert "output" not in capsys.readouterr().err.partition("(")[2]
    train("name=first", "output=moved")
    assert "moved/first: already trained" in capsys.readouterr().err
    monkeypatch.chdir("moved")
    train("name=first", f"data.cohort={folder}/cohorts/synthetic", "output=.")
    assert "first: already trained" in capsys.readouterr().err


@pytest.fixture
def earlier(folder):
    """An experiment of HCAT as typed, and as it is loaded."""
    raw = read_yaml(TINY / "hcat.yaml")
    return parse(raw), load(TINY / "hcat.yaml")


def test_a_cross_validation_goes_on_from_relative_paths(folder, earlier):
    typed, loaded = earlier
    root = folder / "runs" / loaded.name
    claim(root, typed)
    claim(root, load(TINY / "hcat.yaml", ["crossval.repeats=3"]))
    assert read_yaml(root / "crossval.yaml")["output"] == str(folder / "runs")
    for change in ("crossval.folds=3", "seed=9"):
        with pytest.raises(ConfigError, match="holds another cross-validation"):
            claim(root, load(TINY / "hcat.yaml", [change]))


def test_a_search_goes_on_from_relative_paths(folder, earlier):
    typed, loaded = earlier
    root = folder / "runs" / loaded.name
    (root / "trials" / "0").mkdir(parents=True)
    (root / SEARCH).write_text(to_yaml(typed))
    check_folder(root, loaded)
    with pytest.raises(ConfigError, match=r"data\.cohort: "):
        check_folder(root, load(TINY / "hcat.yaml", ["data.cohort=cohorts/other"]))


def test_mlflow_gets_the_best_checkpoint_of_each_task_and_none_kept_by_steps(tmp_path):
    for name in ("best_surv", "best_rec", "final", "00000400"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert artifacts_of(tmp_path)[:4] == [
        "checkpoint",
        "checkpoints/best_rec",
        "checkpoints/best_surv",
        "checkpoints/final",
    ]


def test_a_finished_hcat_leaves_its_summary_in_the_run(folder):
    small = ("cluster.num_workers=0", "tracking.experiment=null", "train.max_steps=2")
    main(["train", str(TINY / "hcat.yaml"), *small, "name=fused", "train.max_epochs=1"])
    run = folder / "runs" / "fused"
    found = json.loads((run / "enhanced_hcat_training_summary.json").read_text())
    told = history.read(run)
    assert found["history"]["val_avg_f1"] == told["val/f1_avg"].tolist()
    assert found["best_metrics"]["surv_auc"] == told["val/auc_surv"].max()
    assert found["training_config"]["epochs"] == 1


def test_a_class_that_no_row_of_train_has_is_told():
    """A name that was mistyped would be trained as a class that never comes."""
    rows = SimpleNamespace(column=lambda _name: np.array([0.0, 2.0, 2.0]))
    data = SimpleNamespace(store=lambda split: {"train": rows}[split])

    def lines(*classes):
        task = TaskConfig(name="ward", kind="classes", classes=classes)
        return without_labels(SimpleNamespace(task=task), data)

    assert lines("a", "b", "c") == [
        "task ward: no row of train is labelled 'b' of task.classes: nothing is learned of it; "
        "correct its name, or drop it"
    ]
    assert "'b', 'd' of task.classes" in lines("a", "b", "c", "d")[0]
    data.store = lambda _split: SimpleNamespace(column=lambda _name: np.arange(2.0))
    assert lines("a", "b") == []
    assert without_labels(SimpleNamespace(task=None), data) == []
